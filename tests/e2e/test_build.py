"""From the command line: a build is reproducible, resumable, checked, and answers questions."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from factories import EXAMPLE, write_checkpoint

from edgekit.bundle.layout import blob_location
from edgekit.bundle.reader import open_bundle


def edgekit(*arguments: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line and hold it to an exit code."""
    result = subprocess.run(
        [sys.executable, "-m", "edgekit", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == check, result.stdout + result.stderr
    return result


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained example, built for the Orin with the default recipe."""
    out = tmp_path_factory.mktemp("build") / "tiny.bundle"
    report = json.loads(
        edgekit("build", EXAMPLE, "--target", "orin", "--out", out, "--json").stdout
    )
    assert report["full_bytes"] == open_bundle(out).total_bytes
    assert report["quality"]["checked"]
    return out


def test_total_bytes_are_those_on_disk(bundle: Path) -> None:
    """``full_bytes`` is what the folder really holds."""
    on_disk = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    assert open_bundle(bundle).total_bytes == on_disk


def test_two_builds_give_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    """Another folder, another thread count, another time: the same files, bit for bit."""
    edgekit("build", EXAMPLE, "--target", "orin", "--out", tmp_path / "again", "--threads", "1")
    assert digests(tmp_path / "again") == digests(bundle)


def test_built_from_inside_its_folder(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MODEL given as ``.`` is named as its folder: the same files, bit for bit."""
    monkeypatch.chdir(EXAMPLE)
    report = json.loads(
        edgekit("build", ".", "--target", "orin", "--out", tmp_path / "b", "--json").stdout
    )
    assert report["name"] == EXAMPLE.name
    assert report["limits"] == {"max_context": 2048, "max_sequences": 8}
    assert digests(tmp_path / "b") == digests(bundle)


def journalled(journal: Path) -> list[Path]:
    """Return the blobs that the whole lines of a journal name."""
    whole = journal.read_text().rpartition("\n")[0].splitlines()
    entries = [entry for line in whole if line for entry in json.loads(line)["entries"]]
    return [journal.parent / blob_location(entry["sha256"]) for entry in entries]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_is_explained(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C during a build exits with 130 and says that the build resumes, which it does."""
    checkpoint = write_checkpoint(
        tmp_path / "checkpoint", layers=24, hidden=128, intermediate=512, heads=4
    )
    arguments = ["build", checkpoint, "--target", "cpu", "--no-check", "--out", tmp_path / "b"]
    command = [sys.executable, "-m", "edgekit", *map(str, arguments)]
    process = subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    journal = tmp_path / ".b.partial" / "journal.jsonl"
    wait_for_notes(process, journal, 5)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted; the same command takes up where it stopped" in errors
    assert "Traceback" not in errors
    assert json.loads(output)["error"]["kind"] == "Interrupted"
    assert not (tmp_path / "b").exists()
    kept = len(journalled(journal))
    edgekit(*arguments)
    assert kept >= 4
    assert not journal.parent.exists()


def test_interrupted_chat_promises_nothing(bundle: Path) -> None:
    """Ctrl-C in a chat exits with 130 and one word."""
    command = [sys.executable, "-m", "edgekit", "run", str(bundle)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.read(2) == "> "
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.strip()) == (130, "interrupted")


def wait_for_notes(process: subprocess.Popen[Any], journal: Path, lines: int) -> None:
    """Wait until a build's journal has so many lines."""
    deadline = time.monotonic() + 60
    while not (journal.is_file() and journal.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None, "the build ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_interrupted_build_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """Killed in the middle, the build takes up its finished blobs and ends with the same bytes."""
    checkpoint = write_checkpoint(
        tmp_path / "checkpoint", layers=24, hidden=128, intermediate=512, heads=4
    )
    common = ["build", checkpoint, "--target", "cpu", "--no-check"]
    edgekit(*common, "--out", tmp_path / "whole")
    command = [sys.executable, "-m", "edgekit", *map(str, common), "--out", str(tmp_path / "cut")]
    journal = tmp_path / ".cut.partial" / "journal.jsonl"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for_notes(process, journal, 20)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut").exists()
    kept = {p: p.stat().st_mtime_ns for p in journalled(journal)}
    assert len(kept) >= 20
    edgekit(*common, "--out", tmp_path / "cut")
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    for path, stamp in kept.items():
        final = tmp_path / "cut" / path.relative_to(tmp_path / ".cut.partial")
        assert final.stat().st_mtime_ns == stamp, "a finished blob was written again"


def test_verify_accepts_the_bundle(bundle: Path) -> None:
    """A fresh bundle passes every check, on an engine too."""
    report = json.loads(edgekit("verify", bundle, "--json").stdout)
    names = {"standard.float16", "standard.float32", "ort.float16", "ort.float32"}
    assert set(report["golden"]) == set(report["graphs"]) == names
    assert all(golden["passed"] for golden in report["golden"].values())
    assert report["golden"]["standard.float16"]["kl_divergence_bound_nats"] < 1e-3
    assert report["graphs"]["standard.float16"]["linears"] == {"w4-g64": 43}


def test_what_was_not_checked_is_verified_but_not_judged(tmp_path: Path) -> None:
    """With --no-check the golden sequences are the unquantized model's: no limit holds, and why."""
    edgekit("build", EXAMPLE, "--target", "cpu", "--no-check", "--out", tmp_path / "b")
    report = json.loads(edgekit("verify", tmp_path / "b", "--json").stdout)
    assert report["golden_scored_by"] == "checkpoint"
    figures = report["golden"]["ort.float32"]
    assert figures["mean_abs_difference_nats"] > 0.25  # what quantization lost
    assert figures["passed"]
    assert "built with --no-check" in " ".join(edgekit("verify", tmp_path / "b").stdout.split())


def test_answer_is_right(bundle: Path) -> None:
    """The quantized model reasons and answers; reasoning and answer are told apart."""
    result = edgekit("run", bundle, "What is 58 + 67?", "--temperature", "0")
    assert result.stdout == "8+7+0=15\n5+6+1=12\ncarry 1\n\n58 + 67 = 125\n"
    hidden = edgekit("run", bundle, "What is 58 + 67?", "--temperature", "0", "--hide-reasoning")
    assert hidden.stdout == "58 + 67 = 125\n"
    assert "tokens/s" in hidden.stderr


def test_answer_as_json(bundle: Path) -> None:
    """With --json one document has the text, its reasoning and the figures; nothing is streamed."""
    arguments = ("run", bundle, "What is 58 + 67?", "--temperature", "0", "--json")
    result = edgekit(*arguments)
    report = json.loads(result.stdout)
    assert report["text"] == "58 + 67 = 125"
    assert report["reasoning"].startswith("8+7+0=15\n")
    assert report["finish_reason"] == "stop"
    assert (report["prompt_tokens"], report["generated_tokens"]) == (15, 36)
    assert report["decode_tokens_per_s"] > 0
    rate = report["prompt_tokens"] / report["time_to_first_token_s"]
    assert report["prefill_tokens_per_s"] == pytest.approx(rate, rel=0.01)
    assert result.stderr == ""
    short = json.loads(edgekit(*arguments, "--max-tokens", 1, "--hide-reasoning").stdout)
    assert (short["finish_reason"], short["reasoning"]) == ("length", None)
    assert short["decode_tokens_per_s"] == 0


@pytest.mark.parametrize(
    ("prompt", "given"),
    [("", b""), ("  ", b""), ("-", b""), ("-", b"\n"), ("-", b"\xff\xfe"), (b"\xff", b"")],
)
def test_what_is_no_prompt_is_refused(bundle: Path, prompt: str | bytes, given: bytes) -> None:
    """Nothing to ask, or no text, is wrong usage; no model is loaded and no chat begins."""
    result = subprocess.run(
        [sys.executable, "-m", "edgekit", "run", str(bundle), prompt, "--no-digests"],
        input=given, capture_output=True, check=False,
    )  # fmt: skip
    said = result.stderr.decode()
    assert (result.returncode, result.stdout) == (2, b"")
    where = "standard input" if prompt == "-" else "PROMPT"
    no_text = b"\xff" in {given[:1], prompt}
    problem = "is not UTF-8 text" if no_text else "is empty: ask something"
    assert f"Error: {where} {problem}" in said


def test_standard_input_is_the_same_prompt(bundle: Path) -> None:
    """A PROMPT of - is what stands in it, without the newline that a shell ends it with."""
    command = [sys.executable, "-m", "edgekit", "run", str(bundle), "-", "--json"]
    result = subprocess.run(
        [*command, "--max-tokens", "1"], input="What is 58 + 67?\n",
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(result.stdout)["prompt_tokens"] == 15


def test_the_end_of_input_ends_a_chat(bundle: Path) -> None:
    """Ctrl-D ends the prompt's line, too: the shell's own begins on a new one."""
    result = subprocess.run(
        [sys.executable, "-m", "edgekit", "run", str(bundle)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout == "> \n"


def test_chat_remembers(bundle: Path) -> None:
    """Without a prompt, lines from standard input are turns of one conversation."""
    command = [sys.executable, "-m", "edgekit", "run", str(bundle), "--temperature", "0"]
    result = subprocess.run(
        command,
        input="What is 5 + 4?\nWhat is 9 - 2?\n\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "5 + 4 = 9" in result.stdout
    assert "9 - 2 = 7" in result.stdout


def test_eval_counts_exact_answers(bundle: Path) -> None:
    """The default recipe answers the reasoning questions as the unquantized model does."""
    data = Path(__file__).parent.parent / "data" / "reasoning_dev.jsonl"
    report = json.loads(edgekit("eval", bundle, "--data", data, "--limit", 60, "--json").stdout)
    assert report["total"] == 60
    assert report["exact_match_count"] >= 59


def test_eval_measures_divergence(bundle: Path) -> None:
    """Divergence on text is positive, finite and of the size the recipe promises."""
    text = Path(__file__).parent.parent / "data" / "shakespeare_dev.txt"
    arguments = ["--text", text, "--text-tokens", 1024, "--reference", EXAMPLE, "--json"]
    report = json.loads(edgekit("eval", bundle, *arguments).stdout)
    assert report["tokens"] == 1024
    assert 0.2 < report["kl_divergence_nats"] < 0.5
    assert 0.6 < report["top1_agreement"] < 0.9


def test_diff_of_a_bundle_with_itself_is_nothing(bundle: Path) -> None:
    """A device that has the bundle fetches nothing."""
    report = json.loads(edgekit("diff", bundle, bundle, "--json").stdout)
    assert report["transfer_bytes"] == 0
    assert not report["tensors"]


def test_diff_counts_what_is_fetched(bundle: Path, tmp_path: Path) -> None:
    """Between two recipes only the blobs that differ are fetched."""
    other = tmp_path / "other"
    edgekit("build", EXAMPLE, "--target", "orin", "--recipe", "w4a16-g128", "--out", other)
    report = json.loads(edgekit("diff", bundle, other, "--json").stdout)
    assert 0 < report["transfer_bytes"] < report["full_bytes"]
    assert not any("norm" in row["name"] for row in report["tensors"])
    reverse = json.loads(edgekit("diff", other, bundle, "--json").stdout)
    assert reverse["full_bytes"] == open_bundle(bundle).total_bytes


@pytest.mark.parametrize("target", ["orin-32gb", "orin-jp62", "cpu"])
def test_other_targets_build_and_verify(target: str, tmp_path: Path) -> None:
    """Every target gives a bundle that passes its own checks."""
    edgekit("build", EXAMPLE, "--target", target, "--out", tmp_path / "b")
    report = json.loads(edgekit("verify", tmp_path / "b", "--json").stdout)
    names = set(report["graphs"])
    assert set(report["golden"]) == names
    assert all(golden["passed"] for golden in report["golden"].values())
    assert (
        names
        == {
            "orin-32gb": {"standard.float16", "standard.float32", "ort.float16", "ort.float32"},
            "orin-jp62": {"trt103.float16", "standard.float32", "ort.float16", "ort.float32"},
            "cpu": {"standard.float32", "ort.float32"},
        }[target]
    )


@pytest.mark.parametrize("recipe", ["w8a16", "float16", "w4a16-g32"])
def test_shipped_recipes_build_and_verify(recipe: str, tmp_path: Path) -> None:
    """Other recipes give bundles that pass their own checks."""
    edgekit("build", EXAMPLE, "--target", "cpu", "--recipe", recipe, "--out", tmp_path / "b")
    report = json.loads(edgekit("verify", tmp_path / "b", "--json").stdout)
    assert all(golden["passed"] for golden in report["golden"].values())


def test_help_is_quick_and_lists_every_command() -> None:
    """``--help`` names every command without importing the heavy packages."""
    started = time.perf_counter()
    text = edgekit("--help").stdout
    assert time.perf_counter() - started < 10
    for name in ("build", "run", "inspect", "verify", "eval", "diff", "recipes", "doctor"):
        assert name in text


def test_broken_pipe_is_no_traceback(bundle: Path) -> None:
    """A reader that goes away ends the output quietly."""
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "edgekit", "inspect", str(bundle), "--json"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert "Traceback" not in result.stderr
