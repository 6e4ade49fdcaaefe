"""Checkpoints: the native format, the authors' files, the Hugging Face hub, and loading by name."""
