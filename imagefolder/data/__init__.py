"""Data sets, transforms and the order in which images are seen."""
