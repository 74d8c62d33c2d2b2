//! Any bytes as a message. What stands before a NUL byte are its headers, `name: value` lines.
#![no_main]

use fusioncap::message::{TraceContext, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let split = input.iter().position(|byte| *byte == 0);
    let (head, payload) = split.map_or((&input[..0], input), |at| (&input[..at], &input[at + 1..]));
    let headers: Vec<(String, Vec<u8>)> = String::from_utf8_lossy(head)
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
        .collect();
    let _ = TraceContext::from_headers(&headers);
    fusioncap_fuzz::check(payload, &parse(payload, &headers, &fusioncap_fuzz::source()));
});
