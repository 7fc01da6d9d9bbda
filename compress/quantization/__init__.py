"""Int8 quantization: fake-quant for training, calibration of finished graphs."""
