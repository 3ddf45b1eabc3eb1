"""`llrun ps`: what runs on this machine. Each process of llrun keeps a record of itself in a private folder."""
