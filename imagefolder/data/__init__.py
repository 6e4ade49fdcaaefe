"""Datasets, image transforms and the order in which images are seen."""
