"""Memory of devices, and the ways of bytes between it and the host.

pieces   tensors on a device in columns, and windows of them
link     what a device is asked for, whichever it is
cuda     the link to a CUDA device
pinned   page-locked memory of the host
access   what the saves and restores of one checkpoint have of all that
"""
