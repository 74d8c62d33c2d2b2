//! Finds the line of a field in a YAML file, for error messages.
//!
//! Parsed YAML values have no positions, so this module finds the keys of block mappings by their
//! indentation. In a flow mapping or an alias it returns the nearest known line.

/// The line, from 1, of the innermost of `keys` that is found as a key of a block mapping.
pub fn find_line(text: &str, keys: &[&str]) -> Option<usize> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| {
        let content = line.trim_start();
        !content.is_empty() && !content.starts_with('#')
    });
    let mut found = None;
    let mut parent: Option<usize> = None;
    for key in keys {
        let mut siblings = None;
        let hit = lines
            .by_ref()
            .map(|(index, line)| (index + 1, line.len() - line.trim_start().len(), line))
            // A line at the parent's indentation ends the mapping.
            .take_while(|(_, indent, _)| parent.is_none_or(|depth| *indent > depth))
            .find(|(_, indent, line)| {
                *indent == *siblings.get_or_insert(*indent) && is_key(line, key)
            });
        let Some((number, indent, _)) = hit else { break };
        found = Some(number);
        parent = Some(indent);
    }
    found
}

fn is_key(line: &str, key: &str) -> bool {
    let content = line.trim_start();
    let name = content.split(':').next().unwrap_or(content).trim();
    name.trim_matches(['"', '\'']) == key && content.contains(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# comment\nkafka:\n  # here\n  brokers: a:1\n  properties:\n    \
                        \"sasl.password\": x\n\nbatch: {size: 3}\nmodel:\n  path: x\n";

    #[test]
    fn finds_keys_by_depth() {
        assert_eq!(find_line(TEXT, &["kafka"]), Some(2));
        assert_eq!(find_line(TEXT, &["kafka", "brokers"]), Some(4));
        assert_eq!(find_line(TEXT, &["kafka", "properties", "sasl.password"]), Some(6));
        assert_eq!(find_line(TEXT, &["model", "path"]), Some(10));
    }

    #[test]
    fn falls_back_to_the_section() {
        assert_eq!(find_line(TEXT, &["batch", "size"]), Some(8));
        assert_eq!(find_line(TEXT, &["kafka", "path"]), Some(2));
        assert_eq!(find_line(TEXT, &["none"]), None);
    }
}
