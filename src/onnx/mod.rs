//! ONNX graphs: a graph builder, FusionCap's graphs built from weights, and bundles' graphs
//! rewritten in reduced precision (`variant`). Independent of training: the weights are plain
//! arrays.

pub mod decoder;
pub mod external;
pub mod graph;
pub mod initializers;
pub mod prefix;
pub mod proto;
pub mod subgraph;
pub mod variant;
