"""Sessions in which no device can take another's place: a loss is the end of what is asked."""

from __future__ import annotations

from llrun.head.session import Session


def irreplaceable(session: Session) -> Session:
    """Have every device run its own blocks or none: each holds them all in the tests' slices."""
    everything = range(len(session.device.record.graph.blocks))
    for device in session.device.record.devices:
        own = {b for s in session.device.record.stages if s.lead == device for b in range(*s.blocks)}
        session._cluster.barred[device] = set(everything) - own
    return session
