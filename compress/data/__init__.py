"""Datasets, fixed splits, seeded batches and the calibration set."""
