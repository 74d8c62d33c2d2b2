//! Progressive JPEGs with a chosen number of scans. A scan is a few bytes, and each makes the
//! decoder visit all blocks of the image again.

/// A grey JPEG of `edge x edge` pixels: one scan for the mean of each block, and `scans` more (at
/// most 882), each of which refines one bit of one coefficient.
pub fn jpeg(edge: u16, scans: usize) -> Vec<u8> {
    let blocks = usize::from(edge).div_ceil(8).pow(2);
    let mut bytes = vec![0xff, 0xd8];
    let mut table = vec![0];
    table.extend([1; 64]);
    segment(&mut bytes, 0xdb, &table);
    let [high, low] = edge.to_be_bytes();
    segment(&mut bytes, 0xc2, &[8, high, low, high, low, 1, 1, 0x11, 0]);
    // Each table has one code, the bit 0: no difference, and a run of 2^14 or more blocks.
    for (class, symbol) in [(0x00, 0x00), (0x10, 0xe0)] {
        let mut lengths = [0; 16];
        lengths[0] = 1;
        segment(&mut bytes, 0xc4, &[&[class], &lengths[..], &[symbol]].concat());
    }
    segment(&mut bytes, 0xda, &[1, 1, 0, 0, 0, 0]);
    bytes.extend(vec![0; blocks.div_ceil(8)]);
    let coefficients = (1..=63).flat_map(|k| (0..=13_u8).rev().map(move |bit| (k, bit)));
    for (k, bit) in coefficients.take(scans) {
        let refined = if bit == 13 { 0 } else { bit + 1 };
        segment(&mut bytes, 0xda, &[1, 1, 0, k, k, refined << 4 | bit]);
        bytes.extend(runs(blocks));
    }
    bytes.extend([0xff, 0xd9]);
    bytes
}

/// Runs of empty blocks, 15 bits each: the code, then the lower 14 bits of the run's length.
fn runs(mut blocks: usize) -> Vec<u8> {
    let mut bits = Vec::new();
    while blocks > 0 {
        let run = blocks.clamp(1 << 14, (1 << 15) - 1);
        bits.push(0);
        bits.extend((0..14).rev().map(|bit| (run >> bit & 1) as u8));
        blocks = blocks.saturating_sub(run);
    }
    let mut bytes = Vec::new();
    for eight in bits.chunks(8) {
        // The standard pads with ones.
        let byte = (0..8).fold(0, |byte, at| byte << 1 | eight.get(at).copied().unwrap_or(1));
        bytes.push(byte);
        if byte == 0xff {
            bytes.push(0);
        }
    }
    bytes
}

fn segment(bytes: &mut Vec<u8>, marker: u8, content: &[u8]) {
    bytes.extend([0xff, marker]);
    bytes.extend(u16::try_from(content.len() + 2).unwrap().to_be_bytes());
    bytes.extend(content);
}
