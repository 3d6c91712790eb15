"""What runs a model: PyTorch, ONNX Runtime or OpenVINO, each compared with the model itself before it is used."""
