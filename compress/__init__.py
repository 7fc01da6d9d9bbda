"""Teachers in, small int8 models and engines out, with the evidence that they are good enough."""

__version__ = "0.1.0"
