"""The builder's timings: used where they fit, kept when a build is done."""

from __future__ import annotations

from pathlib import Path

from edgekit.trt.timings import keep_timings, use_timings


class FakeTimings:
    """An ITimingCache."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytearray:
        return bytearray(self.content + b"+")


class FakeConfig:
    """An IBuilderConfig that takes timings of ``mine`` or empty ones."""

    def __init__(self, mine: bytes) -> None:
        self.mine = mine
        self.taken: FakeTimings | None = None

    def create_timing_cache(self, content: bytes) -> FakeTimings | None:
        return None if content == b"damaged" else FakeTimings(content)

    def set_timing_cache(self, cache: FakeTimings, ignore_mismatch: bool) -> bool:  # noqa: FBT001
        assert not ignore_mismatch
        if cache.content in {self.mine, b""}:
            self.taken = cache
            return True
        return False

    def get_timing_cache(self) -> FakeTimings | None:
        return self.taken


def content(path: Path, mine: bytes = b"mine") -> bytes | None:
    config = FakeConfig(mine)
    use_timings(config, path)
    return None if config.taken is None else config.taken.content


def test_timings_are_used_where_they_fit(tmp_path: Path) -> None:
    """Missing, damaged or another GPU's timings begin empty; the build goes on."""
    path = tmp_path / "timings"
    assert content(path) == b""
    for stored, used in ((b"mine", b"mine"), (b"damaged", b""), (b"another GPU's", b"")):
        path.write_bytes(stored)
        assert content(path) == used


def test_timings_are_kept(tmp_path: Path) -> None:
    config = FakeConfig(b"mine")
    path = tmp_path / "cache" / "timings"
    keep_timings(config, path)
    assert not path.exists()
    use_timings(config, path)
    keep_timings(config, path)
    assert path.read_bytes() == b"+"
