"""Checkpoints: the native format, the authors' files, and the Hugging Face hub."""
