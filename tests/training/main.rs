//! The code that trains and that writes ONNX graphs, with the real ONNX Runtime: the encoders, the
//! training, the graphs it leaves, and the commands that measure them.

mod ablate;
mod clip;
mod evaluate;
mod onnx;
mod train;
