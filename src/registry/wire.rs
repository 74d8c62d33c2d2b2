//! Confluent's wire format: a magic byte of zero, the schema's id in four bytes, big-endian, then the
//! record. JSON never begins with a zero byte, so the first byte shows whether a payload is framed.

const MAGIC: u8 = 0;
const PREFIX: usize = 5;

/// The schema's id and the record behind it; None where the payload is not framed.
pub fn split(payload: &[u8]) -> Option<(u32, &[u8])> {
    let (prefix, record) = payload.split_at_checked(PREFIX)?;
    let &[MAGIC, a, b, c, d] = prefix else {
        return None;
    };
    Some((u32::from_be_bytes([a, b, c, d]), record))
}

/// Frames a record.
pub fn join(id: u32, record: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(PREFIX.saturating_add(record.len()));
    payload.push(MAGIC);
    payload.extend_from_slice(&id.to_be_bytes());
    payload.extend_from_slice(record);
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_framed_record_splits_again() {
        let payload = join(0x0102_0304, b"x");
        assert_eq!(payload, [0, 1, 2, 3, 4, b'x']);
        assert_eq!(split(&payload), Some((0x0102_0304, &b"x"[..])));
    }

    #[test]
    fn other_payloads_are_not_framed() {
        for payload in [&b""[..], b"\0", b"\0\0\0\x01", b"{\"uri\": 1}", b"\x01\0\0\0\x01x"] {
            assert_eq!(split(payload), None, "{payload:?}");
        }
    }
}
