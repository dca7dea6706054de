"""Power mode, pinned clocks, throttling and over-current of a Jetson (``edgekit.power``)."""

from __future__ import annotations

from pathlib import Path

from edgekit.contracts.series import Values
from edgekit.power import NotJetson, read_machine

_ROOT = Path("/")


class Board:
    """Reads the board's state; nothing on another machine.

    Args:
        root: Where ``proc``, ``sys``, ``etc`` and ``var`` are.
    """

    name = "board"

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root

    def read(self, now_s: float) -> Values:
        """Return the readings."""
        del now_s
        machine = read_machine(self._root)
        if isinstance(machine, NotJetson):
            return {}
        pinned = {"gpu": machine.gpu.pinned, "cpu": machine.cpu_pinned}
        return {
            "power_mode_id": machine.power_mode_id,
            **{
                f"{name}_clock_pinned": None if flag is None else int(flag)
                for name, flag in pinned.items()
            },
            "throttling_alerts": len(machine.throttled),
            "over_current_events_total": machine.over_current_events,
        }
