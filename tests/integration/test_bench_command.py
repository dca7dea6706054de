"""`edgekit bench` of edgekit's own server, in every scenario."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from serve_cases import NAME, served, settle

from device.api.service import Service
from device.api.settings import Settings, read_keys
from edgekit.cli.main import main

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs/schemas/bench.schema.json").read_text())
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[tuple[str, Service]]:
    with served(bundle) as found:
        yield found


def run(code: int, *arguments: object) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *map(str, arguments)])
    assert caught.value.code == code


def report(capsys: Capture, *arguments: object) -> dict[str, Any]:
    """Run with ``--json``; returns the document, held to its schema."""
    run(0, *arguments, "--json")
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, SCHEMA, format_checker=jsonschema.FormatChecker())
    return document


def _ended(address: str) -> float:
    """Return how many requests a server has ended well."""
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    ended = [line for line in lines if line.startswith("edgekit_request_success_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in ended)


def test_latency_asks_what_was_promised(server: tuple[str, Service], capsys: Capture) -> None:
    """32 tokens in, counted by the server, up to 128 out, one after the other, nothing cached."""
    before = _ended(server[0])
    found = report(capsys, f"{server[0]}/v1", "--requests", 6, "--warmup", 2)
    settle(server[1])
    after = _ended(server[0])
    (one,) = found["scenarios"]
    assert (one["scenario"], one["streams"], one["requests"]) == ("latency", 1, 6)
    assert one["prompt_tokens"] == {"min": 32, "max": 32, "mean": 32.0}
    assert found["workload"]["prompts_counted_by"] == "tokenize"
    assert one["cached_tokens"] <= 0.05 * 6 * 32
    assert sum(one["finish_reasons"].values()) == 6
    assert after - before == 8  # with the two of the warm-up
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        assert 0 < one[name]["min"] <= one[name]["p50"] <= one[name]["p90"] <= one[name]["max"]
    assert one["e2e_s"]["max"] <= one["wall_s"]
    assert one["output_tokens_per_s"] == pytest.approx(one["output_tokens"] / one["wall_s"], 1e-3)
    assert found["target"] == {"url": f"{server[0]}/v1", "model": NAME, "endpoint": "completions"}
    assert found["machine_is_server"]
    assert found["bundle"] is None


def test_chats_are_counted_with_their_template(
    server: tuple[str, Service], capsys: Capture
) -> None:
    """Reasoning is an answer's text, too."""
    chat = ("--endpoint", "chat", "--max-tokens", 16)
    found = report(capsys, f"{server[0]}/v1", *chat, "--requests", 3, "--warmup", 0)
    assert found["scenarios"][0]["prompt_tokens"] == {"min": 32, "max": 32, "mean": 32.0}
    assert 3 <= found["scenarios"][0]["output_tokens"] <= 48


def test_the_seed_makes_the_same_prompts_again(
    server: tuple[str, Service], capsys: Capture
) -> None:
    """Another each time, unless it is given; a cache that knows the prompts is warned of."""
    quick = (f"{server[0]}/v1", "--requests", 1, "--warmup", 0, "--max-tokens", 2)
    found = [report(capsys, *quick), report(capsys, *quick)]
    seeds = {one["workload"]["seed"] for one in found}
    assert len(seeds) == 2
    last = found[-1]["workload"]["seed"]
    again = report(capsys, *quick, "--seed", last)
    assert again["scenarios"][0]["cached_tokens"] == 31
    assert any("came from a prefix cache" in warning for warning in again["warnings"])


def test_load_is_a_row_for_each_number_of_streams(
    server: tuple[str, Service], capsys: Capture, tmp_path: Path
) -> None:
    """Tables on stdout, the document and the plot in files."""
    kept, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    load = ("--scenario", "load", "--streams", "1,4", "--requests", 4, "--max-tokens", 16)
    run(0, f"{server[0]}/v1", *load, "--json", kept, "--plot", plot)
    shown = capsys.readouterr()
    assert "TTFT p99, ms" in shown.out
    assert f"the plot is in {plot}" in " ".join(shown.err.split())
    document = json.loads(kept.read_text())
    jsonschema.validate(document, SCHEMA)
    assert [(one["streams"], one["requests"]) for one in document["scenarios"]] == [(1, 4), (4, 16)]
    assert plot.read_bytes().startswith(b"\x89PNG")
    page = tmp_path / "bench.html"
    run(0, f"{server[0]}/v1", "--requests", 2, "--max-tokens", 8, "--plot", page)
    text = page.read_text()
    assert "<svg" in text
    assert f"<h1>edgekit bench: {NAME}: 32 tokens in" in text


@pytest.mark.parametrize(
    ("scenario", "options", "checks"),
    [
        ("single-stream", ("--queries", 64), {"early_stopping": True}),
        ("server", ("--queries", 20, "--qps", 8), {"performance_constraints": True}),
        ("server", ("--queries", 6, "--qps", 50, "--ttft-ms", 0.01), {
            "performance_constraints": False}),
        ("offline", ("--queries", 12, "--streams", "3"), {"early_stopping": True}),
        ("single-stream", ("--duration", 1.5), {"min_duration": True}),
    ],
)  # fmt: skip
def test_mlperfs_scenarios(
    server: tuple[str, Service],
    capsys: Capture,
    tmp_path: Path,
    scenario: str,
    options: tuple[object, ...],
    checks: dict[str, bool],
) -> None:
    """LoadGen's verdict, why, its logs; its latencies are ours; never called a submission."""
    arguments = ("--scenario", scenario, "--max-tokens", 8, "--warmup", 1, "--logs", tmp_path)
    found = report(capsys, f"{server[0]}/v1", *arguments, *options)
    settle(server[1])
    (one,) = found["scenarios"]
    loadgen = one["loadgen"]
    for name, passed in checks.items():
        assert loadgen["checks"][name] is passed
    assert (loadgen["result"] == "VALID") is all(loadgen["checks"].values())
    queries = dict(zip(options[::2], options[1::2], strict=True)).get("--queries")
    assert one["requests"] == queries if queries else one["requests"] > 3
    assert one["cached_tokens"] <= 0.05 * 32 * one["requests"]
    ours, theirs = one["e2e_s"], loadgen["latency_s"]
    if scenario == "single-stream":  # offline counts from the issue of all, server from the plan
        assert theirs["p50"] == pytest.approx(ours["p50"], rel=0.25, abs=0.002)
        assert loadgen["ttft_s"]["p50"] == pytest.approx(one["ttft_s"]["p50"], rel=0.25, abs=0.002)
        assert loadgen["tpot_s"]["p50"] == pytest.approx(one["tpot_s"]["p50"], rel=0.25, abs=0.002)
    assert theirs["p50"] >= ours["p50"] * 0.75
    assert "mlperf_log_summary.txt" in {path.name for path in (tmp_path / scenario).iterdir()}
    assert any("no MLPerf submission" in warning for warning in found["warnings"])
    assert any("MLPerf's runs last 600 s" in warning for warning in found["warnings"])


def test_a_bundle_is_served_for_as_long_as_it_takes(bundle: Path, capsys: Capture) -> None:
    """On a port of its own; answers as long as asked; the server is gone afterwards."""
    options = ("--requests", 3, "--warmup", 0, "--max-tokens", 24, "--ignore-eos")
    found = report(capsys, bundle, *options, "--threads", 1, "--max-sequences", 2)
    assert found["bundle"]["path"] == str(bundle)
    assert found["bundle"]["digest"].startswith("sha256:")
    assert found["scenarios"][0]["finish_reasons"] == {"length": 3}
    assert found["scenarios"][0]["output_tokens"] == 72
    assert found["workload"]["fields"] == {"ignore_eos": True}
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{found['target']['url']}/models")


def test_a_server_that_does_not_start_says_why(bundle: Path, capsys: Capture) -> None:
    """Its own last line; no wait, no orphan."""
    run(11, bundle, "--provider", "cuda", "--json")
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "EngineError"
    assert "edgekit serve ended with exit status 11" in error["message"]
    assert "CUDA" in error["message"]


def test_no_bundle_is_told_as_such(tmp_path: Path, capsys: Capture) -> None:
    """A folder that is none has a bundle's exit code."""
    run(10, tmp_path, "--json")
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "BundleError"


def test_a_bench_that_is_ended_ends_its_server(bundle: Path) -> None:
    """SIGTERM reaches the child, which goes as it would by itself."""
    command = [sys.executable, "-m", "edgekit", "bench", str(bundle), "--requests", "100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        port = int(line.partition("on port ")[2].split()[0])
        assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            httpx.get(f"http://127.0.0.1:{port}/readyz")
        except httpx.ConnectError:
            return
        time.sleep(0.05)
    pytest.fail("the server is still there")


def test_a_key_opens_the_server_to_every_scenario(
    bundle: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoadGen's process has it too; without one the server's refusal is told."""
    file = tmp_path / "keys"
    file.write_text(f"lab {hashlib.sha256(b'secret').hexdigest()}\n")
    monkeypatch.setenv("LAB_KEY", "secret")
    with served(bundle, Settings(keys=read_keys(file)), slots=1) as (address, _):
        both = ("--scenario", "latency", "--scenario", "offline", "--queries", 2, "--requests", 2)
        short = ("--max-tokens", 4, "--warmup", 1, "--streams", 1)
        run(11, f"{address}/v1", *both, *short, "--json")
        assert "--api-key-env" in json.loads(capsys.readouterr().out)["error"]["remedy"]
        found = report(capsys, f"{address}/v1", *both, *short, "--api-key-env", "LAB_KEY")
    assert [one["scenario"] for one in found["scenarios"]] == ["latency", "offline"]


def test_a_model_that_is_not_there(server: tuple[str, Service], capsys: Capture) -> None:
    """The server's own words, and where the names are."""
    run(11, f"{server[0]}/v1", "--model", "gpt-4o", "--json")
    error = json.loads(capsys.readouterr().out)["error"]
    assert "has no model 'gpt-4o'" in error["message"]
    assert NAME in error["message"]
