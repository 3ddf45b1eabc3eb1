"""Drives a cluster: connects its devices, feeds sequences, collects logits and figures."""
