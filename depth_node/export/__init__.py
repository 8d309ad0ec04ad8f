"""From a checkpoint to files the core can run: ONNX, INT8 and their card."""
