"""The version of llrun."""

VERSION = "0.1.0"
