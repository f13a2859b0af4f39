"""Read-only views of checkpoints; no model is needed."""
