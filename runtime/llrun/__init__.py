"""llrun: the device side. Runs a bundle made by llcompile on several devices together."""

__version__ = "0.1.0"
