"""Folded autoregressive generator: next-scale prediction of all branches at once."""
