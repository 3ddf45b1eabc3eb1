"""Serves a head: listens, and runs its part of every session."""
