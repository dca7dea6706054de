"""A model takes another's place: no request fails, and each is answered in full."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve_cases import NAME, Running, renamed, running, settle

from device.agent import memory
from device.agent.memory import Memory
from device.api.settings import Settings

OTHER = "edgekit-r1-next"
SUMS = [(58, 67), (12, 34), (70, 25), (31, 44)]


@pytest.fixture(scope="module")
def bundles(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two bundles of the example; the second has another name."""
    root = tmp_path_factory.mktemp("swap")
    return bundle, renamed(bundle, root / "other", OTHER)


@pytest.fixture
def server(bundles: tuple[Path, Path], tmp_path: Path) -> Iterator[Running]:
    with running(bundles[0], log=str(tmp_path / "log")) as found:
        yield found
        assert found.models.current is not None
        settle(found.models.current.service)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the machine have no memory for a second model."""
    monkeypatch.setattr(memory, "read_memory", lambda: Memory(1 << 34, 1 << 30))


class Client:
    """Streams sums, one after another, until it is told to stop.

    Attributes:
        answered: Questions answered as they should be.
        wrong: What else came.
        models: Names that answered.
    """

    def __init__(self, address: str, question: tuple[int, int]) -> None:
        self._address, self._sum = address, question
        self._stop = threading.Event()
        self.answered, self.wrong, self.models = 0, list[str](), set[str]()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        a, b = self._sum
        with httpx.Client(base_url=self._address, timeout=60) as client:
            while not self._stop.is_set():
                (listed,) = client.get("/v1/models").json()["data"]
                body = {
                    "model": listed["id"],
                    "messages": [{"role": "user", "content": f"What is {a} + {b}?"}],
                    "temperature": 0,
                    "stream": True,
                }
                with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                    self._judge(answer.status_code, list(answer.iter_lines()))

    def _judge(self, status: int, lines: list[str]) -> None:
        text, reasons = "", []
        events = [line.removeprefix("data: ") for line in lines if line]
        for event in events[:-1] if status == 200 else []:
            chunk = json.loads(event)
            for choice in chunk.get("choices", []):
                text += choice["delta"].get("content") or ""
                reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
            self.models |= {chunk.get("model", "")}
        a, b = self._sum
        if status == 200 and reasons == ["stop"] and text == f"{a} + {b} = {a + b}":
            self.answered += 1
        else:
            self.wrong.append(f"{status}: {lines[-1:]}: {text}")


def swap_under_load(server: Running, bundles: tuple[Path, Path], swaps: int) -> list[Client]:
    """Change models to and fro while four clients stream; returns the clients."""
    clients = [Client(server.address, question) for question in SUMS]
    try:
        time.sleep(0.3)
        for number in range(swaps):
            assert server.swap(bundles[(number + 1) % 2]) in {"beside", "in_turn"}
    finally:
        for client in clients:
            client.stop()
    return clients


def check(clients: list[Client], least: int) -> None:
    assert [client.wrong for client in clients] == [[]] * len(clients)
    assert min(client.answered for client in clients) >= least
    assert set.union(*(client.models for client in clients)) == {NAME, OTHER}


def test_fifty_swaps_beside(server: Running, bundles: tuple[Path, Path]) -> None:
    """Loaded beside the old one: four streaming clients get every answer; memory does not grow."""
    check(swap_under_load(server, bundles, 10), 5)
    before = resident_mib()
    check(swap_under_load(server, bundles, 50), 25)
    assert resident_mib() < before + 60
    assert sum(thread.name == "engine" for thread in threading.enumerate()) == 1
    text = httpx.get(f"{server.address}/metrics").text
    assert 'edgekit_model_swap_total{outcome="beside"} 60.0' in text
    assert f'edgekit_model_info{{digest="{digest(server)}",model_name="{NAME}"}} 1.0' in text
    assert text.count("edgekit_model_info{") == 1


def test_fifty_swaps_in_turn(
    server: Running, bundles: tuple[Path, Path], tmp_path: Path, no_memory: None
) -> None:
    """Without memory for two, requests wait while one goes and the other comes; none fails."""
    del no_memory
    check(swap_under_load(server, bundles, 50), 25)
    assert 'outcome="in_turn"} 50.0' in httpx.get(f"{server.address}/metrics").text
    logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    (why,) = {line["why"] for line in logged if line["event"] == "model_swap"}
    assert why == "the model needs 280.60 MB, 0 B are free after the reserve"
    answers = [line for line in logged if line["event"] == "request"]
    assert {line["status"] for line in answers} == {200}


def test_names_while_it_drains_and_after(bundles: tuple[Path, Path]) -> None:
    """The old name is accepted for `drain_s`, answered by the new model; then it is unknown."""
    with running(bundles[0], Settings(drain_s=2.0)) as server:
        assert server.swap(bundles[1]) == "beside"
        answer = ask(server, NAME)
        assert (answer.status_code, answer.json()["model"]) == (200, OTHER)
        assert ask(server, OTHER).status_code == 200
        time.sleep(2.1)
        assert ask(server, NAME).json()["error"]["code"] == "model_not_found"
        assert ask(server, OTHER).status_code == 200


def test_a_stream_ends_where_it_began(server: Running, bundles: tuple[Path, Path]) -> None:
    """The old model ends what it has begun while the new one answers; then it is gone."""
    body = {"model": NAME, "prompt": "To be", "temperature": 0, "max_tokens": 400, "stream": True}
    with httpx.stream("POST", f"{server.address}/v1/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        first = next(lines)
        swap = threading.Thread(target=server.swap, args=(bundles[1],))
        swap.start()
        while httpx.get(f"{server.address}/readyz").json()["draining"] != NAME:
            time.sleep(0.01)
        assert ask(server, OTHER).json()["model"] == OTHER
        rest = [line for line in lines if line]
    swap.join(60)
    models = {json.loads(line.removeprefix("data: "))["model"] for line in [first, *rest[:-1]]}
    assert (models, rest[-1]) == ({NAME}, "data: [DONE]")
    ready = httpx.get(f"{server.address}/readyz").json()
    assert (ready["state"], ready["model"], ready["draining"]) == ("serving", OTHER, None)


def test_what_is_not_done_in_time_is_told_so(bundles: tuple[Path, Path]) -> None:
    """A stream that outlasts `drain_s` ends with an error, never as if it were complete."""
    with running(bundles[0], Settings(drain_s=0.01)) as server:
        body = {"model": NAME, "prompt": "To be", "max_tokens": 400, "stream": True}
        address = f"{server.address}/v1/completions"
        with httpx.stream("POST", address, json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            assert server.swap(bundles[1]) == "beside"
            last = [line for line in lines if line][-1]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["code"] == "engine_stopped"


@pytest.mark.parametrize("way", ["beside", "in_turn"])
def test_a_bundle_that_does_not_load(
    server: Running,
    bundles: tuple[Path, Path],
    way: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Missing, damaged, or refused by the engine: the old model serves; log and counter say so."""
    if way == "in_turn":
        monkeypatch.setattr(memory, "read_memory", lambda: Memory(1 << 34, 1 << 30))
    assert server.swap(tmp_path / "nothing") == "failed"
    damaged = renamed(bundles[0], tmp_path / "damaged", "damaged")
    manifest = (damaged / "manifest.json").read_bytes()
    (damaged / "manifest.json").write_bytes(manifest.replace(b"damaged", b"harmful"))
    assert server.swap(damaged) == "failed"
    refused = renamed(bundles[0], tmp_path / "refused", "refused")
    for graph in refused.glob("*.onnx"):
        data = graph.read_bytes()
        graph.unlink()
        graph.write_bytes(bytes(len(data)))
    assert server.swap(refused) == "failed"
    answer = ask(server, NAME).json()
    assert answer["choices"][0]["message"]["content"] == "58 + 67 = 125"
    assert 'outcome="failed"} 3.0' in httpx.get(f"{server.address}/metrics").text
    logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    failed = [line for line in logged if line["event"] == "model_failed"]
    assert [line["error"] for line in failed][:2] == ["BundleError", "DigestMismatchError"]
    assert len([line for line in logged if line["event"] == "model_restore"]) == (way == "in_turn")


def test_the_same_bundle_is_let_be(server: Running, bundles: tuple[Path, Path]) -> None:
    """Nothing is loaded, nothing counted."""
    assert server.swap(bundles[0]) == "unchanged"
    assert "model_swap_total{" not in httpx.get(f"{server.address}/metrics").text


def test_who_waits_for_a_model_is_bounded_in_number_and_time(
    bundles: tuple[Path, Path], no_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While models change in turn: 504 at the deadline, 429 beyond the queue, never 500 or 503."""
    del no_memory
    from device.agent import loading

    release, own = threading.Event(), loading.load_model

    def slow(*arguments: Any) -> Any:
        assert release.wait(30)
        return own(*arguments)

    with running(bundles[0], Settings(queue_limit=1, timeout_s=1.0)) as server:
        monkeypatch.setattr(loading, "load_model", slow)
        swap = threading.Thread(target=server.swap, args=(bundles[1],))
        swap.start()
        while httpx.get(f"{server.address}/readyz").json()["model"] is not None:
            time.sleep(0.01)
        answers: list[httpx.Response] = []
        waiting = threading.Thread(target=lambda: answers.append(ask(server, NAME)))
        waiting.start()
        time.sleep(0.3)
        full = ask(server, NAME)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        waiting.join(10)
        assert answers[0].status_code == 504
        release.set()
        swap.join(30)
        assert ask(server, OTHER).status_code == 200


def ask(server: Running, model: str) -> httpx.Response:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is 58 + 67?"}],
        "temperature": 0,
    }
    return httpx.post(f"{server.address}/v1/chat/completions", json=body, timeout=30)


def digest(server: Running) -> str:
    return str(httpx.get(f"{server.address}/readyz").json()["digest"])


def resident_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
