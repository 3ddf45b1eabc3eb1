"""What one device has: its slice, weights, library and processor, checked before use."""
