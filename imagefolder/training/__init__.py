"""Training: one task per model, on one loop."""
