//! Who may use whom (ARCHITECTURE.md), and how long a file may grow: held by reading `src/`.

use std::fs;
use std::path::{Path, PathBuf};

const LONGEST: usize = 500;

/// Rooms that never see each other, in either direction.
const SERVING: [&str; 2] = ["worker", "engine"];
const TRAINING: [&str; 4] = ["model", "train", "onnx", "encoder"];
/// What every room may use; it uses no room itself.
const COMMON: [&str; 11] = [
    "bundle",
    "config",
    "error",
    "html",
    "image",
    "registry",
    "retry",
    "runtime",
    "s3",
    "telemetry",
    "text_tower",
];

struct Source {
    path: PathBuf,
    /// The top-level module that the file belongs to.
    room: String,
    text: String,
}

impl Source {
    /// Lines with code on them, from 1, comments cut off.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or(line)))
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let relative = path.strip_prefix(&root).unwrap().to_path_buf();
            let first = relative.components().next().unwrap().as_os_str().to_string_lossy();
            let room = first.trim_end_matches(".rs").to_owned();
            found.push(Source { text: fs::read_to_string(&path).unwrap(), path: relative, room });
        }
    }
    found.sort_by(|left, right| left.path.cmp(&right.path));
    assert!(found.len() > 10, "src/ was not read");
    found
}

/// Top-level modules that a piece of code names: `crate::worker::x`, and the members of
/// `use crate::{worker, image::x}`.
fn named_rooms(text: &str) -> Vec<(usize, String)> {
    const PREFIX: &str = "crate::";
    let mut rooms = Vec::new();
    for (position, _) in text.match_indices(PREFIX) {
        let line = text[..position].lines().count().max(1);
        let rest = &text[position + PREFIX.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            rooms.push((line, first_word(rest)));
            continue;
        };
        rooms.extend(members(group).into_iter().map(|room| (line, room)));
    }
    rooms
}

/// The first word of each member of a brace group, its inner groups left out.
fn members(group: &str) -> Vec<String> {
    let mut depth = 0_usize;
    let mut top_level = String::new();
    for character in group.chars() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            _ if depth == 0 => top_level.push(character),
            _ => {}
        }
    }
    let words = top_level.split(',').map(|member| first_word(member.trim()));
    words.filter(|word| !word.is_empty()).collect()
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// Every `file:line room` in which a file of `from` names a room of `to`.
fn uses(from: &[&str], to: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| from.contains(&source.room.as_str())) {
        let code: Vec<&str> = source.code().map(|(_, line)| line).collect();
        for (line, room) in named_rooms(&code.join("\n")) {
            if to.contains(&room.as_str()) {
                found.push(format!("{}:{line} uses {room}", source.path.display()));
            }
        }
    }
    found
}

#[test]
fn serving_and_training_never_see_each_other() {
    assert_eq!(uses(&SERVING, &TRAINING), Vec::<String>::new());
    assert_eq!(uses(&TRAINING, &SERVING), Vec::<String>::new());
}

#[test]
fn work_flows_one_way() {
    assert_eq!(uses(&["engine"], &["worker", "evaluate"]), Vec::<String>::new());
    assert_eq!(uses(&["worker"], &["evaluate"]), Vec::<String>::new());
    assert_eq!(uses(&["evaluate"], &["worker"]), Vec::<String>::new());
    assert_eq!(uses(&["evaluate"], &TRAINING), Vec::<String>::new());
    assert_eq!(uses(&["model", "onnx"], &["train", "encoder"]), Vec::<String>::new());
    assert_eq!(uses(&["encoder"], &["model", "train"]), Vec::<String>::new());
}

/// The rooms beside the worker read its topics by a few of its modules, and see nothing that runs.
#[test]
fn the_auditors_use_messages_and_clients_alone() {
    let auditors = ["reader", "verify", "redrive"];
    let rooms: Vec<&str> = SERVING
        .iter()
        .chain(&TRAINING)
        .chain(&COMMON)
        .copied()
        .chain(["demo", "evaluate"])
        .collect();
    assert_eq!(uses(&rooms, &auditors), Vec::<String>::new());
    assert_eq!(uses(&["reader"], &["verify", "redrive"]), Vec::<String>::new());
    assert_eq!(uses(&["verify"], &["redrive"]), Vec::<String>::new());
    assert_eq!(uses(&["redrive"], &["verify"]), Vec::<String>::new());
    let others: Vec<&str> = TRAINING.into_iter().chain(["engine", "demo", "evaluate"]).collect();
    assert_eq!(uses(&auditors, &others), Vec::<String>::new());
    let allowed = ["message", "headers", "client", "producer"];
    let mut found = 0;
    for source in sources().iter().filter(|source| auditors.contains(&source.room.as_str())) {
        let code: Vec<&str> = source.code().map(|(_, line)| line).collect();
        let text = code.join("\n");
        for (position, prefix) in text.match_indices("crate::worker::") {
            let rest = &text[position + prefix.len()..];
            let modules = match rest.strip_prefix('{') {
                Some(group) => members(group),
                None => vec![first_word(rest)],
            };
            found += modules.len();
            for module in modules {
                let file = source.path.display();
                assert!(allowed.contains(&module.as_str()), "{file} uses worker::{module}");
            }
        }
    }
    assert!(found > 5, "the uses were not read");
}

/// `ablate` trains and runs what it trained: the one room that sees both sides, and nothing but
/// the command line sees it.
#[test]
fn only_the_command_line_compares() {
    let rooms: Vec<&str> =
        SERVING.iter().chain(&TRAINING).copied().chain(["demo", "evaluate"]).collect();
    assert_eq!(uses(&rooms, &["ablate"]), Vec::<String>::new());
    assert_eq!(uses(&["ablate"], &["worker"]), Vec::<String>::new());
}

/// `plan` is arithmetic: it rests on nothing, and only the command line asks it.
#[test]
fn plans_are_made_on_paper() {
    let others = ["ablate", "demo", "evaluate", "reader", "redrive", "verify"];
    let rooms: Vec<&str> = SERVING.iter().chain(&TRAINING).chain(&COMMON).copied().collect();
    let rooms: Vec<&str> = rooms.into_iter().chain(others).collect();
    assert_eq!(uses(&["plan"], &rooms), Vec::<String>::new());
    assert_eq!(uses(&rooms, &["plan"]), Vec::<String>::new());
    assert!(!uses(&["cli"], &["plan"]).is_empty(), "the uses were not read");
}

#[test]
fn the_common_ground_rests_on_nothing() {
    let others = ["ablate", "cli", "demo", "evaluate", "reader", "redrive", "verify"];
    let rooms: Vec<&str> = SERVING.iter().chain(&TRAINING).copied().chain(others).collect();
    assert_eq!(uses(&COMMON, &rooms), Vec::<String>::new());
}

#[test]
fn only_the_command_line_starts_from_the_command_line() {
    let rooms: Vec<&str> =
        SERVING.iter().chain(&TRAINING).chain(&COMMON).copied().chain(["demo"]).collect();
    assert_eq!(uses(&rooms, &["cli"]), Vec::<String>::new());
}

#[test]
fn every_file_can_be_read_in_one_sitting() {
    let long: Vec<String> = sources()
        .iter()
        .map(|source| (source, source.text.lines().count()))
        .filter(|(_, lines)| *lines > LONGEST)
        .map(|(source, lines)| format!("{}: {lines} lines", source.path.display()))
        .collect();
    assert_eq!(long, Vec::<String>::new());
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<PathBuf> = sources()
        .into_iter()
        .filter(|source| !source.text.starts_with("//!"))
        .map(|source| source.path)
        .collect();
    assert_eq!(silent, Vec::<PathBuf>::new());
}

#[test]
fn the_check_sees_what_it_looks_for() {
    let text =
        "use crate::{\n    engine::{Engine, model},\n    worker,\n};\nlet x = crate::train::y();";
    let rooms: Vec<String> = named_rooms(text).into_iter().map(|(_, room)| room).collect();
    assert_eq!(rooms, ["engine", "worker", "train"]);
}
