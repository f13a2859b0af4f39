"""More than one process: who has what, and how they agree."""
