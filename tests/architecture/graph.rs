//! Which file of `src/` uses which: its `use` declarations and paths, read with `syn`. A path leads
//! to the file that defines the name, through re-exports. Tests inside `src/` are left out, and so
//! are paths inside macros.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, Meta, UseTree, Visibility};

/// A file of `src/`.
pub struct Source {
    /// Relative to `src/`.
    pub path: PathBuf,
    pub text: String,
    /// Its module: `["worker", "fetch"]` for `worker/fetch/mod.rs`.
    module: Vec<String>,
}

/// Modules by their path, and the modules that each uses.
pub struct Graph {
    pub uses: BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
}

#[derive(Default)]
struct Found {
    /// Paths that the file names.
    paths: Vec<Vec<String>>,
    /// Names that it re-exports, and where they lead.
    exports: Vec<(String, Vec<String>)>,
    /// Child modules that are compiled for tests alone.
    tests: Vec<String>,
}

pub fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(&root).unwrap().to_path_buf();
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source { module: module_of(&relative), path: relative, text });
            }
        }
    }
    found.sort_by(|left, right| left.path.cmp(&right.path));
    assert!(found.len() > 10, "src/ was not read");
    found
}

fn module_of(path: &Path) -> Vec<String> {
    let path = path.with_extension("");
    let parts = path.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
    let mut module: Vec<String> = parts.collect();
    if module.last().is_some_and(|last| last == "mod") || module == ["lib"] {
        module.pop();
    }
    module
}

impl Graph {
    /// The graph of the library's files.
    pub fn of(sources: &[Source]) -> Self {
        let texts = sources.iter().filter(|source| source.path != Path::new("main.rs"));
        Self::read(texts.map(|source| (source.module.clone(), source.text.as_str())))
    }

    pub fn read<'t>(files: impl Iterator<Item = (Vec<String>, &'t str)>) -> Self {
        let mut modules: BTreeMap<Vec<String>, Found> = BTreeMap::new();
        for (module, text) in files {
            let mut found = Found::default();
            found.visit_file(&syn::parse_file(text).unwrap());
            modules.insert(module, found);
        }
        let tests: Vec<Vec<String>> = modules
            .iter()
            .flat_map(|(module, found)| found.tests.iter().map(|test| child(module, test)))
            .collect();
        modules.retain(|module, _| !tests.iter().any(|test| module.starts_with(test)));
        let mut uses = BTreeMap::new();
        for (module, found) in &modules {
            let used = found.paths.iter().filter_map(|path| resolve(&modules, module, path, 0));
            let others = used.filter(|used| used != module && !used.is_empty());
            uses.insert(module.clone(), others.collect::<BTreeSet<_>>());
        }
        Self { uses }
    }

    /// Modules that reach each other, each group in the order of its names.
    pub fn circles(&self) -> Vec<Vec<String>> {
        let reached: BTreeMap<_, _> =
            self.uses.keys().map(|module| (module, self.reachable(module))).collect();
        let mut circles = BTreeSet::new();
        for (module, reachable) in &reached {
            if !reachable.contains(*module) {
                continue;
            }
            let circle = reachable.iter().filter(|other| reached[other].contains(*module));
            circles.insert(circle.map(|other| other.join("::")).collect::<Vec<_>>());
        }
        circles.into_iter().collect()
    }

    fn reachable(&self, from: &[String]) -> BTreeSet<Vec<String>> {
        let mut seen = BTreeSet::new();
        let mut open: Vec<&Vec<String>> = self.uses[from].iter().collect();
        while let Some(module) = open.pop() {
            if seen.insert(module.clone()) {
                open.extend(&self.uses[module]);
            }
        }
        seen
    }
}

fn child(module: &[String], name: &str) -> Vec<String> {
    let mut child = module.to_vec();
    child.push(name.to_owned());
    child
}

/// The module that defines what `path`, as written in `module`, leads to; None outside the crate.
fn resolve(
    modules: &BTreeMap<Vec<String>, Found>,
    module: &[String],
    path: &[String],
    depth: usize,
) -> Option<Vec<String>> {
    let mut at = module.to_vec();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => {
            at.clear();
            rest = &path[1..];
        }
        "self" => rest = &path[1..],
        "super" => {
            while rest.first().is_some_and(|part| part == "super") {
                at.pop();
                rest = &rest[1..];
            }
        }
        first if !module.is_empty() && modules.contains_key(&child(module, first)) => {}
        _ => return None,
    }
    while let Some(next) = rest.first().map(|part| child(&at, part))
        && modules.contains_key(&next)
    {
        at = next;
        rest = &rest[1..];
    }
    let export = rest
        .first()
        .and_then(|name| modules.get(&at)?.exports.iter().find(|(exported, _)| exported == name));
    match export {
        // The bound keeps a module that re-exports its own name from looping.
        Some((_, target)) if depth < 8 => resolve(modules, &at, target, depth + 1).or(Some(at)),
        _ => Some(at),
    }
}

impl<'ast> Visit<'ast> for Found {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if item.content.is_some() {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let mut paths = Vec::new();
        flatten(&item.tree, &mut Vec::new(), &mut paths);
        if matches!(item.vis, Visibility::Inherited) {
            self.paths.extend(paths.into_iter().map(|(_, path)| path));
        } else {
            self.exports.extend(paths);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if parts.len() > 1 {
            self.paths.push(parts);
        }
        visit::visit_path(self, path);
    }
}

impl Found {
    fn visit_file(&mut self, file: &syn::File) {
        for item in &file.items {
            if let Item::Mod(module) = item
                && module.content.is_none()
                && is_for_tests(&module.attrs)
            {
                self.tests.push(module.ident.to_string());
            }
        }
        visit::visit_file(self, file);
    }
}

/// Each name that a `use` brings in, and its path.
fn flatten(tree: &UseTree, prefix: &mut Vec<String>, paths: &mut Vec<(String, Vec<String>)>) {
    let mut push = |name: String, last: Option<String>| {
        let path = prefix.iter().cloned().chain(last).collect();
        paths.push((name, path));
    };
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            flatten(&path.tree, prefix, paths);
            prefix.pop();
        }
        UseTree::Name(name) if name.ident == "self" => {
            push(prefix.last().cloned().unwrap_or_default(), None);
        }
        UseTree::Name(name) => push(name.ident.to_string(), Some(name.ident.to_string())),
        UseTree::Rename(rename) => push(rename.rename.to_string(), Some(rename.ident.to_string())),
        UseTree::Glob(_) => push("*".into(), None),
        UseTree::Group(group) => {
            group.items.iter().for_each(|tree| flatten(tree, prefix, paths));
        }
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// `cfg(test)`, and `cfg(all(test, ...))`.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let Meta::List(list) = &attribute.meta else {
            return false;
        };
        let condition = list.tokens.to_string();
        let condition = condition.replace(' ', "");
        list.path.is_ident("cfg") && (condition == "test" || condition.starts_with("all(test,"))
    })
}
