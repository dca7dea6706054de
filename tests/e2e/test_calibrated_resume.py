"""A calibrated build that was interrupted goes on after its last finished layer."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from factories import write_checkpoint
from test_build import digests

from edgekit.checkpoint.checkpoint import read_config
from edgekit.errors import QuantizationError, RecipeError
from edgekit.models.config import all_linears
from edgekit.pipeline import build as build_module
from edgekit.pipeline import guiding
from edgekit.pipeline.build import build
from edgekit.pipeline.kept_streams import NAME
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import load_recipe, parse_recipe
from edgekit.targets import TARGETS

pytestmark = pytest.mark.calibrate

DATA = Path(__file__).parent.parent / "data"
LAYERS = 3


class Watcher:
    """Counts the layers that are calibrated; may stop at an item.

    Args:
        stop: What the item starts with.
        kill: Stop as a power cut does, not as Ctrl-C.
    """

    def __init__(self, stop: str = "", *, kill: bool = False) -> None:
        self.layers: set[int] = set()
        self.measured = 0
        self.guided: list[str] = []
        self.advances: list[tuple[str, int]] = []
        self.stage = ""
        self.total = 0
        self._stop = stop
        self._kill = kill

    def start(self, stage: str, total: int, unit: str = "bytes") -> None:
        del unit
        self.stage, self.total = stage, total

    def advance(self, done: int, item: str = "") -> None:
        self.measured += self.stage == "sensitivity"
        if self.stage == "guidance":
            self.guided.append(item)
        if self.stage != "calibrate":
            return
        self.advances.append((item, done))
        if self._stop and item.startswith(self._stop):
            if self._kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        if match := re.match(r"layers\.(\d+)\.", item):
            self.layers.add(int(match[1]))

    def finish(self, summary: str = "") -> None:
        del summary
        if self.stage == "calibrate":
            assert sum(done for _, done in self.advances) == self.total


def request(folder: Path, name: str, algorithm: str, mixed: float = 0.0) -> BuildRequest:
    """Return the request of a quick build of the checkpoint in ``folder``."""
    recipe = parse_recipe(
        f"""schema_version = 1
name = "quick"
[quant]
algorithm = "{algorithm}"
mixed_bits_per_weight = {mixed}
linear = {{ group_size = 32 }}
[calibration]
tokens = 1024
window = 64
""",
        "quick.toml",
    )
    return BuildRequest(
        str(folder / "checkpoint"),
        TARGETS["cpu"],
        recipe,
        folder / name,
        calibration=DATA / "shakespeare_calibration.txt",
        threads=1,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a checkpoint of a few layers."""
    path = tmp_path_factory.mktemp("resume")
    write_checkpoint(path / "checkpoint", layers=LAYERS)
    return path


def test_guidance_is_kept_before_the_first_linear(folder: Path) -> None:
    """Interrupted as the first linear begins, the next try measures no guidance again."""
    again = request(folder, "early.cut", "gptq")
    with pytest.raises(KeyboardInterrupt):
        build(again, Watcher("layers.0.self_attn.q_proj: inputs"))
    assert (folder / ".early.cut.partial" / guiding.NAME).is_file()
    resumed = Watcher()
    build(again, resumed)
    assert resumed.guided == ["taken up"]


@pytest.mark.parametrize(
    ("algorithm", "mixed"), [("gptq", 5.0), ("awq", 0.0), ("awq-gptq", 0.0), ("gptq", 0.0)]
)
def test_an_interrupted_calibration_goes_on(folder: Path, algorithm: str, mixed: float) -> None:
    """Interrupted in layer 2, the next try does only that layer, and the bytes are the same."""
    name = f"{algorithm}{mixed}"
    whole = Watcher()
    build(request(folder, f"{name}.whole", algorithm, mixed), whole)
    assert whole.layers == {0, 1, 2}
    assert bool(whole.measured) == bool(mixed)
    assert bool(whole.guided) == (algorithm == "gptq")
    again = request(folder, f"{name}.cut", algorithm, mixed)
    with pytest.raises(KeyboardInterrupt):
        build(again, Watcher("layers.2.mlp.gate_proj"))
    work = folder / f".{name}.cut.partial"
    assert (work / NAME).is_file()
    assert (work / guiding.NAME).is_file() == (algorithm == "gptq")
    resumed = Watcher()
    build(again, resumed)
    assert resumed.layers == {2}
    assert not resumed.measured, "the sensitivities were noted"
    assert resumed.guided == ["taken up"] * (algorithm == "gptq"), "guidance was kept"
    assert digests(folder / f"{name}.cut") == digests(folder / f"{name}.whole")


def test_torn_streams_are_not_used(folder: Path) -> None:
    """After a crash that tore the kept streams, all layers are done again, to the same bytes."""
    build(request(folder, "torn.whole", "gptq"))
    again = request(folder, "torn.cut", "gptq")
    with pytest.raises(KeyboardInterrupt):
        build(again, Watcher("layers.2."))
    kept = folder / ".torn.cut.partial" / NAME
    kept.write_bytes(kept.read_bytes()[:-5000])
    resumed = Watcher()
    build(again, resumed)
    assert resumed.layers == {0, 1, 2}
    assert digests(folder / "torn.cut") == digests(folder / "torn.whole")


def test_other_schemes_are_not_mixed(folder: Path) -> None:
    """A try with other schemes in the same place takes up neither streams nor codes."""
    with pytest.raises(KeyboardInterrupt):
        build(request(folder, "other", "gptq"), Watcher("layers.2."))
    changed = Watcher()
    build(request(folder, "other", "gptq", 5.0), changed)
    assert changed.layers == {0, 1, 2}


def test_finished_calibration_is_not_repeated(folder: Path) -> None:
    """Interrupted in the LM head, only that is left; the streams are gone when it is done."""
    build(request(folder, "head.whole", "awq-gptq"))
    again = request(folder, "head.cut", "awq-gptq")
    with pytest.raises(KeyboardInterrupt):
        build(again, Watcher("lm_head: awq"))
    resumed = Watcher()
    build(again, resumed)
    assert not resumed.layers
    assert digests(folder / "head.cut") == digests(folder / "head.whole")


def test_a_killed_calibration_goes_on(folder: Path) -> None:
    """As after Ctrl-C, so after SIGKILL."""
    build(request(folder, "kill.whole", "gptq"))
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from test_calibrated_resume import Watcher, build, request\n"
        f"build(request(Path({str(folder)!r}), 'kill.cut', 'gptq'), "
        "Watcher('layers.1.mlp', kill=True))"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = Watcher()
    build(request(folder, "kill.cut", "gptq"), resumed)
    assert resumed.layers == {1, 2}
    assert digests(folder / "kill.cut") == digests(folder / "kill.whole")


def test_progress_moves_with_every_linear(folder: Path) -> None:
    """Each linear counts its bytes when it is done, after items that say what is being done."""
    watcher = Watcher()
    build(request(folder, "progress", "gptq"), watcher)
    for linear in ("layers.1.self_attn.k_proj", "layers.1.mlp.down_proj", "lm_head"):
        mine = [row for row in watcher.advances if row[0].startswith(linear)]
        assert (f"{linear}: gptq", 0) in mine
        assert mine[-1][0] == linear
        assert mine[-1][1] > 0
    assert ("layers.1.mlp.down_proj: inputs", 0) in watcher.advances


def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    """Without the GPU asked for, or with a recipe that calibrates nothing, nothing is begun."""
    wanted = request(folder, "device", "gptq")
    with pytest.raises(QuantizationError, match="cuda:77"):
        build(replace(wanted, device="cuda:77"))
    with pytest.raises(RecipeError, match="takes no --device"):
        build(replace(wanted, device="cuda", recipe=load_recipe("w4a16-g64"), calibration=None))
    assert not list(folder.glob(".device*"))


def test_disk_for_the_streams_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The room that kept streams take, old and new together, is checked before the work."""
    asked = []
    monkeypatch.setattr(build_module, "require_space", lambda _, size: asked.append(size))
    rounded = replace(request(folder, "space.rtn", "gptq"), recipe=load_recipe("w4a16-g64"))
    build(replace(rounded, calibration=None))
    build(request(folder, "space.gptq", "gptq"))
    build(request(folder, "space.awq", "awq"))
    streams = 1024 * 64 * 4
    model = read_config(folder / "checkpoint")[2]
    rows = [linear.out_features for linear in all_linears(model)[:-1]]
    guidance = 4 * sum(own * min(own, 256) for own in rows)
    assert asked[1] - asked[2] == 2 * streams + guidance
    assert asked[1] - asked[0] >= 2 * 2 * streams
