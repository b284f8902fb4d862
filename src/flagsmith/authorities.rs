//! Certificate authorities beside those of the machine.

use std::fmt;

use reqwest::{Certificate, Client};

/// Certificates that a destination's own may be signed by, as a PEM file has them.
#[derive(Clone)]
pub struct Authorities(Vec<Certificate>);

impl Authorities {
    /// Reads one or several PEM certificates; whatever else is in the text is passed over.
    ///
    /// # Errors
    /// Says in words what is wrong.
    pub fn parse(pem: &str) -> Result<Self, String> {
        const ADVICE: &str = "certificates are wanted, each between -----BEGIN CERTIFICATE----- and -----END CERTIFICATE-----";

        let certificates = Certificate::from_pem_bundle(pem.as_bytes())
            .map_err(|_| format!("it is not PEM: {ADVICE}"))?;
        if certificates.is_empty() {
            return Err(format!("there is no certificate in it: {ADVICE}"));
        }
        // Whether it can be trusted shows when it is, and that should not be at the first call.
        Client::builder()
            .tls_certs_only(certificates.iter().cloned())
            .build()
            .map_err(|_| "one of its certificates cannot be read".to_owned())?;
        Ok(Authorities(certificates))
    }

    /// The certificates.
    pub(super) fn certificates(&self) -> impl Iterator<Item = Certificate> + '_ {
        self.0.iter().cloned()
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorities({})", self.0.len())
    }
}
