//! Buckets, keys and prefixes in `s3://` URIs.

use std::path::{Component, PathBuf};
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::object_name;

/// `s3://bucket/key`; the key may be empty or a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub bucket: String,
    pub key: String,
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(uri: &str) -> Result<Self> {
        let wrong = || {
            Error::new(ErrorKind::UnsupportedUri, "not an s3://bucket/key URI")
                .with_context("uri", uri)
        };
        let path = uri.strip_prefix("s3://").ok_or_else(wrong)?;
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        if bucket.is_empty() {
            return Err(wrong());
        }
        object_name::check_bucket(bucket)?;
        Ok(Self { bucket: bucket.into(), key: key.into() })
    }
}

/// The bucket of `uri`, and the prefix of all keys below it.
pub fn bucket_and_prefix(uri: &str) -> Result<(String, String)> {
    let Location { bucket, key } = uri.parse()?;
    let prefix = match key.trim_end_matches('/') {
        "" => String::new(),
        folder => format!("{folder}/"),
    };
    Ok((bucket, prefix))
}

/// The path of `key` below `prefix`. Keys are free text: one that leads out of the directory is an
/// error.
pub fn path_below(key: &str, prefix: &str) -> Result<PathBuf> {
    let path = PathBuf::from(key.strip_prefix(prefix).unwrap_or(key));
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    if !inside || path.as_os_str().is_empty() {
        return Err(Error::new(ErrorKind::Bundle, "the key is not a path below its prefix")
            .with_context("key", key));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_parsed() {
        let parse = |uri: &str| uri.parse::<Location>().map(|found| (found.bucket, found.key));
        assert_eq!(parse("s3://photos/a/b.jpg").unwrap(), ("photos".into(), "a/b.jpg".into()));
        assert_eq!(parse("s3://photos").unwrap(), ("photos".into(), String::new()));
        for wrong in ["", "s3://", "s3:///key", "https://photos/a", "photos/a", "s3://a@b/c"] {
            assert_eq!(parse(wrong).unwrap_err().kind(), ErrorKind::UnsupportedUri, "{wrong}");
        }
    }

    #[test]
    fn keys_stay_below_their_prefix() {
        assert_eq!(path_below("m/onnx/a.onnx", "m/").unwrap(), PathBuf::from("onnx/a.onnx"));
        for wrong in ["m/../../etc/passwd", "m//etc/passwd", "m/"] {
            assert_eq!(path_below(wrong, "m/").unwrap_err().kind(), ErrorKind::Bundle, "{wrong}");
        }
    }
}
