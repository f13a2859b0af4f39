"""Trackables and the saved object graph: values, keys, messages, and the walk from one to the other."""
