//! The client of `http`: one request to a worker's port, for `fusioncap healthcheck`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::blocking::Client;
use reqwest::redirect::Policy;

use crate::error::{Error, ErrorKind, Result};

/// Returns the address at which a worker that listens on `listen` is reached from its own machine:
/// the loopback address where it listens on every address.
pub fn own_address(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Returns the body of the response to `GET path` from `address` (`host:port`). `limit` covers the
/// whole exchange, from the connection to the last byte of the body.
///
/// # Errors
/// `ErrorKind::Io` if the host is unknown, if no response comes within `limit`, or if its status is
/// not 200: then with the status and the body.
pub fn get(address: &str, path: &str, limit: Duration) -> Result<String> {
    let url = format!("http://{address}{path}");
    let failed = |error: reqwest::Error| {
        Error::new(ErrorKind::Io, "the worker does not answer")
            .with_context("url", &url)
            .with_source(error.without_url())
    };
    // The worker speaks plain HTTP and is asked directly: no proxy, no certificates to load.
    let client = Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .tls_certs_only([])
        .build()
        .map_err(failed)?;
    let response = client.get(&url).timeout(limit).send().map_err(failed)?;
    let status = response.status();
    let body = response.text().map_err(failed)?;
    if status == StatusCode::OK {
        return Ok(body);
    }
    Err(Error::new(ErrorKind::Io, "the worker answers with an error")
        .with_context("url", &url)
        .with_context("status", status.as_u16())
        .with_context("answer", body.trim()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;

    fn own(listen: &str) -> String {
        own_address(listen.parse().unwrap()).to_string()
    }

    #[test]
    fn a_worker_that_listens_on_every_address_is_reached_by_loopback() {
        assert_eq!(own("0.0.0.0:8080"), "127.0.0.1:8080");
        assert_eq!(own("[::]:81"), "[::1]:81");
        assert_eq!(own("10.1.2.3:8080"), "10.1.2.3:8080");
    }

    #[test]
    fn a_trickling_response_meets_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert!(stream.read(&mut [0; 200]).unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n").unwrap();
            while stream.write_all(b"_").is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let since = Instant::now();
        let error = get(&address, "/livez", Duration::from_millis(500)).unwrap_err().chain();
        assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
        assert!(error.starts_with("the worker does not answer"), "{error}");
        assert!(error.contains("timed out"), "{error}");
        server.join().unwrap();
    }
}
