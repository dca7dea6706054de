"""An engine built while a server answers: memory first, held back while it is busy (trt-check)."""

from __future__ import annotations

import fcntl
import json
import threading
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
from trt_cases import small_bundle

from edgekit.bundle.reader import Bundle
from edgekit.cli.main import main
from edgekit.contracts.load_file import write_load
from edgekit.errors import EngineError
from edgekit.trt import beside as module_under_test
from edgekit.trt.beside import Beside, build_peak_bytes
from edgekit.trt.device_build import engine_plan, find_machine, obtain_engine
from edgekit.trt.engine import build_engine
from edgekit.trt.engine_cache import EngineCache
from edgekit.trt.holding import WAITING, Holding, Memory
from edgekit.trt.module import find_builder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_bundle(tmp_path_factory.mktemp("beside"), layers=2)


class Items:
    """A progress that keeps what the builder began."""

    def __init__(self) -> None:
        self.items: list[str] = []

    def start(self, stage: str, total: int, unit: str = "") -> None:
        del stage, total, unit

    def advance(self, done: int, item: str = "") -> None:
        del done
        self.items.append(item)

    def finish(self, summary: str = "") -> None:
        del summary


def test_a_build_is_held_back_and_goes_on(bundle: Bundle, tmp_path: Path) -> None:
    """The real builder waits as long as the server is busy, then builds the whole engine."""
    progress, asked = Items(), list[float]()

    def busy() -> bool:
        asked.append(time.monotonic())
        # Idle once the builder has been seen to wait for half a second.
        waiting = progress.items.count(WAITING)
        if waiting:
            held.append(time.monotonic())
        return not held or held[-1] - held[0] < 0.5

    held: list[float] = []
    engine = obtain_engine(
        bundle, EngineCache(tmp_path), find_machine(), progress, beside=Beside(busy)
    )
    at = progress.items.index(WAITING)
    assert engine.built
    assert engine.size_bytes > 10_000
    assert progress.items[at + 1] == progress.items[at - 1]
    assert len(progress.items) > at + 3
    assert asked[-1] - asked[0] > 0.5
    engine.release()


def test_a_server_that_stays_busy_is_left_in_peace(bundle: Bundle, tmp_path: Path) -> None:
    """Patience ends: an error, no engine and no part of one."""
    path = tmp_path / "load"
    write_load(path, busy=True)
    with pytest.raises(EngineError, match="given up: the server is busy"):
        obtain_engine(
            bundle, EngineCache(tmp_path / "e"), find_machine(), beside=Beside(path, patience_s=0.4)
        )
    assert {path.suffix for path in (tmp_path / "e").iterdir()} == {".lock"}


def test_memory_is_reserved_before_a_builder_starts(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan's peak must leave 20 % free: refused by one byte less, with the figures."""
    total, peak = 64_000_000_000, build_peak_bytes(bundle)
    free = peak + total // 5
    monkeypatch.setattr(module_under_test, "read_memory", lambda: Memory(total, free - 1))
    nothing = ("false",)
    cache, machine = EngineCache(tmp_path), find_machine()
    with pytest.raises(EngineError, match=r"must leave 12.80 GB free.*server is stopped"):
        obtain_engine(bundle, cache, machine, beside=Beside(), command=nothing)
    monkeypatch.setattr(module_under_test, "read_memory", lambda: Memory(total, free))
    with pytest.raises(EngineError, match="exit status 1"):
        obtain_engine(bundle, cache, machine, beside=Beside(), command=nothing)


def test_the_builder_gives_up_when_memory_runs_short(bundle: Bundle) -> None:
    """Told to stop after a step, the real builder stops; the error says why."""
    plan, path = engine_plan(bundle.manifest), bundle.path / bundle.graph("target").path
    short = {"load_file": None, "reserve_bytes": 1 << 60, "patience_s": None}
    holding = Holding(short, lambda _: None)
    model = onnx.load(path, load_external_data=False)
    with pytest.raises(EngineError, match="must stay free beside a server"):
        build_engine(model, path, plan, find_builder(), holding=holding)


def test_builds_beside_a_server_take_turns(bundle: Bundle, tmp_path: Path) -> None:
    """Two would each count the same free memory."""
    entered = threading.Event()

    def second() -> None:
        with Beside().turn(bundle, tmp_path):
            entered.set()

    with (tmp_path / "building.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.1)
    assert entered.wait(10)
    thread.join()


def test_the_error_of_the_callers_function_is_not_lost(bundle: Bundle, tmp_path: Path) -> None:
    def busy() -> bool:
        raise ConnectionError("the server does not answer")

    with (
        pytest.raises(ConnectionError, match="does not answer"),
        Beside(busy).turn(bundle, tmp_path),
    ):
        pass


def test_the_command_builds_beside_a_server(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--while-serving` with a load file; the file without the flag does nothing: refused."""
    path = tmp_path / "load"
    write_load(path, busy=False)
    command = ["engine", "build", str(bundle.path), "--cache", str(tmp_path), "--json"]
    options = ["--load-file", str(path)]
    code, document = invoke([*command, *options], capsys)
    assert (code, document["error"]["kind"]) == (2, "UsageError")
    code, document = invoke([*command, *options, "--while-serving"], capsys)
    assert (code, document["built"]) == (0, True)


def invoke(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[Any, dict[str, Any]]:
    with pytest.raises(SystemExit) as caught:
        main(command)
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return caught.value.code, document
