"""What a person touches: the terminal, measuring, every device on one machine."""
