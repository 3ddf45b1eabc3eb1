"""What devices do: a program split into segments, and the layouts of its tensors."""
