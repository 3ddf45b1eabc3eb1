"""The types that cross stages: frozen dataclasses, their printer, their checker. No I/O, no third-party imports."""
