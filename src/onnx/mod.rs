//! ONNX graphs written from weights: a builder over the format's own messages, and FusionCap's
//! parts written with it; and bundles' graphs rewritten in less precise arithmetic (`variant`).
//! Knows nothing of training; `train` hands it plain arrays.

pub mod decoder;
pub mod external;
pub mod graph;
pub mod initializers;
pub mod prefix;
pub mod proto;
pub mod subgraph;
pub mod variant;
