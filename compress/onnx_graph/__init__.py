"""ONNX graphs: export from torch, Q/DQ edits, the unsigned rewrite, the linter."""
