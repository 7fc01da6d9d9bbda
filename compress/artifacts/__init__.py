"""What is stored: artifacts with their manifests, runs with their records."""
