"""Tokens in, tokens out: conversations on a session, sampling, text to tokens and back."""
