//! Parts of a model: the nodes that the wanted outputs depend on, with their weights.

use std::collections::HashSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use prost::Message;

use super::proto::{EXTERNAL, GraphProto, ModelProto, NodeProto, ValueInfoProto};
use crate::error::{Error, Result};

/// The key of the file name in `external_data`.
const LOCATION: &str = "location";

/// Reads the model at `path`.
///
/// # Errors
/// `ErrorKind::Config` if the file is not an ONNX model.
pub fn read(path: &Path) -> Result<ModelProto> {
    let unusable = || Error::config_at("not an ONNX model", path);
    let bytes = fs::read(path).map_err(|error| unusable().with_source(error))?;
    let model =
        ModelProto::decode(bytes.as_slice()).map_err(|error| unusable().with_source(error))?;
    if model.graph.is_none() {
        return Err(unusable());
    }
    Ok(model)
}

/// The names of the graph's inputs, without its weights.
pub fn input_names(model: &ModelProto) -> Vec<String> {
    let Some(graph) = &model.graph else { return Vec::new() };
    let weights: HashSet<&str> =
        graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let names = graph.input.iter().map(|input| input.name.clone());
    names.filter(|name| !weights.contains(name.as_str())).collect()
}

/// The names of the graph's outputs.
pub fn output_names(model: &ModelProto) -> Vec<String> {
    let outputs = model.graph.iter().flat_map(|graph| &graph.output);
    outputs.map(|output| output.name.clone()).collect()
}

/// Reduces the graph to the outputs `wanted` and their dependencies.
pub fn keep_outputs(model: &mut ModelProto, wanted: &[&str]) {
    let Some(graph) = &mut model.graph else { return };
    graph.output.retain(|output| wanted.contains(&output.name.as_str()));
    let needed = prune(graph);
    graph.input.retain(|input| needed.contains(&input.name));
}

/// Removes the nodes and weights that no output depends on; returns the names of the values that
/// remain in use.
pub fn prune(graph: &mut GraphProto) -> HashSet<String> {
    let mut needed: HashSet<String> =
        graph.output.iter().map(|output| output.name.clone()).collect();
    let mut kept = Vec::with_capacity(graph.node.len());
    // Nodes are in topological order.
    for node in graph.node.drain(..).rev() {
        if node.output.iter().any(|name| needed.contains(name)) {
            collect_inputs(&node, &mut needed);
            kept.push(node);
        }
    }
    kept.reverse();
    graph.node = kept;
    graph.initializer.retain(|tensor| needed.contains(&tensor.name));
    graph.value_info.retain(|value| needed.contains(&value.name));
    needed
}

/// Adds every name that the node reads to `names`. A subgraph reads outer values by name, and may
/// name one as its output.
fn collect_inputs(node: &NodeProto, names: &mut HashSet<String>) {
    names.extend(node.input.iter().cloned());
    for attribute in &node.attribute {
        for graph in attribute.g.as_deref().into_iter().chain(&attribute.graphs) {
            names.extend(graph.output.iter().map(|output| output.name.clone()));
            graph.node.iter().for_each(|inner| collect_inputs(inner, names));
        }
    }
}

/// Declares an input that no node reads.
pub fn add_input(model: &mut ModelProto, input: ValueInfoProto) {
    if let Some(graph) = &mut model.graph {
        graph.input.push(input);
    }
}

/// Renames the external data file to `name` in every weight. Returns the path of the old file,
/// beside the model at `path`; None if all weights are in the model.
///
/// # Errors
/// `ErrorKind::Config` if there are several files, or one outside the model's directory.
pub fn rename_data(model: &mut ModelProto, path: &Path, name: &str) -> Result<Option<PathBuf>> {
    let tensors = model.graph.iter_mut().flat_map(|graph| &mut graph.initializer);
    let entries = tensors
        .filter(|tensor| tensor.data_location == EXTERNAL)
        .flat_map(|tensor| &mut tensor.external_data)
        .filter(|entry| entry.key == LOCATION);
    let mut found: Option<String> = None;
    for entry in entries {
        let location = std::mem::replace(&mut entry.value, name.to_owned());
        if found.as_ref().is_some_and(|known| *known != location) {
            return Err(Error::config_at(
                "an ONNX export stores its weights in several files",
                path,
            )
            .with_context("allowed", "one file"));
        }
        found = Some(location);
    }
    let Some(location) = found else { return Ok(None) };
    let inside = Path::new(&location)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !inside {
        return Err(Error::config_at(
            "an ONNX export stores its weights outside its directory",
            path,
        )
        .with_context("location", location)
        .with_context("allowed", "a file beside it"));
    }
    Ok(Some(path.with_file_name(location)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::graph::{Dim, Graph};
    use crate::onnx::proto::{AttributeProto, DataType, StringStringEntryProto};

    /// Two outputs that share only `x`, and an input that only one of them reads.
    fn two_towers() -> ModelProto {
        let mut graph = Graph::new("both");
        let size = [Dim::Fixed(2)];
        let x = graph.input("x", DataType::Float, &size);
        let z = graph.input("z", DataType::Float, &size);
        let (left, right) = (graph.floats(&[2], &[1.0, 2.0]), graph.floats(&[2], &[3.0, 4.0]));
        let one = graph.add(&x, &left);
        let two = graph.mul(&x, &right);
        let three = graph.add(&two, &z);
        graph.output("one", &one, DataType::Float, &size);
        graph.output("three", &three, DataType::Float, &size);
        graph.model()
    }

    #[test]
    fn only_dependencies_of_the_output_are_kept() {
        let all = two_towers().graph.unwrap();
        let mut model = two_towers();
        assert_eq!(input_names(&model), ["x", "z"]);
        assert_eq!(output_names(&model), ["one", "three"]);
        keep_outputs(&mut model, &["one"]);
        assert_eq!(
            (input_names(&model), output_names(&model)),
            (vec!["x".into()], vec!["one".into()])
        );
        let kept = model.graph.unwrap();
        let add = all.node.iter().find(|node| node.op_type == "Add").unwrap().clone();
        let output = all.node.iter().find(|node| node.name == "output_one").unwrap().clone();
        assert_eq!(kept.node, [add, output]);
        assert_eq!(kept.initializer, all.initializer[..1]);
    }

    #[test]
    fn a_model_kept_whole_is_the_same_model() {
        let mut model = two_towers();
        keep_outputs(&mut model, &["one", "three"]);
        assert_eq!(model, two_towers());
    }

    /// Only a branch of `If` names the product.
    #[test]
    fn values_that_a_subgraph_reads_are_kept() {
        let mut graph = Graph::new("outer");
        let size = [Dim::Fixed(1)];
        let x = graph.input("x", DataType::Float, &size);
        let weight = graph.floats(&[1], &[2.0]);
        let inner = graph.mul(&x, &weight);
        let y = graph.node("If", &[&x], &[]);
        graph.output("y", &y, DataType::Float, &size);
        let mut model = graph.model();
        let branch = GraphProto {
            node: vec![NodeProto { input: vec![inner], ..NodeProto::default() }],
            ..GraphProto::default()
        };
        let nodes = &mut model.graph.as_mut().unwrap().node;
        let node = nodes.iter_mut().find(|node| node.op_type == "If").unwrap();
        node.attribute = vec![AttributeProto { g: Some(Box::new(branch)), ..Default::default() }];
        let whole = model.clone();
        keep_outputs(&mut model, &["y"]);
        assert_eq!(model, whole);
    }

    #[test]
    fn weights_outside_the_directory_are_refused() {
        let located = |locations: [&str; 2]| {
            let mut model = two_towers();
            let tensors = &mut model.graph.as_mut().unwrap().initializer;
            for (tensor, location) in tensors.iter_mut().zip(locations) {
                tensor.data_location = EXTERNAL;
                let (key, value) = (LOCATION.to_owned(), location.to_owned());
                tensor.external_data = vec![StringStringEntryProto { key, value }];
            }
            let found = rename_data(&mut model, Path::new("in/model.onnx"), "moved.data");
            found.map(|path| (path, model.graph.unwrap().initializer))
        };
        let (path, tensors) = located(["model.onnx_data"; 2]).unwrap();
        assert_eq!(path, Some(PathBuf::from("in/model.onnx_data")));
        assert!(tensors.iter().all(|tensor| tensor.external_data[0].value == "moved.data"));
        for (locations, part) in
            [(["a", "b"], "in several files"), (["../a"; 2], "outside"), (["/a"; 2], "outside")]
        {
            let error = located(locations).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
