"""How an agent ends: signals at any moment, and requests that outlast it."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from agent_cases import agent, start, wait_for_event
from cloud_cases import Cloud, Seen, config_of
from routing_pair import TOO_LONG
from serve_cases import NAME, point, wait_until

SLOW = """
import sys, time
from device.runtime.scheduler import Scheduler
own = Scheduler.step
def step(self):
    time.sleep(0.05)
    return own(self)
Scheduler.step = step
from device.__main__ import main
sys.exit(main(sys.argv[2:]))
"""
"""An agent that makes twenty tokens a second."""
ENDLESS = {"model": NAME, "prompt": "To be", "max_tokens": 400, "stream": True}


def test_what_outlasts_the_end_is_told_so(bundle: Path, tmp_path: Path) -> None:
    """SIGTERM: a stream that outlasts `drain_s` ends with an error, not as if the line broke.

    SIGHUP meanwhile, as a log is rotated, does not end it sooner.
    """
    point(tmp_path / "current", bundle)
    with agent(tmp_path, "drain_s = 1.5", script=SLOW) as found:
        found.wait("/readyz")
        url = f"http://127.0.0.1:{found.port}/v1/completions"
        with httpx.stream("POST", url, json=ENDLESS, timeout=30) as stream:
            lines = (line for line in stream.iter_lines() if line)
            next(lines)
            began = time.monotonic()
            found.process.terminate()
            time.sleep(0.5)
            found.process.send_signal(signal.SIGHUP)
            *_, last = lines
            assert time.monotonic() - began > 1.4
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_stopped"
        assert found.process.wait(20) == 0
        assert time.monotonic() - began < 6
    assert found.events()[-1]["event"] == "stopped"


def test_a_short_answer_is_ended_in_full(bundle: Path, tmp_path: Path) -> None:
    """What is done within `drain_s` is whole, and the agent then goes at once."""
    point(tmp_path / "current", bundle)
    with agent(tmp_path, "drain_s = 20", script=SLOW) as found:
        found.wait("/readyz")
        url = f"http://127.0.0.1:{found.port}/v1/completions"
        body = {**ENDLESS, "max_tokens": 20}
        with httpx.stream("POST", url, json=body, timeout=30) as stream:
            lines = (line for line in stream.iter_lines() if line)
            next(lines)
            found.process.terminate()
            *_, last = lines
        began = time.monotonic()
        assert last == "data: [DONE]"
        assert found.process.wait(20) == 0
        assert time.monotonic() - began < 5


@pytest.mark.slow
def test_sigterm_at_any_moment_ends_it_quietly(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """While it imports, loads or serves: exit code 0 and nothing on standard error."""
    point(tmp_path / "current", bundle)
    config = f'[serve]\nbundle = "{tmp_path}/current"\nlog = "{tmp_path}/log"\npoll_s = 0.05\n'
    (tmp_path / "agent.toml").write_text(config)
    draw = random.Random(3)
    for _ in range(12):
        found = start(tmp_path)
        try:
            time.sleep(draw.uniform(0.2, 1.6))
            found.process.terminate()
            code = found.process.wait(20)
        finally:
            found.process.kill()
            found.process.wait()
        assert code in {0, -signal.SIGTERM}
    assert capfd.readouterr().err == ""


def test_what_cannot_be_renewed_holds_up_nothing_else(tmp_path: Path) -> None:
    """SIGHUP: where the log cannot be opened anew, a key that was taken out is none."""
    keys, log, moved = tmp_path / "keys", tmp_path / "log", tmp_path / "moved"
    keys.write_text(f"lab {hashlib.sha256(b'old').hexdigest()}\n")
    with agent(tmp_path, f'api_keys = "{keys}"') as found:
        found.wait("/healthz")
        wait_for_event(found, "started")
        url = f"http://127.0.0.1:{found.port}/v1/models"

        def status(key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            return httpx.get(url, headers=headers).status_code

        assert (status("old"), status("new")) == (200, 401)
        log.rename(moved)
        log.mkdir()
        keys.write_text(f"lab {hashlib.sha256(b'new').hexdigest()}\n")
        found.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "model_failed" in moved.read_text())  # the last thing it looks for
        assert "reload_failed" in moved.read_text()
        assert (status("old"), status("new")) == (401, 200)


def test_an_answer_from_the_cloud_that_outlasts_it_is_told_so(bundle: Path, tmp_path: Path) -> None:
    """As one of the engine's is: the last event is an error; what was used is remembered."""

    def endless(seen: Seen) -> None:
        seen.begin()
        while True:  # until the device closes the connection
            seen.say("word")
            time.sleep(0.1)

    point(tmp_path / "current", bundle)
    with Cloud(endless).running() as url:
        config = config_of(url, tmp_path)
        table = f"""[routing]
enabled = true
base_url = "{url}"
model = "big"
state_file = "{config.state_file}"
daily_bytes = 1000000
"""
        with agent(tmp_path, f"drain_s = 1.0\n{table}") as found:
            found.wait("/readyz")
            address = f"http://127.0.0.1:{found.port}/v1/chat/completions"
            body = {**TOO_LONG, "stream": True}
            with httpx.stream("POST", address, json=body, timeout=30) as stream:
                lines = (line for line in stream.iter_lines() if line)
                assert "word" in next(lines)
                found.process.terminate()
                *_, last = lines
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "cloud_failed"
            assert found.process.wait(20) == 0
    used = json.loads(Path(config.state_file).read_text())["used"]
    assert 1000 < used < 60_000  # no longer what was written ahead


SLOW_TO_LOAD = """
import pathlib, sys, time
from device.agent import loading
own, begun = loading.load_model, pathlib.Path(sys.argv[1], "loading")
def load(*arguments):
    begun.touch()
    time.sleep(1)
    return own(*arguments)
loading.load_model = load
sys.argv = ["edgekit", *sys.argv[2:]]
from edgekit.cli.entry import main
main()
"""


def test_sighup_while_it_loads_ends_nothing(bundle: Path, tmp_path: Path) -> None:
    """Of `edgekit serve` without a terminal: what loads is the newest already."""
    command = [sys.executable, "-c", SLOW_TO_LOAD, str(tmp_path), "serve", str(bundle)]
    with subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until((tmp_path / "loading").exists, 20)
            process.send_signal(signal.SIGHUP)
            assert process.stderr is not None
            while f"{NAME}: " not in (line := process.stderr.readline()):
                assert line, "it has ended"
            process.terminate()
            process.wait(20)
        finally:
            process.kill()
