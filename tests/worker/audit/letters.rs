//! Dead letters of a real worker keep the message byte for byte, whatever it is made of.

use std::time::Duration;

use fusioncap::message::{DeadLetter, RawHeader, RawRecord, RetainedParts};
use kit::bucket::{Bucket, picture, uri};
use kit::process::Configuration;
use serde_json::json;

use crate::shared_cluster;
use crate::topic::{self, Raw, Writer, record};

const PATIENCE: Duration = Duration::from_secs(60);

/// Headers that are no text, twice the same name, none, and no bytes.
pub fn strange_headers() -> Vec<RawHeader> {
    let header = |name: &[u8], value: Option<&[u8]>| RawHeader {
        name: name.to_vec(),
        value: value.map(<[u8]>::to_vec),
    };
    vec![
        header(b"caf\xe9", Some(b"\xff\x00\xfe")),
        header(b"twice", Some(b"2")),
        header(b"twice", Some(b"1")),
        header(b"null", None),
        header(b"empty", Some(b"")),
        header(b"", Some(b"without a name")),
        header("Größe".as_bytes(), Some(b"x")),
    ]
}

/// Messages that no worker can read, each with something that is easily lost.
pub fn strange_messages() -> Vec<RawRecord> {
    let headers = strange_headers();
    vec![
        RawRecord { key: None, payload: None, headers: headers.clone() },
        RawRecord { key: Some(Vec::new()), payload: Some(Vec::new()), headers: Vec::new() },
        RawRecord { key: None, payload: Some(b"\xc3\x28 no JSON".to_vec()), headers },
        RawRecord { key: Some(b"\xff\x00".to_vec()), payload: None, headers: Vec::new() },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_message_ends_the_worker_and_each_is_kept_byte_for_byte() {
    let (cluster, bucket) = (shared_cluster(), Bucket::start());
    let topics = cluster.topics(1).await;
    bucket.put("a.png", &picture(1));
    let request = json!({"uri": uri("a.png")}).to_string();
    let writer = Writer::new(&cluster);
    let mut sent = strange_messages();
    // Too large for a dead letter, with its Base64.
    let long = vec![b'x'; 900_000];
    sent.push(RawRecord { key: None, payload: Some(long), headers: strange_headers() });
    let readable = RawRecord { headers: strange_headers(), ..record(&request, &[]) };
    sent.push(readable);
    sent.push(record(&request, &[]));
    for message in &sent {
        writer.write(&topics.input, 0, message);
    }
    writer.flush();
    // Every byte arrived: names that are not UTF-8, and a missing value apart from an empty one.
    let arrived: Vec<RawRecord> =
        topic::read(&cluster, &topics.input).into_iter().map(|raw| raw.record).collect();
    assert_eq!(arrived, sent);

    let mut worker = Configuration::new("one", &cluster, &topics, &bucket).start();
    cluster.await_records(&[&topics.output], 2, PATIENCE);
    cluster.await_records(&[&topics.dead_letters], 5, PATIENCE);
    worker.signal("TERM");
    assert!(worker.wait(PATIENCE).success(), "{}", worker.log());
    assert!(!worker.log().contains("panicked"), "{}", worker.log());
    let letters: Vec<DeadLetter> =
        topic::read(&cluster, &topics.dead_letters).iter().map(letter).collect();
    assert_eq!(letters.len(), 5);
    for letter in &letters {
        let original = &sent[letter.source_offset as usize];
        assert_eq!(letter.code, "invalid_message");
        if letter.source_offset == 4 {
            assert_eq!(
                (letter.original, letter.original_record().unwrap()),
                (RetainedParts::LeftOut, None)
            );
        } else {
            assert_eq!(letter.original_record().unwrap().as_ref(), Some(original));
        }
    }
}

pub fn letter(raw: &Raw) -> DeadLetter {
    serde_json::from_slice(raw.record.payload.as_deref().unwrap()).unwrap()
}
