//! CLIP import, compared with `transformers`: `tests/fixtures/hf-clip-tiny` has a model and the
//! expected outputs. Needs ONNX Runtime.

mod command_line;
mod exports;
mod operators;
mod reduced;
mod refusals;
mod source;
mod towers;
mod variants;
