//! The other side of `http`: one request to a worker's port, without a runtime. Uses nothing but the
//! standard library, since plain HTTP/1.0 to our own server is all there is to it (RFC 1945).

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};

/// Far more than a worker's metrics have.
const LONGEST: u64 = 16 << 20;

/// Where a worker that listens on `listen` is reached from its own machine: by loopback where it
/// listens on every address.
pub fn own_address(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// The body of the answer to `GET path` from `address` (`host:port`), within `limit`.
///
/// # Errors
/// `ErrorKind::Io`: there is no such host, nothing answers in time, or the answer is not 200, with
/// the status and what the worker says.
pub fn get(address: &str, path: &str, limit: Duration) -> Result<String> {
    let end = Instant::now() + limit;
    let failed = |error: io::Error| {
        Error::new(ErrorKind::Io, "the worker does not answer")
            .with("url", format!("http://{address}{path}"))
            .because(error)
    };
    let answer = exchange(address, path, end).map_err(failed)?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    match head.split_ascii_whitespace().nth(1) {
        Some("200") => Ok(body.into()),
        status => Err(Error::new(ErrorKind::Io, "the worker's answer is no")
            .with("url", format!("http://{address}{path}"))
            .with("status", status.unwrap_or("none"))
            .with("answer", body.trim())),
    }
}

fn exchange(address: &str, path: &str, end: Instant) -> io::Result<Vec<u8>> {
    let mut stream = connect(address, end)?;
    stream.set_write_timeout(Some(left(end)?))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0; 16 << 10];
    loop {
        // Each read anew: an answer that trickles in has no longer than one that does not come.
        stream.set_read_timeout(Some(left(end)?))?;
        let length = stream.read(&mut part).map_err(late)?;
        answer.extend_from_slice(part.get(..length).unwrap_or_default());
        if length == 0 {
            return Ok(answer);
        }
        if answer.len() as u64 > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer has no end"));
        }
    }
}

/// To the first of the name's addresses that takes a connection.
fn connect(address: &str, end: Instant) -> io::Result<TcpStream> {
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for found in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&found, left(end)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

fn left(end: Instant) -> io::Result<Duration> {
    match end.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// A timeout of reading is EAGAIN, which would read as "resource temporarily unavailable".
fn late(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn own(listen: &str) -> String {
        own_address(listen.parse().unwrap()).to_string()
    }

    #[test]
    fn every_address_is_reached_by_loopback() {
        assert_eq!(own("0.0.0.0:8080"), "127.0.0.1:8080");
        assert_eq!(own("[::]:81"), "[::1]:81");
        assert_eq!(own("10.1.2.3:8080"), "10.1.2.3:8080");
    }

    /// What a server that gives `answer` in pieces, `pause` apart, is understood to say.
    fn asked(answer: &'static str, pause: Duration) -> Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 200];
            let length = stream.read(&mut request).unwrap();
            for piece in answer.as_bytes().chunks(10) {
                if stream.write_all(piece).is_err() {
                    break;
                }
                std::thread::sleep(pause);
            }
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let outcome = get(&address, "/livez", Duration::from_millis(500));
        let request = server.join().unwrap();
        assert_eq!(request, format!("GET /livez HTTP/1.0\r\nHost: {address}\r\n\r\n"));
        outcome
    }

    #[test]
    fn the_body_of_a_yes() {
        let answer = "HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nlive\n";
        assert_eq!(asked(answer, Duration::ZERO).unwrap(), "live\n");
    }

    #[test]
    fn a_no_says_why() {
        let answer = "HTTP/1.0 503 Service Unavailable\r\n\r\nnot ready: draining\n";
        let error = asked(answer, Duration::ZERO).unwrap_err().to_string();
        assert!(error.ends_with("status: 503, answer: not ready: draining)"), "{error}");
        let error = asked("nonsense", Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("status: none"), "{error}");
    }

    #[test]
    fn an_answer_that_trickles_in_is_late() {
        let error = asked("HTTP/1.0 200 OK\r\n\r\n________________", Duration::from_millis(200));
        let text = error.unwrap_err().chain();
        assert!(text.starts_with("the worker does not answer"), "{text}");
        assert!(text.ends_with("timed out"), "{text}");
    }

    #[test]
    fn nothing_there_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let text = get(&address, "/livez", Duration::from_secs(3)).unwrap_err().chain();
        assert!(text.contains("Connection refused"), "{text}");
        assert!(text.contains(&format!("url: http://{address}/livez")), "{text}");
    }
}
