"""Tasks: what a model learns from a batch, and what its decisions are scored against."""
