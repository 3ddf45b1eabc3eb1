"""Compile one language model for several small, unequal devices.

Importing any part of the compiler comes through here first, so here, before a library can be imported, their
telemetry is switched off. It is the only work that an import does.
"""

from llcompile import telemetry

telemetry.switch_off()
