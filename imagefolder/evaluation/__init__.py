"""Evaluation: feature extractors, metrics through torch-fidelity, and the protocols that give numbers their names."""
