"""Training frameworks: each module needs the package that it is named after, and is imported for itself alone."""
