"""The report document, its gates, and its tables."""
