"""A clock that tests own."""

from __future__ import annotations


class FakeClock:
    """Moves when it is told to; may be wrong, as a device's is before it is online."""

    def __init__(self, time_ms: int = 1_784_970_508_000, *, synced: bool = True) -> None:
        self.now_ms = 1_000
        self.wall_ms = time_ms
        self.synced = synced

    def monotonic_ms(self) -> int:
        return self.now_ms

    def time_ms(self) -> int:
        return self.wall_ms

    def is_synced(self) -> bool:
        return self.synced

    def pass_ms(self, elapsed_ms: int) -> None:
        self.now_ms += elapsed_ms
        self.wall_ms += elapsed_ms
