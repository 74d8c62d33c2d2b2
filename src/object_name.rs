//! The buckets and keys that may be requested.
//!
//! References are untrusted input, and the SDK puts the bucket into the host name and the key into
//! the path of a URL. A bucket must therefore follow S3's rules for bucket names, and must not be a
//! name that S3 resolves to another host (an ARN, an access point alias, a directory bucket). A key
//! must not contain anything that a proxy or server could resolve to a path outside its bucket; the
//! rest of a key is percent-encoded.

use std::net::Ipv4Addr;

use crate::error::{Error, ErrorKind, Result};

/// Prefixes that S3 reserves.
const RESERVED_PREFIXES: [&str; 2] = ["xn--", "sthree-"];
/// Suffixes of access point aliases, and of directory and table buckets.
const RESERVED_SUFFIXES: [&str; 7] =
    ["-s3alias", "--ol-s3", "--op-s3", "--x-s3", "--xa-s3", "--table-s3", ".mrap"];

/// The rule for bucket names that `bucket` breaks, as the text of what is allowed; None if it is
/// valid. Upper case, `_` and more than 63 characters are allowed for old buckets and other stores.
pub fn broken_rule(bucket: &str) -> Option<&'static str> {
    let is_edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let is_legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    let bytes = bucket.as_bytes();
    let lower = bucket.to_ascii_lowercase();
    if !(3..=255).contains(&bytes.len()) || !bytes.iter().all(is_legal) {
        return Some("3 to 255 characters: a-z, A-Z, 0-9, '.', '_' and '-'");
    }
    if !is_edge(bytes.first()) || !is_edge(bytes.last()) {
        return Some("a letter or a digit at both ends");
    }
    if bucket.contains("..") {
        return Some("no two dots in a row");
    }
    if bucket.parse::<Ipv4Addr>().is_ok() {
        return Some("not an IP address");
    }
    if RESERVED_PREFIXES.iter().any(|prefix| lower.starts_with(prefix))
        || RESERVED_SUFFIXES.iter().any(|suffix| lower.ends_with(suffix))
    {
        return Some("general purpose buckets by their own names");
    }
    None
}

/// # Errors
/// `ErrorKind::UnsupportedUri` for a name that is not a bucket name.
pub fn check_bucket(bucket: &str) -> Result<()> {
    match broken_rule(bucket) {
        None => Ok(()),
        Some(allowed) => Err(refused("the bucket's name is not supported", bucket, allowed)),
    }
}

/// # Errors
/// `ErrorKind::UnsupportedUri` for a key that could lead out of its bucket.
pub fn check_key(key: &str) -> Result<()> {
    let message = "the key is not supported";
    if key.contains(char::is_control) {
        return Err(refused(message, key, "no control characters"));
    }
    if key.split('/').any(|part| part == "." || part == "..") {
        return Err(refused(message, key, "no path segment '.' or '..'"));
    }
    Ok(())
}

fn refused(message: &'static str, value: &str, allowed: &str) -> Error {
    let shown: String = value.chars().take(200).flat_map(char::escape_debug).collect();
    Error::new(ErrorKind::UnsupportedUri, message)
        .with_context("value", shown)
        .with_context("allowed", allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_names_follow_the_rules_of_s3() {
        let long = "x".repeat(255);
        for right in ["photos", "my-bucket.eu", "Old_Bucket", "1.2.3", "a--b", "127.0.0.1x", &long]
        {
            assert_eq!(broken_rule(right), None, "{right}");
        }
        let too_long = "x".repeat(256);
        for wrong in [
            "",
            "ab",
            "..",
            "a..b",
            ".photos",
            "photos-",
            "127.0.0.1",
            "127.0.0.1:9000",
            "a@b",
            "a@evil.example",
            "evil.example/x",
            "evil.example#",
            "evil.example?",
            "evil\\x",
            "ev%2eil",
            "b\u{fc}cher",
            "a b",
            "a\nb",
            "arn:aws:s3:us-west-2:123456789012:accesspoint:mine",
            "mine-123456789012-s3alias",
            "mine--use1-az4--x-s3",
            "mine--usw2-az1--xa-s3",
            "mine--op-s3",
            "mine--ol-s3",
            "mfzwi23gnjvgw.mrap",
            "xn--nxasmq6b",
            "sthree-configurator",
            &too_long,
        ] {
            assert!(broken_rule(wrong).is_some(), "{wrong}");
            assert_eq!(check_bucket(wrong).unwrap_err().kind(), ErrorKind::UnsupportedUri);
        }
    }

    #[test]
    fn keys_stay_in_their_bucket() {
        for right in ["a", "/a", "a//b", "a/...", "..a/b..", "a?b#c%2e%2e", "a b+c", "é/\\..\\x"] {
            assert!(check_key(right).is_ok(), "{right}");
        }
        for wrong in ["..", ".", "../x", "a/../b", "a/..", "./a", "a\0", "a\r\nb", "a\u{7f}"] {
            let error = check_key(wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnsupportedUri);
            assert!(!error.to_string().contains(char::is_control), "{wrong:?}: {error}");
        }
    }
}
