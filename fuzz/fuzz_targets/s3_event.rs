//! Event notifications: each line of the input is a record, its fields set off by tabs. Bytes
//! alone would rarely be JSON, and more rarely a notification.
#![no_main]

use fusioncap::message::parse;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    let records: Vec<Value> = text.lines().map(record).collect();
    // A record may also come alone.
    let message = match records.as_slice() {
        [alone] => alone.clone(),
        _ => json!({ "Records": records }),
    };
    let payload = message.to_string();
    let read = parse(payload.as_bytes(), &[], &fusioncap_fuzz::source());
    if let Ok(requests) = &read {
        let found = requests.images.len() + requests.skipped;
        assert_eq!(found, records.len(), "records were lost");
    }
    fusioncap_fuzz::check(payload.as_bytes(), &read);
});

/// `event name, bucket, key, ETag, version`; an empty field is absent.
fn record(line: &str) -> Value {
    let mut fields = line.split('\t');
    let mut next = |name: &str| {
        let value = fields.next().filter(|value| !value.is_empty())?;
        Some((name.to_owned(), Value::from(value)))
    };
    let mut record: Map<String, Value> = next("eventName").into_iter().collect();
    let bucket: Map<String, Value> = next("name").into_iter().collect();
    let object: Map<String, Value> =
        ["key", "eTag", "versionId"].into_iter().filter_map(&mut next).collect();
    record.insert("s3".to_owned(), json!({ "bucket": bucket, "object": object }));
    Value::Object(record)
}
