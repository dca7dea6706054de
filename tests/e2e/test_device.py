"""What `edgekit[device]` installs runs and verifies a bundle, JetPack 6.2's ONNX Runtime too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from factories import EXAMPLE

from edgekit.bundle.reader import open_bundle
from edgekit.cli.main import main
from edgekit.engine import load
from edgekit.engine.load import graph_to_run
from edgekit.engine.ort_open import newest_opset
from edgekit.errors import EngineError
from edgekit.pipeline import verify
from edgekit.pipeline.verify import verify_bundle

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
DEVICE = """
import sys
for name in ("onnx", "numba", "torch", "huggingface_hub"):
    sys.modules[name] = None  # importing it fails, and looking for it finds nothing
from edgekit.cli.entry import main
main()
"""


def edgekit(*arguments: object) -> None:
    """Run the command line as a host has it."""
    command = [sys.executable, "-m", "edgekit", *map(str, arguments)]
    subprocess.run(command, capture_output=True, check=True)


def on_device(*arguments: object, code: int = 0) -> str:
    """Run the command line where what only building needs is not installed; returns stdout."""
    result = subprocess.run(
        [sys.executable, "-c", DEVICE, *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained example for JetPack 7.2."""
    out = tmp_path_factory.mktemp("device") / "tiny.bundle"
    edgekit("build", EXAMPLE, "--target", "orin", "--out", out)
    return out


def test_device_runs_and_verifies_without_build_packages(bundle: Path) -> None:
    """Without onnx and numba a bundle answers, and bytes and golden sequences are checked."""
    answer = on_device("run", bundle, "What is 58 + 67?", "--temperature", "0")
    assert answer.endswith("58 + 67 = 125\n")
    report = json.loads(on_device("verify", bundle, "--no-graphs", "--json"))
    jsonschema.validate(report, json.loads((SCHEMAS / "verify.schema.json").read_text()))
    assert report["graphs"] is None
    assert [golden["passed"] for golden in report["golden"].values()] == [True] * 4
    text = on_device("verify", bundle, "--no-graphs", "--no-run")
    assert "not checked (--no-graphs)" in text


def test_graphs_are_never_left_out_silently(bundle: Path) -> None:
    """Without onnx, verify says what it cannot check, and how to leave it out."""
    error = json.loads(on_device("verify", bundle, "--json", code=14))["error"]
    assert error["kind"] == "MissingExtraError"
    assert "--no-graphs" in error["remedy"]


AN_OLD_ONE = "this ONNX Runtime takes opset 23 at most, and it is of opset 24"


def test_verify_names_the_graphs_it_leaves_out(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the table a line each with the reason; with every graph run, none and an empty object."""
    opened = open_bundle(bundle)
    assert verify_bundle(opened, graphs=False)["left_out"] == {}
    assert verify_bundle(opened, graphs=False, run=False)["left_out"] == {}
    monkeypatch.setattr(verify, "newest_opset", lambda: 23)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="0"):
        main(["verify", str(bundle), "--no-graphs"])
    out = capsys.readouterr().out
    for name in ("standard.float16", "standard.float32"):
        assert f"{name}  not run: {AN_OLD_ONE}" in out
    assert "Answers to 128 recorded tokens" in out


def test_old_onnxruntime_runs_the_older_graph(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ONNX Runtime that ends at opset 23 (JetPack 6.2) runs a graph of that or less."""
    edgekit("build", EXAMPLE, "--target", "orin-jp62", "--out", tmp_path / "b")
    jp62 = open_bundle(tmp_path / "b")
    assert graph_to_run(jp62, "cpu").name == "ort.float32"
    assert graph_to_run(jp62, "cuda").name == "ort.float16"
    monkeypatch.setattr(verify, "newest_opset", lambda: 23)
    report = verify_bundle(jp62)
    golden, left_out = report["golden"], report["left_out"]
    assert left_out == {"standard.float32": AN_OLD_ONE}
    names = {"trt103.float16", "ort.float16", "ort.float32"}
    assert {name: report["passed"] for name, report in golden.items()} == dict.fromkeys(names, True)
    for newest, name in ((23, "ort.float32"), (21, "trt103.float16")):
        monkeypatch.setattr(load, "newest_opset", lambda newest=newest: newest)
        assert graph_to_run(jp62, "cpu").name == name
    with pytest.raises(EngineError, match="takes opset 21, the bundle's graphs have 24"):
        graph_to_run(open_bundle(bundle), "cpu")


@pytest.mark.parametrize(("version", "opset"), [("1.23.2", 23), ("1.24.0", 24), ("2.0.1", 24)])
def test_newest_opset(version: str, opset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest opset follows the installed version."""
    monkeypatch.setattr("onnxruntime.__version__", version)
    assert newest_opset() == opset
