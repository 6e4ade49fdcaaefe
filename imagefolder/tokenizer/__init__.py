"""Tokenizer: images to product-quantized multi-scale tokens and back."""
