"""``build --exporter optimum`` with a stand-in for Optimum: bundles, commands, and every error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from optimum_graph import LAYERS, fake_python, make_graph, save_graph, write_source

from edgekit.cli.main import main

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data"


def edgekit(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments)])
    output = capsys.readouterr()
    assert caught.value.code == code, output
    return output.err if code else output.out


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("optimum")
    save_graph(make_graph(), folder / "graph")
    return fake_python(folder / "python", folder / "graph")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "tiny-mistral")


def options(source: Path, python: Path, out: Path) -> tuple[object, ...]:
    return ("build", source, "--target", "cpu", "--exporter", "optimum", "--recipe", "w4a16-g32",
            "--optimum-python", python, "--out", out)  # fmt: skip


def schema(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((ROOT / "docs/schemas" / f"{name}.schema.json").read_text())
    return data


def test_bundle_serves_every_command(
    source: Path, python: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Build, verify, eval, inspect, diff and run take an exported bundle like any other."""
    out, text = tmp_path / "a", DATA / "shakespeare_dev.txt"
    report = json.loads(edgekit(capsys, *options(source, python, out), "--json"))
    jsonschema.validate(report, schema("build"))
    assert report["quality"]["checked"]
    assert report["quality"]["warnings"] == []
    manifest = json.loads((out / "manifest.json").read_text())
    jsonschema.validate(manifest, schema("manifest"))
    assert manifest["size"]["linears"] == {"w4-g32": 6 * LAYERS + 1}
    assert manifest["tools"]["optimum-onnx"] == "1.0"
    assert manifest["model"]["config"]["exporter"] == "optimum"
    assert not (tmp_path / ".a.partial").exists()
    runs: dict[str, tuple[object, ...]] = {
        "verify": (out,),
        "eval": (out, "--text", text, "--window", 64, "--text-tokens", 128),
        "inspect": (out,),
        "diff": (out, out),
    }
    for name, arguments in runs.items():
        answer = json.loads(edgekit(capsys, name, *arguments, "--json"))
        jsonschema.validate(answer, schema(name))
    edgekit(capsys, "run", out, "What is 5 + 4?", "--temperature", 0, "--max-tokens", 3)
    edgekit(capsys, "eval", out, "--data", DATA / "reasoning_dev.jsonl", "--limit", 2)


def test_two_builds_give_the_same_bytes(
    source: Path, python: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the folder nor the threads decide a byte."""
    for name, threads in (("a", 1), ("b", 2)):
        edgekit(capsys, *options(source, python, tmp_path / name), "--threads", threads)
    digests = [(tmp_path / name / "manifest.sha256").read_bytes() for name in "ab"]
    assert digests[0] == digests[1]


def test_unchecked_build_records_the_float_graph(
    source: Path, python: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --no-check the golden sequences are the exported graph's."""
    edgekit(capsys, *options(source, python, tmp_path / "a"), "--no-check")
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    assert manifest["golden"]["scored_by"] == "checkpoint"


def test_eval_refuses_a_reference_it_cannot_run(
    source: Path, python: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Divergence needs a reference model of the family."""
    edgekit(capsys, *options(source, python, tmp_path / "a"))
    text = ("--text", DATA / "shakespeare_dev.txt", "--reference", source)
    assert "no reference model" in edgekit(capsys, "eval", tmp_path / "a", *text, code=5)


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--target", "orin"), 5, "for the target cpu, not orin"),
        (("--adapter", "a"), 3, "--adapter does not go with"),
        (("--base", "a"), 3, "--base does not go with"),
        (("--calibration", "a"), 3, "--calibration does not go with"),
        (("--recipe", "w4a16-gptq-g64"), 3, "needs calibration"),
        (("--optimum-python", "/nowhere/python"), 14, "not an interpreter"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_what_is_not_done_is_refused(
    source: Path,
    python: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, str],
    code: int,
    message: str,
) -> None:
    """Each option that only the native exporter knows is named, and nothing is left behind."""
    said = edgekit(capsys, *options(source, python, tmp_path / "a"), *more, code=code)
    assert message in said
    assert not list(tmp_path.iterdir())


def test_a_taken_output_is_refused_first(
    python: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--out` is looked at before Optimum is looked for and the model is fetched."""
    taken = tmp_path / "mine"
    taken.mkdir()
    for other in (python, Path("/nowhere/python")):
        arguments = options(Path("nobody/nothing"), other, taken)
        said = edgekit(capsys, *arguments, code=13)
        assert f"{taken} exists already and is not a bundle. Choose another --out" in said
    assert list(tmp_path.iterdir()) == [taken]
    assert not list(taken.iterdir())


def test_no_interpreter_named(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error says which script makes the environment."""
    monkeypatch.delenv("EDGEKIT_OPTIMUM_PYTHON", raising=False)
    command = ("build", source, "--target", "cpu", "--exporter", "optimum", "--out", tmp_path / "a")
    assert "scripts/optimum.sh" in edgekit(capsys, *command, code=14)


def test_failures_of_the_other_python(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing package, a failing export and another rotary base each end with what was said."""
    save_graph(make_graph(), tmp_path / "graph")
    cases = (
        (fake_python(tmp_path / "bare", code=3), 14, "lacks Optimum: No module named 'optimum'"),
        (fake_python(tmp_path / "fails"), 9, "exporting | ValueError: a custom or unsupported"),
        (fake_python(tmp_path / "other", tmp_path / "graph", theta=10000.0), 9,
         "reads rope_theta 10000.0 from a config.json that says 500000.0"),
    )  # fmt: skip
    for python, code, message in cases:
        said = edgekit(capsys, *options(source, python, tmp_path / "out"), code=code)
        assert message in " ".join(said.split())
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / ".out.partial").exists()


def test_unknown_family_names_the_other_exporter(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The native refusal of a dense family says how to build it."""
    command = ("build", source, "--target", "cpu", "--out", tmp_path / "a")
    assert "--exporter optimum" in edgekit(capsys, *command, code=5)
