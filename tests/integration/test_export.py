"""``edgekit export`` as a device runs it, and what other readers make of its folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from factories import EXAMPLE

from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.evaluate.reference import ReferenceModel

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "export.schema.json"
DEVICE = """
import sys
for name in ("onnx", "onnxruntime", "numba", "torch", "huggingface_hub", "safetensors"):
    sys.modules[name] = None
from edgekit.cli.entry import main
main()
"""


def edgekit(*arguments: object, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line, or ``code`` in its place."""
    start = ["-c", code] if code else ["-m", "edgekit"]
    command = [sys.executable, *start, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained example in 4 bits, groups of 128."""
    out = tmp_path_factory.mktemp("export") / "tiny.bundle"
    made = edgekit("build", EXAMPLE, "--target", "orin", "--recipe", "w4a16-g128", "--out", out)
    assert made.returncode == 0, made.stderr
    return out


@pytest.fixture(scope="module")
def folder(bundle: Path) -> Path:
    """The checkpoint that a device makes of it."""
    out = bundle.parent / "gptq"
    made = edgekit("export", bundle, "--out", out, "--json", code=DEVICE)
    assert made.returncode == 0, made.stdout + made.stderr
    report = json.loads(made.stdout)
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    assert report["path"] == str(out)
    assert (report["head"], report["rounded"], report["warnings"]) == ("w4-g128", [], [])
    return out


def test_it_is_shown_and_refused_in_words(bundle: Path, folder: Path, tmp_path: Path) -> None:
    """Without --json it is a table; a standing folder and another scheme name the remedy."""
    shown = edgekit("export", bundle, "--format", "gptq", "--out", tmp_path / "again")
    assert shown.returncode == 0
    assert "w4-g128" in shown.stdout
    stands = edgekit("export", bundle, "--out", folder)
    assert stands.returncode == 13
    assert "exists already. Choose another --out" in stands.stderr
    other = tmp_path / "g64.bundle"
    built = ("build", EXAMPLE, "--target", "cpu", "--recipe", "w4a16-g64", "--out", other)
    assert edgekit(*built).returncode == 0
    refused = edgekit("export", other, "--out", tmp_path / "no")
    assert refused.returncode == 8
    assert "Build the bundle with --recipe w4a16-g128" in refused.stderr


def test_it_builds_the_same_bundle_again(bundle: Path, folder: Path, tmp_path: Path) -> None:
    """A build reads the folder like any GPTQ checkpoint, and keeps its codes: the same blobs."""
    again = tmp_path / "again.bundle"
    built = ("build", folder, "--target", "orin", "--recipe", "w4a16-g128", "--out", again)
    made = edgekit(*built)
    assert made.returncode == 0, made.stderr
    diff = json.loads(edgekit("diff", bundle, again, "--json").stdout)
    assert diff["tensors"] == []


@pytest.mark.calibrate
def test_transformers_computes_the_same(folder: Path) -> None:
    """The config.json and the dequantized weights give transformers the reference's logits."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    checkpoint = open_checkpoint(folder)
    config = AutoConfig.from_pretrained(folder)
    assert config.quantization_config["quant_method"] == "gptq"
    del config.quantization_config
    family: Any = AutoModelForCausalLM
    model = family.from_config(config, dtype=torch.float32)
    weights = {}
    for name, parameter in model.named_parameters():
        rows = checkpoint.tensor(name).rows(0, parameter.shape[0])
        weights[name] = torch.from_numpy(np.ascontiguousarray(rows))
    model.load_state_dict(weights, strict=False)
    tokens = np.random.default_rng(3).integers(0, config.vocab_size, 20)
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(tokens)[None]).logits[0].numpy()
    ours = ReferenceModel(checkpoint.config, checkpoint.tensor, threads=1).logits([tokens])[0]
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(ours).max()
