"""Tensors and files: one bundle is an index and its data files."""
