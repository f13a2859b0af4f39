"""The checkpoints of a directory: what is known of them, what may be kept, what goes, and waiting for new ones."""
