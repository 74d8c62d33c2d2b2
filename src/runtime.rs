//! ONNX Runtime: the shared library found and loaded once, and sessions built as configured.
