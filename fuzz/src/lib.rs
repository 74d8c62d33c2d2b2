//! Shared by the targets: the position that messages come from, and the properties of everything
//! that is read from one.

use std::sync::Arc;

use fusioncap::ErrorKind;
use fusioncap::error::Result;
use fusioncap::kafka::record::RawRecord;
use fusioncap::message::{DeadLetter, FailedStage, Requests, SourcePosition};

pub fn source() -> SourcePosition {
    SourcePosition { topic: Arc::from("images.in"), partition: 3, offset: 41 }
}

/// Panics where a message was taken for what it is not, or refused so that its dead letter could
/// not be published.
pub fn check(payload: &[u8], read: &Result<Requests>) {
    match read {
        Ok(requests) => {
            let images = requests.images.len();
            assert!(images < 2 || images * payload.len() <= 64 << 20, "{images} images");
            for image in &requests.images {
                assert!(!image.id.is_empty(), "an image without an id");
                check_bucket(&image.bucket);
                check_key(&image.key);
            }
        }
        Err(error) => {
            let kind = error.kind();
            let named = matches!(kind, ErrorKind::InvalidMessage | ErrorKind::UnsupportedUri);
            assert!(named, "refused as {kind}");
            let failed = (FailedStage::Consume, 1);
            let original = RawRecord { payload: Some(payload.to_vec()), ..RawRecord::default() };
            let letter = DeadLetter::new(&source(), 0, None, error, failed, &original);
            assert!(!letter.reason.contains(char::is_control), "{}", letter.reason);
            let bytes = letter.to_json().expect("a dead letter is JSON");
            // A third more by Base64, and fields of bounded length.
            assert!(bytes.len() < payload.len() / 2 * 3 + 8192, "{} bytes", bytes.len());
        }
    }
}

/// A bucket is one label of a host's name, or several: nothing that leads to another host.
fn check_bucket(bucket: &str) {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    assert!((3..=255).contains(&bucket.len()), "bucket {bucket:?}");
    assert!(bucket.bytes().all(is_legal), "bucket {bucket:?}");
    assert!(!bucket.contains(".."), "bucket {bucket:?}");
}

/// A key names an object, not a way through folders.
fn check_key(key: &str) {
    assert!((1..=1024).contains(&key.len()), "a key of {} bytes", key.len());
    assert!(key.split('/').all(|part| part != "." && part != ".."), "key {key:?}");
    assert!(!key.contains(char::is_control), "key {key:?}");
}
