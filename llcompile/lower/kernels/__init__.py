"""Kernels: one description each, as TVMScript; what differs between instruction sets is in `isa`."""
