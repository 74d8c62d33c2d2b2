//! A part of a model that others made: the nodes that lead to the wanted outputs, and the
//! weights they use.
//!
//! Whatever is kept is kept byte for byte: only what names a value is understood here, so that
//! operators, attributes and functions that this project does not know pass through unharmed.

use std::collections::HashSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use prost::Message;

use super::proto::{EXTERNAL, StringStringEntryProto, TensorProto, ValueInfoProto};
use crate::error::{Error, ErrorKind, Result};

/// The key of `external_data` with the file's name.
const LOCATION: &str = "location";

/// A model whose parts are bytes; the numbers are those of `ModelProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Model {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(string, tag = "2")]
    producer_name: String,
    #[prost(string, tag = "3")]
    producer_version: String,
    #[prost(string, tag = "4")]
    domain: String,
    #[prost(int64, tag = "5")]
    model_version: i64,
    #[prost(string, tag = "6")]
    doc_string: String,
    #[prost(message, optional, tag = "7")]
    graph: Option<RawGraph>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    opset_import: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
    #[prost(bytes = "vec", repeated, tag = "25")]
    functions: Vec<Vec<u8>>,
}

/// `GraphProto`
#[derive(Clone, PartialEq, Message)]
struct RawGraph {
    #[prost(bytes = "vec", repeated, tag = "1")]
    node: Vec<Vec<u8>>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(bytes = "vec", repeated, tag = "5")]
    initializer: Vec<Vec<u8>>,
    #[prost(string, tag = "10")]
    doc_string: String,
    #[prost(bytes = "vec", repeated, tag = "11")]
    input: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "12")]
    output: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "13")]
    value_info: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "14")]
    quantization_annotation: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "15")]
    sparse_initializer: Vec<Vec<u8>>,
}

/// What of a `NodeProto` names values, those that its inner graphs take from outside included.
#[derive(Clone, PartialEq, Message)]
struct NodeNames {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<AttributeGraphs>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeGraphs {
    #[prost(message, optional, tag = "6")]
    g: Option<InnerGraph>,
    #[prost(message, repeated, tag = "11")]
    graphs: Vec<InnerGraph>,
}

#[derive(Clone, PartialEq, Message)]
struct InnerGraph {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeNames>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueName>,
}

/// The name in a `ValueInfoProto`.
#[derive(Clone, PartialEq, Message)]
struct ValueName {
    #[prost(string, tag = "1")]
    name: String,
}

/// The name in a `TensorProto`.
#[derive(Clone, PartialEq, Message)]
struct TensorName {
    #[prost(string, tag = "8")]
    name: String,
}

impl NodeNames {
    /// Adds every name that the node reads to `names`.
    fn reads(&self, names: &mut HashSet<String>) {
        names.extend(self.input.iter().cloned());
        let inner = self
            .attribute
            .iter()
            .flat_map(|attribute| attribute.g.iter().chain(attribute.graphs.iter()));
        for graph in inner {
            names.extend(graph.output.iter().map(|output| output.name.clone()));
            for node in &graph.node {
                node.reads(names);
            }
        }
    }
}

impl Model {
    /// Reads the model at `path`.
    ///
    /// # Errors
    /// `ErrorKind::Config` if there is no ONNX model in the file.
    pub fn read(path: &Path) -> Result<Self> {
        let unusable = || malformed("no ONNX model", path);
        let bytes = fs::read(path).map_err(|error| unusable().because(error))?;
        let model = Self::decode(bytes.as_slice()).map_err(|error| unusable().because(error))?;
        if model.graph.is_none() {
            return Err(unusable());
        }
        Ok(model)
    }

    /// The names of the graph's inputs, weights left out.
    pub fn inputs(&self) -> Vec<String> {
        let Some(graph) = &self.graph else { return Vec::new() };
        let weights: HashSet<String> =
            graph.initializer.iter().map(|raw| tensor_name(raw)).collect();
        let names = graph.input.iter().map(|raw| value_name(raw));
        names.filter(|name| !weights.contains(name)).collect()
    }

    /// The names of the graph's outputs.
    pub fn outputs(&self) -> Vec<String> {
        let outputs = self.graph.iter().flat_map(|graph| &graph.output);
        outputs.map(|raw| value_name(raw)).collect()
    }

    /// Leaves out what does not lead to one of the `wanted` outputs.
    pub fn keep(&mut self, wanted: &[&str]) {
        let Some(graph) = &mut self.graph else { return };
        let mut needed: HashSet<String> = wanted.iter().map(|name| name.to_string()).collect();
        graph.output.retain(|raw| needed.contains(&value_name(raw)));
        // A node stands behind all that it reads.
        let mut kept: Vec<Vec<u8>> = Vec::new();
        for raw in graph.node.drain(..).rev() {
            let names = NodeNames::decode(raw.as_slice()).unwrap_or_default();
            if names.output.iter().any(|name| needed.contains(name)) {
                names.reads(&mut needed);
                kept.push(raw);
            }
        }
        kept.reverse();
        graph.node = kept;
        graph.initializer.retain(|raw| needed.contains(&tensor_name(raw)));
        graph.input.retain(|raw| needed.contains(&value_name(raw)));
        graph.value_info.retain(|raw| needed.contains(&value_name(raw)));
    }

    /// Declares an input that nothing reads.
    pub fn add_input(&mut self, input: &ValueInfoProto) {
        if let Some(graph) = &mut self.graph {
            graph.input.push(input.encode_to_vec());
        }
    }

    /// Makes every weight that lies in another file lie in `name`, and returns the file it lay
    /// in, beside the model at `path`; nothing if all weights are in the model.
    ///
    /// # Errors
    /// `ErrorKind::Config` if they lie in several files, or not beside the model.
    pub fn move_data(&mut self, path: &Path, name: &str) -> Result<Option<PathBuf>> {
        let Some(graph) = &mut self.graph else { return Ok(None) };
        let mut found: Option<String> = None;
        for raw in &mut graph.initializer {
            let mut tensor = TensorProto::decode(raw.as_slice())
                .map_err(|error| malformed("no ONNX model", path).because(error))?;
            if tensor.data_location != EXTERNAL {
                continue;
            }
            for entry in tensor.external_data.iter_mut().filter(|entry| entry.key == LOCATION) {
                let location = std::mem::replace(&mut entry.value, name.to_owned());
                if found.as_ref().is_some_and(|known| *known != location) {
                    return Err(malformed("an ONNX export keeps its weights in many files", path)
                        .with("allowed", "one file"));
                }
                found = Some(location);
            }
            *raw = tensor.encode_to_vec();
        }
        let Some(location) = found else { return Ok(None) };
        let inside = Path::new(&location)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !inside {
            return Err(malformed("an ONNX export keeps its weights elsewhere", path)
                .with("location", location)
                .with("allowed", "a file beside it"));
        }
        Ok(Some(path.with_file_name(location)))
    }
}

fn value_name(raw: &[u8]) -> String {
    ValueName::decode(raw).unwrap_or_default().name
}

fn tensor_name(raw: &[u8]) -> String {
    TensorName::decode(raw).unwrap_or_default().name
}

fn malformed(message: &'static str, path: &Path) -> Error {
    Error::new(ErrorKind::Config, message).with("path", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::graph::{Dim, Graph};
    use crate::onnx::proto::{DataType, ModelProto};

    /// Two outputs that share `x` and nothing else, and an input that only one of them reads.
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

    fn decoded(model: &Model) -> ModelProto {
        ModelProto::decode(model.encode_to_vec().as_slice()).unwrap()
    }

    #[test]
    fn only_what_leads_to_the_output_is_kept() {
        let whole = two_towers();
        let mut model = Model::decode(whole.encode_to_vec().as_slice()).unwrap();
        assert_eq!(
            (model.inputs(), model.outputs()),
            (vec!["x".to_owned(), "z".to_owned()], vec!["one".to_owned(), "three".to_owned()],)
        );
        model.keep(&["one"]);
        let (kept, all) = (decoded(&model).graph.unwrap(), whole.graph.unwrap());
        assert_eq!((model.inputs(), model.outputs()), (vec!["x".into()], vec!["one".into()]));
        let of_one = |op: &str| all.node.iter().find(|node| node.op_type == op).unwrap().clone();
        let named = |name: &str| all.node.iter().find(|node| node.name == name).unwrap().clone();
        assert_eq!(kept.node, [of_one("Add"), named("output_one")]);
        assert_eq!(kept.initializer, all.initializer[..1]);
    }

    #[test]
    fn a_model_kept_whole_is_the_same_model() {
        let whole = two_towers();
        let mut model = Model::decode(whole.encode_to_vec().as_slice()).unwrap();
        model.keep(&["one", "three"]);
        assert_eq!(decoded(&model), whole);
    }

    #[test]
    fn weights_elsewhere_are_refused() {
        let located = |locations: [&str; 2]| {
            let mut whole = two_towers();
            let tensors = &mut whole.graph.as_mut().unwrap().initializer;
            for (tensor, location) in tensors.iter_mut().zip(locations) {
                tensor.data_location = EXTERNAL;
                let (key, value) = (LOCATION.to_owned(), location.to_owned());
                tensor.external_data = vec![StringStringEntryProto { key, value }];
            }
            let mut model = Model::decode(whole.encode_to_vec().as_slice()).unwrap();
            let found = model.move_data(Path::new("in/model.onnx"), "moved.data");
            found.map(|path| (path, decoded(&model).graph.unwrap().initializer))
        };
        let (path, tensors) = located(["model.onnx_data"; 2]).unwrap();
        assert_eq!(path, Some(PathBuf::from("in/model.onnx_data")));
        assert!(tensors.iter().all(|tensor| tensor.external_data[0].value == "moved.data"));
        for (locations, part) in
            [(["a", "b"], "in many files"), (["../a"; 2], "elsewhere"), (["/a"; 2], "elsewhere")]
        {
            let error = located(locations).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
