//! Messages inside CloudEvents: the first line is the version, the second says how the rest is
//! packed (`data`, `text`, `data_base64`, `binary`).
#![no_main]

use fusioncap::message::parse;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|input: &[u8]| {
    let mut lines = input.splitn(3, |byte| *byte == b'\n');
    let mut next = || lines.next().unwrap_or_default();
    let (version, packing, inner) = (next(), next(), next());
    let text = || String::from_utf8_lossy(inner).into_owned();
    let version = String::from_utf8_lossy(version).into_owned();
    let source = fusioncap_fuzz::source();
    let event = match packing {
        b"binary" => {
            let headers = [("ce_specversion".to_owned(), version.into_bytes())];
            fusioncap_fuzz::check(inner, &parse(inner, &headers, &source));
            return;
        }
        b"data_base64" => json!({ "specversion": version, "data_base64": text() }),
        b"text" => json!({ "specversion": version, "data": text() }),
        _ => {
            let data: Value = serde_json::from_slice(inner).unwrap_or_default();
            json!({ "specversion": version, "data": data })
        }
    };
    let payload = event.to_string();
    fusioncap_fuzz::check(payload.as_bytes(), &parse(payload.as_bytes(), &[], &source));
});
