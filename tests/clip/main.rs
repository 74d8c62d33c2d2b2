//! CLIP import, held against `transformers`: `tests/fixtures/hf-clip-tiny` has the model and what
//! it must compute. Everything runs in the real ONNX Runtime.
#![cfg(feature = "train")]

mod command_line;
mod exports;
mod operators;
mod reduced;
mod refusals;
mod source;
mod towers;
mod variants;
