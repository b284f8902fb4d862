//! Who may change things and see persons: the bearer of the token, or, where there is none, the
//! machine itself.

use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::sync::{PoisonError, RwLock};

use actix_web::dev::Payload;
use actix_web::http::Uri;
use actix_web::http::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN};
use actix_web::http::uri::Authority;
use actix_web::{FromRequest, HttpRequest, web};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{Admin, AdminError};

/// The rule of one admin listener.
pub struct AdminAccess(Rule);

enum Rule {
    /// The SHA-256 of the token: hashes have one length, so comparing them tells nothing of it.
    Token(RwLock<[u8; 32]>),
    Loopback,
    Nobody,
}

/// Proof that a request may change things and see persons.
#[derive(Debug)]
pub struct Operator(());

impl AdminAccess {
    /// The rule for a listener that is bound to `address`.
    pub fn new(token: Option<&SecretString>, address: SocketAddr) -> Self {
        AdminAccess(match token {
            Some(token) => Rule::Token(RwLock::new(hash(token.expose_secret()))),
            None if address.ip().to_canonical().is_loopback() => Rule::Loopback,
            None => Rule::Nobody,
        })
    }

    /// From now on another token is asked for, where one is.
    pub fn set_token(&self, token: &SecretString) {
        if let Rule::Token(expected) = &self.0 {
            let mut expected = expected.write().unwrap_or_else(PoisonError::into_inner);
            *expected = hash(token.expose_secret());
        }
    }

    fn admit(&self, headers: &HeaderMap, uri: &Uri) -> Result<Operator, AdminError> {
        match &self.0 {
            Rule::Token(expected) => {
                let presented = bearer(headers).ok_or(AdminError::Unauthorized)?;
                let expected = *expected.read().unwrap_or_else(PoisonError::into_inner);
                if !bool::from(hash(presented).ct_eq(&expected)) {
                    return Err(AdminError::Unauthorized);
                }
            }
            Rule::Loopback => from_this_machine(headers, uri)?,
            Rule::Nobody => return Err(AdminError::TokenNeeded),
        }
        Ok(Operator(()))
    }
}

impl FromRequest for Operator {
    type Error = AdminError;
    type Future = Ready<Result<Self, AdminError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let admin = request.app_data::<web::Data<Admin>>();
        ready(match admin {
            Some(admin) => admin.access.admit(request.headers(), request.uri()),
            None => Err(AdminError::TokenNeeded),
        })
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_matches(' '))
}

/// A browser on this machine reaches loopback for any page it shows, so the connection proves
/// nothing: the name it used and the page that asked must be of this machine too.
fn from_this_machine(headers: &HeaderMap, uri: &Uri) -> Result<(), AdminError> {
    let host = headers
        .get(HOST)
        .map(|host| host.to_str().ok().and_then(|host| host.parse().ok()))
        .unwrap_or_else(|| uri.authority().cloned())
        .filter(is_loopback)
        .ok_or(AdminError::ForeignHost)?;
    match headers.get(ORIGIN) {
        None => Ok(()),
        Some(origin) if origin.as_bytes() == format!("http://{host}").as_bytes() => Ok(()),
        Some(_) => Err(AdminError::ForeignOrigin),
    }
}

fn is_loopback(host: &Authority) -> bool {
    let host = host.host();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};
    use actix_web::test::TestRequest;

    use super::*;

    const LOOPBACK: &str = "127.0.0.1:9090";
    const EVERYWHERE: &str = "0.0.0.0:9090";
    const TOKEN: Option<&str> = Some("tok-en");

    fn status(bound: &str, token: Option<&str>, headers: &[(HeaderName, &str)]) -> u16 {
        use actix_web::ResponseError;
        let token = token.map(SecretString::from);
        let access = AdminAccess::new(token.as_ref(), bound.parse().unwrap());
        let mut request = TestRequest::post();
        for (name, value) in headers {
            request = request.append_header((name, HeaderValue::from_str(value).unwrap()));
        }
        let request = request.to_http_request();
        match access.admit(request.headers(), request.uri()) {
            Ok(_) => 200,
            Err(error) => error.status_code().as_u16(),
        }
    }

    #[test]
    fn with_a_token_only_its_bearer_is_let_in_wherever_the_listener_is() {
        for bound in [LOOPBACK, EVERYWHERE] {
            for (sent, expected) in [
                ("Bearer tok-en", 200),
                ("bearer  tok-en", 200),
                ("Bearer tok-e", 401),
                ("Bearer tok-enn", 401),
                ("Bearer ", 401),
                ("Bearer", 401),
                ("Basic tok-en", 401),
                ("tok-en", 401),
            ] {
                let headers = [(HOST, "localhost:9090"), (AUTHORIZATION, sent)];
                assert_eq!(status(bound, TOKEN, &headers), expected, "{bound} {sent}");
            }
            assert_eq!(status(bound, TOKEN, &[(HOST, "localhost:9090")]), 401);
        }
    }

    #[test]
    fn another_token_takes_the_place_of_the_one_before_and_of_no_other_rule() {
        let admitted = |access: &AdminAccess, token: &str| {
            let bearer = format!("Bearer {token}");
            let request = TestRequest::post().insert_header((AUTHORIZATION, bearer));
            let request = request.to_http_request();
            access.admit(request.headers(), request.uri()).is_ok()
        };
        let (one, other) = (SecretString::from("one"), SecretString::from("other"));
        let access = AdminAccess::new(Some(&one), EVERYWHERE.parse().unwrap());
        assert!(admitted(&access, "one") && !admitted(&access, "other"));
        access.set_token(&other);
        assert!(!admitted(&access, "one") && admitted(&access, "other"));
        let nobody = AdminAccess::new(None, EVERYWHERE.parse().unwrap());
        nobody.set_token(&other);
        assert!(!admitted(&nobody, "other"));
    }

    #[test]
    fn with_a_token_the_host_may_be_any() {
        let headers = [
            (HOST, "bridge.example.com"),
            (ORIGIN, "https://ops.example.com"),
            (AUTHORIZATION, "Bearer tok-en"),
        ];
        assert_eq!(status(EVERYWHERE, TOKEN, &headers), 200);
    }

    #[test]
    fn without_a_token_nobody_is_let_in_from_elsewhere() {
        for bound in [EVERYWHERE, "[::]:9090", "192.0.2.1:9090"] {
            let headers = [(HOST, "localhost:9090"), (AUTHORIZATION, "Bearer ")];
            assert_eq!(status(bound, None, &headers), 403, "{bound}");
        }
    }

    #[test]
    fn without_a_token_the_host_must_be_this_machine() {
        for (host, expected) in [
            ("localhost:9090", 200),
            ("LOCALHOST", 200),
            ("127.0.0.1:9090", 200),
            ("127.9.9.9", 200),
            ("[::1]:9090", 200),
            ("[::ffff:127.0.0.1]:9090", 200),
            ("rebind.example.com:9090", 403),
            ("localhost.example.com", 403),
            ("127.0.0.1.example.com", 403),
            ("127.0.0.1@example.com", 403),
            ("0.0.0.0:9090", 403),
            ("192.0.2.1", 403),
            ("", 403),
        ] {
            for bound in [LOOPBACK, "[::1]:9090", "[::ffff:127.0.0.1]:9090"] {
                assert_eq!(status(bound, None, &[(HOST, host)]), expected, "{host}");
            }
        }
        assert_eq!(status(LOOPBACK, None, &[]), 403);
    }

    #[test]
    fn without_a_token_only_pages_of_the_listener_itself_may_ask() {
        for (origin, expected) in [
            ("http://localhost:9090", 200),
            ("http://localhost:3000", 403),
            ("https://localhost:9090", 403),
            ("http://evil.example.com", 403),
            ("null", 403),
        ] {
            let headers = [(HOST, "localhost:9090"), (ORIGIN, origin)];
            assert_eq!(status(LOOPBACK, None, &headers), expected, "{origin}");
        }
    }
}
