//! Which buckets and keys a request may be made for.
//!
//! References are written by others, and the SDK makes a host of a bucket and a path of a key. So
//! a bucket must have a name that S3 gives to buckets, and none that stands for something behind
//! another host (an ARN, an access point's alias, a directory bucket); and a key may not hold
//! what a proxy or a server could take for a way out of its bucket. Everything else of a key is
//! sent percent-encoded, and names exactly that object.

use std::net::Ipv4Addr;

use crate::error::{Error, ErrorKind, Result};

/// Beginnings of names that S3 keeps to itself.
const RESERVED_PREFIXES: [&str; 2] = ["xn--", "sthree-"];
/// Endings of access points' aliases, and of directory and table buckets.
const RESERVED_SUFFIXES: [&str; 7] =
    ["-s3alias", "--ol-s3", "--op-s3", "--x-s3", "--xa-s3", "--table-s3", ".mrap"];

/// What `bucket` breaks of S3's rules for names, in words of what is allowed; nothing if it is
/// sound. Upper case, `_` and more than 63 characters are those of older buckets, and of other
/// stores.
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
        return Some("no IP address");
    }
    if RESERVED_PREFIXES.iter().any(|prefix| lower.starts_with(prefix))
        || RESERVED_SUFFIXES.iter().any(|suffix| lower.ends_with(suffix))
    {
        return Some("general purpose buckets by their own names");
    }
    None
}

/// # Errors
/// `ErrorKind::UnsupportedUri` for a bucket that S3 would not name so.
pub fn check_bucket(bucket: &str) -> Result<()> {
    match broken_rule(bucket) {
        None => Ok(()),
        Some(allowed) => Err(refused("the bucket's name is not supported", bucket, allowed)),
    }
}

/// # Errors
/// `ErrorKind::UnsupportedUri` for a key that could lead elsewhere.
pub fn check_key(key: &str) -> Result<()> {
    let message = "the key is not supported";
    if key.contains(char::is_control) {
        return Err(refused(message, key, "no control characters"));
    }
    if key.split('/').any(|part| part == "." || part == "..") {
        return Err(refused(message, key, "no '.' and no '..' between slashes"));
    }
    Ok(())
}

fn refused(message: &'static str, value: &str, allowed: &str) -> Error {
    let shown: String = value.chars().take(200).flat_map(char::escape_debug).collect();
    Error::new(ErrorKind::UnsupportedUri, message).with("value", shown).with("allowed", allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_named_as_s3_names_them() {
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
    fn a_key_leads_nowhere_else() {
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
