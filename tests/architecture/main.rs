//! The structure of `src/` (ARCHITECTURE.md): no circles, every module above those that it uses, and
//! files that can be read in one sitting.

mod graph;

use graph::{Graph, sources};

const MAX_LINES: usize = 500;

/// The top-level modules from the ground up: each uses only modules on lower floors.
const FLOORS: [&[&str]; 11] = [
    &["error", "exit", "html", "model", "plan", "progress"],
    &["object_name", "retry", "telemetry"],
    &["config"],
    &["kafka", "registry", "runtime", "s3"],
    &["message", "reader"],
    &["bundle", "redrive", "verify"],
    &["image", "onnx", "text_tower"],
    &["encoder", "engine"],
    &["evaluate", "train", "worker"],
    &["ablate", "demo"],
    &["cli"],
];

/// Modules that never use each other, in either direction: they meet in the bundle's files alone.
const SERVING: [&str; 2] = ["worker", "engine"];
const TRAINING: [&str; 4] = ["model", "train", "onnx", "encoder"];

/// Top-level modules that only the command line uses.
const COMMANDS: [&str; 5] = ["ablate", "demo", "plan", "redrive", "verify"];

fn graph() -> Graph {
    Graph::of(&sources())
}

/// Every use of one top-level module by another that `is_wrong` says so of.
fn wrong_uses(is_wrong: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let graph = graph();
    let mut wrong = Vec::new();
    for (user, used) in &graph.uses {
        for used in used {
            if let (Some(upper), Some(lower)) = (user.first(), used.first())
                && upper != lower
                && is_wrong(upper, lower)
            {
                wrong.push(format!("{} uses {}", user.join("::"), used.join("::")));
            }
        }
    }
    wrong
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    assert_eq!(graph().circles(), Vec::<Vec<String>>::new());
}

#[test]
fn every_module_stands_above_those_that_it_uses() {
    let floor = |module: &str| FLOORS.iter().position(|floor| floor.contains(&module));
    let graph = graph();
    let modules = graph.uses.keys().filter_map(|module| module.first());
    let homeless: Vec<&String> = modules.filter(|module| floor(module).is_none()).collect();
    assert!(homeless.is_empty(), "modules without a floor: {homeless:?}");
    let upward = wrong_uses(|user, used| floor(used) >= floor(user));
    assert_eq!(upward, Vec::<String>::new());
}

#[test]
fn serving_and_training_never_use_each_other() {
    let wrong = wrong_uses(|user, used| {
        SERVING.contains(&user) && TRAINING.contains(&used)
            || TRAINING.contains(&user) && SERVING.contains(&used)
    });
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn only_the_command_line_uses_the_commands() {
    let wrong = wrong_uses(|user, used| user != "cli" && COMMANDS.contains(&used));
    assert_eq!(wrong, Vec::<String>::new());
    assert!(!wrong_uses(|user, used| user == "cli" && used == "plan").is_empty());
}

/// The commit protocol is apart from Kafka and from the rest of the worker. It knows the outcome of a
/// transaction, which is as pure.
#[test]
fn the_commit_protocol_is_pure() {
    let home = ["worker".to_owned(), "exactly_once".to_owned()];
    let outcome = ["kafka".to_owned(), "outcome".to_owned()];
    let graph = graph();
    assert!(graph.uses[&outcome[..]].is_empty(), "the outcome is not pure");
    let is_home = |used: &&Vec<String>| used.starts_with(&home) || used[..] == outcome;
    let mut files = 0;
    for (module, used) in graph.uses.iter().filter(|(module, _)| module.starts_with(&home)) {
        files += 1;
        let foreign: Vec<_> = used.iter().filter(|used| !is_home(used)).collect();
        assert!(foreign.is_empty(), "{} uses {foreign:?}", module.join("::"));
    }
    assert!(files > 3, "exactly_once was not read");
    let speaks = |source: &&graph::Source| {
        let is_pure = source.path.starts_with("worker/exactly_once")
            || source.path.starts_with("kafka/outcome.rs");
        is_pure && source.text.contains("rdkafka::")
    };
    assert_eq!(sources().iter().filter(speaks).count(), 0, "exactly_once speaks to Kafka");
}

#[test]
fn every_file_can_be_read_in_one_sitting() {
    let long: Vec<String> = sources()
        .iter()
        .map(|source| (source, source.text.lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(source, lines)| format!("{}: {lines} lines", source.path.display()))
        .collect();
    assert_eq!(long, Vec::<String>::new());
}

#[test]
fn every_file_begins_with_its_description() {
    let sources = sources();
    let silent = sources.iter().filter(|source| !source.text.starts_with("//!"));
    let silent: Vec<String> = silent.map(|source| source.path.display().to_string()).collect();
    assert_eq!(silent, Vec::<String>::new());
}

/// The scanner follows groups, re-exports, `super` and children, and skips tests.
#[test]
fn the_scanner_finds_circles() {
    let files = [
        ("a", "mod b; pub use b::B; #[cfg(test)] mod tests;"),
        ("a::b", "pub struct B; use crate::{c::{self, C}, d};"),
        ("a::tests", "use crate::c;"),
        ("c", "fn c() { super::a::B; } #[cfg(test)] mod tests { use crate::d; }"),
        ("d", "use std::fs;"),
    ];
    let modules = files.map(|(name, text)| (name.split("::").map(str::to_owned).collect(), text));
    let graph = Graph::read(modules.into_iter());
    assert_eq!(graph.circles(), [["a::b", "c"]]);
    assert_eq!(graph.uses.len(), 4);
}
