"""Stages tell how far they are: what they count adds up to what they announced."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from factories import write_checkpoint

from edgekit.bundle.reader import open_bundle
from edgekit.pipeline.build import build
from edgekit.pipeline.fingerprint import CheckpointDigests
from edgekit.pipeline.request import BuildRequest
from edgekit.pipeline.verify import verify_bundle
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS


class Recorder:
    """A ``Progress`` that adds up each stage."""

    def __init__(self) -> None:
        self.totals: dict[str, tuple[int, str]] = {}
        self.done: Counter[str] = Counter()
        self.items: dict[str, list[str]] = {}
        self._stage = ""

    def start(self, stage: str, total: int, unit: str = "bytes") -> None:
        self._stage = stage
        self.totals[stage] = (total, unit)

    def advance(self, done: int, item: str = "") -> None:
        self.done[self._stage] += done
        self.items.setdefault(self._stage, []).append(item)

    def finish(self, summary: str = "") -> None:
        assert summary


def test_build_and_verify_count_to_the_end(tmp_path: Path) -> None:
    """The stages that last have a total, reach it, and name what they work on."""
    progress = Recorder()
    path = write_checkpoint(tmp_path / "checkpoint", tied=True)
    request = BuildRequest(
        model=str(path), target=TARGETS["orin"], recipe=load_recipe("w4a16-g64"), out=tmp_path / "b"
    )
    bundle = open_bundle(build(request, progress).path)
    verify_bundle(bundle, progress=progress)
    for stage, unit in (("check", "bytes"), ("digests", "bytes"), ("golden", "tokens")):
        total, counted = progress.totals[stage]
        assert (progress.done[stage], unit) == (total, counted)
        assert total > 0
    graphs = [f"{kind}.float{bits}.onnx" for kind in ("standard", "ort") for bits in (16, 32)]
    assert sorted(progress.items["graph"]) == sorted(graphs)
    assert progress.items["bundle"][-1] == "writing to disk"
    assert progress.done["bundle"] <= progress.totals["bundle"][0]


def test_waiting_for_digests_counts_what_is_hashed_meanwhile(tmp_path: Path) -> None:
    """The rest of the checkpoint passes through the stage that waits for its digests."""
    (tmp_path / "shard").write_bytes(bytes(64 << 20))
    progress = Recorder()
    with CheckpointDigests((tmp_path / "shard",)) as digests:
        left = digests.remaining_bytes
        (entry,) = digests.result(progress)
    assert entry.size_bytes == 64 << 20
    assert digests.remaining_bytes == 0
    assert progress.done[""] <= left
