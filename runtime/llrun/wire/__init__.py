"""Bytes between devices: protocol, transport, handshakes, tensor frames, pulse."""
