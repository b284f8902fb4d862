//! What stands before a Flagsmith: TLS under an authority of its own, and a proxy.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use h2::server::SendResponse;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// An authority that no machine trusts.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Authority(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// A certificate for these names, and its key, as PEM files have them.
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Its certificate, as a PEM file has it.
    pub fn pem(&self) -> String {
        self.0.pem()
    }
}

/// A TLS server that hands whatever it is asked to an HTTP server behind it.
pub struct Front {
    pub address: SocketAddr,
    protocols: Arc<Mutex<BTreeSet<String>>>,
    connections: Arc<AtomicUsize>,
}

impl Front {
    /// Begins to listen, as the server of these names, offering these protocols.
    pub async fn start(
        authority: &Authority,
        names: &[&str],
        offers: &[&str],
        behind: SocketAddr,
    ) -> Self {
        Front::that_goes_silent(authority, names, offers, behind, usize::MAX).await
    }

    /// The same, and its first HTTP/2 connection is dead after so many requests, though nobody closes
    /// it: what a router that forgot it does.
    pub async fn that_goes_silent(
        authority: &Authority,
        names: &[&str],
        offers: &[&str],
        behind: SocketAddr,
        silent_after: usize,
    ) -> Self {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &authority.0).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = offers.iter().map(|offer| offer.as_bytes().into()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let front = Front {
            address: listener.local_addr().unwrap(),
            protocols: Arc::default(),
            connections: Arc::default(),
        };
        let (protocols, connections) = (front.protocols.clone(), front.connections.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, protocols) = (acceptor.clone(), protocols.clone());
                let connections = connections.clone();
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let before = connections.fetch_add(1, Ordering::SeqCst);
                    let protocol = stream.get_ref().1.alpn_protocol().unwrap_or_default();
                    let protocol = String::from_utf8(protocol.to_vec()).unwrap();
                    protocols.lock().unwrap().insert(protocol.clone());
                    if protocol == "h2" {
                        let requests = match before {
                            0 => silent_after,
                            _ => usize::MAX,
                        };
                        serve_h2(stream, behind, requests).await;
                    } else {
                        let mut behind = TcpStream::connect(behind).await.unwrap();
                        let _ = copy_bidirectional(&mut stream, &mut behind).await;
                    }
                });
            }
        });
        front
    }

    /// The protocols that clients agreed to.
    pub fn protocols(&self) -> Vec<String> {
        self.protocols.lock().unwrap().iter().cloned().collect()
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn serve_h2(
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    behind: SocketAddr,
    mut requests: usize,
) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        if requests == 0 {
            std::future::pending::<()>().await;
        }
        requests -= 1;
        tokio::spawn(hand_on(request, respond, behind));
    }
}

/// Asks the server behind, over HTTP/1.1.
async fn hand_on(
    request: http::Request<h2::RecvStream>,
    mut respond: SendResponse<bytes::Bytes>,
    behind: SocketAddr,
) {
    let (head, mut body) = request.into_parts();
    let mut sent = Vec::new();
    while let Some(Ok(chunk)) = body.data().await {
        let _ = body.flow_control().release_capacity(chunk.len());
        sent.extend_from_slice(&chunk);
    }
    let path = head.uri.path_and_query().unwrap();
    let answer = super::service::client()
        .request(head.method, format!("http://{behind}{path}"))
        .headers(head.headers)
        .body(sent)
        .send()
        .await
        .unwrap();
    let mut response = http::Response::new(());
    *response.status_mut() = answer.status();
    let body = answer.bytes().await.unwrap();
    let mut stream = respond.send_response(response, false).unwrap();
    stream.send_data(body, true).unwrap();
}

/// A proxy that takes `CONNECT` to anywhere, and always connects to one server.
pub struct Proxy {
    pub address: SocketAddr,
    asked_for: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    pub async fn start(behind: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy {
            address: listener.local_addr().unwrap(),
            asked_for: Arc::default(),
        };
        let asked_for = proxy.asked_for.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let asked_for = asked_for.clone();
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.unwrap());
                    }
                    let head = String::from_utf8(head).unwrap();
                    asked_for
                        .lock()
                        .unwrap()
                        .push(head.lines().next().unwrap().to_owned());
                    let mut behind = TcpStream::connect(behind).await.unwrap();
                    let established = b"HTTP/1.1 200 Connection established\r\n\r\n";
                    stream.write_all(established).await.unwrap();
                    let _ = copy_bidirectional(&mut stream, &mut behind).await;
                });
            }
        });
        proxy
    }

    /// The first lines of what it was asked.
    pub fn asked_for(&self) -> Vec<String> {
        self.asked_for.lock().unwrap().clone()
    }
}
