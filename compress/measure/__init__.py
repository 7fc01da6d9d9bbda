"""Measurements of variants: latency, fidelity, and the statistics that read them."""
