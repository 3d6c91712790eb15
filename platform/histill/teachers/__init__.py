"""Teachers: one interface to classical, network and ONNX teachers, and the response cache."""
