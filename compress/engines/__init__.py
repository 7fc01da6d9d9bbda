"""Sessions that run one variant each, and the builder of TensorRT engines."""
