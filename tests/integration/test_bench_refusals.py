"""`edgekit bench` of servers that are not there, refuse, or answer something else."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from canned_server import ANSWER, Behaviour, canned, chunk

from edgekit.cli.main import main

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs/schemas/bench.schema.json").read_text())
QUICK = ("--requests", 2, "--warmup", 1)
USAGE_OF_ONE = {"prompt_tokens": 32, "completion_tokens": 1}
Capture = pytest.CaptureFixture[str]


def bench(capsys: Capture, code: int, target: object, *arguments: object) -> dict[str, Any]:
    """Run the command with ``--json``; returns its document."""
    with pytest.raises(SystemExit) as caught:
        main(["bench", str(target), *map(str, arguments), "--json"])
    output = capsys.readouterr()
    assert caught.value.code == code, output
    assert "Traceback" not in output.err
    document: dict[str, Any] = json.loads(output.out)
    return document


def error(capsys: Capture, behaviour: Behaviour, *arguments: object) -> str:
    with canned(behaviour) as url:
        found = bench(capsys, 11, url, *arguments)["error"]
    assert found["kind"] == "EndpointError"
    return f"{found['message']}. {found['remedy']}"


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (
            Behaviour(401, pieces=(b'{"error": {"message": "no key"}}',)),
            "asks for an API key (401): no key. Put the key in an environment variable",
        ),
        (
            Behaviour(429, {"retry-after": "3"}, (b'{"error": {"message": "queue is full"}}',)),
            "takes no more requests (429, come back after 3 s): queue is full",
        ),
        (
            Behaviour(404, pieces=(b'{"error": {"message": "x", "code": "model_not_found"}}',)),
            "has no model 'canned': x. Choose one that its /models lists: --model",
        ),
        (Behaviour(502, pieces=(b"bad gateway",)), "failed (502): bad gateway"),
        (
            Behaviour(headers={"content-type": "application/json"}, pieces=(b'{"id": 1}',)),
            "answers with application/json, not with a stream of events",
        ),
        (Behaviour(pieces=(b"data: <p>\n\n",)), "an event that is none of OpenAI's: '<p>'"),
        (Behaviour(pieces=ANSWER[:3] + ANSWER[4:]), "does not say how many tokens"),
        (Behaviour(pieces=ANSWER[:2]), "ended its stream before the answer's end"),
        (Behaviour(pieces=ANSWER[:2], breaks_off=True), "the connection to"),
        (
            Behaviour(pieces=(ANSWER[0], b'data: {"error": {"message": "no memory"}}\n\n')),
            "failed while it answered: no memory",
        ),
        (Behaviour(after=2, status=503, pieces=(b"",)), "failed (503)"),
    ],
)
def test_wrong_answers_end_the_bench(capsys: Capture, behaviour: Behaviour, said: str) -> None:
    """One line that names what the server did and what to do; exit code 11."""
    assert said in error(capsys, behaviour, *QUICK)


def test_a_silent_server(capsys: Capture) -> None:
    """It is given up after --timeout-s."""
    said = error(capsys, Behaviour(pause_s=1.0), *QUICK, "--timeout-s", 0.2)
    assert "sent nothing for 0.2 s. Allow more with --timeout-s" in said


def test_nobody_there(capsys: Capture) -> None:
    """A port where nothing listens is named."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    found = bench(capsys, 11, url)["error"]
    assert found["message"].startswith(f"cannot connect to {url}/models")
    assert found["remedy"] == "Start the server, or check the URL"


def test_a_request_that_fails_ends_loadgen(capsys: Capture) -> None:
    """LoadGen waits for every query; the failure is told at once, not after its minute."""
    behaviour = Behaviour(after=4, status=429, headers={"retry-after": "1"}, pieces=(b"",))
    arguments = ("--scenario", "single-stream", "--queries", 50)
    assert "takes no more requests (429, come back" in error(capsys, behaviour, *arguments)
    one_token = (chunk("a", "stop"), chunk(usage=USAGE_OF_ONE), ANSWER[-1])
    said = error(capsys, Behaviour(pieces=one_token), *arguments)
    assert "an answer of one token has no time per output token" in said


def test_a_server_that_cannot_count(capsys: Capture) -> None:
    """Without /tokenize a word is a token; the document says so, and what the server counted."""
    behaviour = Behaviour(pause_s=0.05)
    with canned(behaviour) as url:
        report = bench(capsys, 0, url, *QUICK, "--model", "other", "--ignore-eos")
    jsonschema.validate(report, SCHEMA)
    assert report["workload"]["prompts_counted_by"] == "words"
    assert any("has no /tokenize" in warning for warning in report["warnings"])
    (found,) = report["scenarios"]
    assert found["prompt_tokens"] == {"min": 32, "max": 32, "mean": 32.0}
    assert found["cached_tokens"] is None
    assert found["ttft_s"]["p50"] == pytest.approx(0.05, abs=0.03)
    assert found["tpot_s"]["p50"] == pytest.approx(0.05, abs=0.03)  # two after the first, in 0.1 s
    bodies = [body for path, _, body in behaviour.asked if path == "/v1/completions"]
    assert len({body["prompt"] for body in bodies}) == 3
    assert all(body["model"] == "other" and body["ignore_eos"] is True for body in bodies)
    assert all(body["stream_options"] == {"include_usage": True} for body in bodies)


def test_a_key_is_sent_and_never_shown(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment variable that is named, and no other."""
    monkeypatch.setenv("LAB_KEY", "secret-key")
    monkeypatch.setenv("OPENAI_API_KEY", "not-asked-for")
    behaviour = Behaviour()
    with canned(behaviour) as url:
        bench(capsys, 0, url, *QUICK)
        report = bench(capsys, 0, url, *QUICK, "--api-key-env", "LAB_KEY", "--fresh-connections")
    sent = {headers.get("authorization") for _, headers, _ in behaviour.asked}
    assert sent == {None, "Bearer secret-key"}
    assert "secret-key" not in json.dumps(report)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("http://", "--seed", 1), "is no server's base URL"),
        (("http://h:99999/v1",), "is no server's base URL"),
        (("http://me:secret@h/v1",), "a base URL has no name and password"),
        (("http://h/v1", "--threads", 2), "--threads does nothing with a URL"),
        (("http://h/v1", "--queries", 2), "--queries does nothing without --scenario"),
        (
            ("http://h/v1", "--scenario", "load", "--qps", 2),
            "does nothing without --scenario server",
        ),
        (("http://h/v1", "--scenario", "load", "--streams", "1,x"), "is no list of numbers"),
        (("http://h/v1", "--scenario", "offline", "--duration", 0), "needs --queries"),
        (("http://h/v1", "--plot", "a.pdf"), "Use .png or .html"),
        (("http://h/v1", "--api-key-env", "NO_SUCH_NAME"), "has no key of that name"),
    ],
)
def test_wrong_usage(capsys: Capture, arguments: tuple[object, ...], said: str) -> None:
    """Told before anything is asked."""
    found = bench(capsys, 2, *arguments)["error"]
    assert (found["kind"], said in found["message"]) == ("UsageError", True), found["message"]


def test_files_that_could_not_be_written_are_told_first(capsys: Capture, tmp_path: Path) -> None:
    """Not after minutes of measuring: nobody is asked."""
    behaviour = Behaviour()
    with canned(behaviour) as url:
        lost = tmp_path / "no" / "f.png"
        assert bench(capsys, 13, url, "--plot", lost)["error"]["kind"] == "StorageError"
        with pytest.raises(SystemExit) as caught:
            main(["bench", url, "--json", str(tmp_path / "no" / "f.json")])
    assert caught.value.code == 13
    assert not behaviour.asked


def test_without_loadgen_the_way_over_the_network_is_told(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Orin has no LoadGen: a host benches it."""
    import importlib.util

    find = importlib.util.find_spec

    def missing(name: str, package: str | None = None) -> object:
        return None if name == "mlperf_loadgen" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", missing)
    behaviour = Behaviour()
    with canned(behaviour) as url:
        found = bench(capsys, 14, url, "--scenario", "offline")["error"]
    assert "edgekit[bench]" in found["remedy"]
    assert "on x86-64" in found["remedy"]
    assert "give the server's URL" in found["remedy"]
    assert not behaviour.asked


def test_without_the_extra_it_is_named(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device's installation has no HTTP client."""
    monkeypatch.setitem(sys.modules, "httpx", None)
    for name in [name for name in sys.modules if name.startswith("edgekit.benchmark")]:
        monkeypatch.delitem(sys.modules, name)
    found = bench(capsys, 14, "http://127.0.0.1:9/v1")["error"]
    assert found["kind"] == "MissingExtraError"
    assert "edgekit[bench]" in found["remedy"]
