"""Against Optimum itself: its graphs and edgekit's agree, and other families build with it.

Slow, and in need of the environment that ``scripts/optimum.sh DIR`` makes, named by
EDGEKIT_OPTIMUM_PYTHON; without it these tests fail rather than pass unseen.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import EXAMPLE, write_checkpoint
from test_graph_oracle import Runner, export
from test_oracle_transformers import oracle_logits

from edgekit.bundle.reader import open_bundle
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.engine.growing_cache import GrowingCacheSession
from edgekit.exporters.optimum import VARIABLE, find_optimum
from edgekit.exporters.source import open_source
from edgekit.exporters.staging import stage_checkpoint
from edgekit.graph.lowering import StandardLowering
from edgekit.progress import SILENT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
Array = np.ndarray[Any, Any]
DATA = Path(__file__).parents[1] / "data"
THETA = 500_000.0

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "qwen2": {"family": "qwen2", "rope": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen2-tied": {"family": "qwen2", "tied": True, "layout": "legacy"},
    "llama": {"family": "llama", "kv_heads": 4},
    "llama3-rope": {
        "family": "llama",
        "rope": {
            "rope_type": "llama3",
            "rope_theta": THETA,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "qwen3": {"family": "qwen3", "head_dim": 32},
}


@pytest.fixture(scope="module")
def python() -> Path:
    """Return the Python that has Optimum."""
    named = os.environ.get(VARIABLE)
    if not named:
        pytest.fail(f"{VARIABLE} is not set: make the environment with scripts/optimum.sh DIR")
    return Path(named)


def export_with_optimum(python: Path, checkpoint: Path, folder: Path) -> GrowingCacheSession:
    """Export a checkpoint and open its float32 graph."""
    optimum, source = find_optimum(python, 1), open_source(checkpoint)
    config = stage_checkpoint(source, folder / "staged")
    optimum.check(folder / "staged", config)
    graph = optimum.export(folder / "staged", folder / "graph", SILENT)
    return GrowingCacheSession(graph, max_context=64, threads=1, exact=True)


@pytest.mark.parametrize("name", [*CHECKPOINTS, "example"])
def test_native_graph_equals_the_exported_one(python: Path, tmp_path: Path, name: str) -> None:
    """The same float32 logits from Optimum's graph and from edgekit's, prefill and decode."""
    path = EXAMPLE
    if name != "example":
        path = write_checkpoint(tmp_path / name, **CHECKPOINTS[name])
    theirs = export_with_optimum(python, path, tmp_path)
    checkpoint = open_checkpoint(path)
    graph = export(checkpoint, tmp_path / "native", StandardLowering())
    ours = Runner(graph, checkpoint, 1, "float32")
    ids = np.random.default_rng(5).integers(0, checkpoint.config.vocab_size, (1, 20))
    tokens = ids[0].tolist()
    wanted = [theirs.prefill(0, tokens[:16], all_logits=True)]
    wanted += [theirs.decode([0], [tokens[i]], [i]) for i in range(16, 20)]
    got = [ours.step(ids[:, :16], 0)[0]] + [
        ours.step(ids[:, i : i + 1], i)[0] for i in range(16, 20)
    ]
    scale = max(1.0, float(np.abs(wanted[0]).max()))
    np.testing.assert_allclose(np.concatenate(got), np.concatenate(wanted), atol=1e-4 * scale)


def mistral(folder: Path) -> Path:
    """Write a random Mistral as transformers 5 saves it, its rotary base far from the default."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=64,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
    )
    return save(MistralForCausalLM(config), folder)


def gpt_neox(folder: Path) -> Path:
    """Write a random GPT-NeoX: biases, LayerNorm, a quarter of each head rotated."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": THETA,
            "partial_rotary_factor": 0.5,
        },
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
    )
    return save(GPTNeoXForCausalLM(config), folder)


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, folder / name)
    assert "rope_parameters" in json.loads((folder / "config.json").read_text())
    return folder


FAMILIES = {"mistral": mistral, "gpt_neox": gpt_neox}


@pytest.fixture(scope="module", params=FAMILIES)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a family without a native graph."""
    return FAMILIES[request.param](tmp_path_factory.mktemp("other") / request.param)


def test_rotary_base_arrives(python: Path, other: Path, tmp_path: Path) -> None:
    """The exported graph computes what transformers 5 computes: rope_theta was not lost."""
    session = export_with_optimum(python, other, tmp_path)
    ids = np.random.default_rng(2).integers(0, 4096, (1, 48))
    wanted = oracle_logits(other, list(ids))[0]
    got = session.prefill(0, ids[0].tolist(), all_logits=True)
    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)


def edgekit(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekit", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result


def test_other_families_build_and_run(python: Path, other: Path, tmp_path: Path) -> None:
    """Built twice the same, verified, evaluated, asked; the native exporter points to Optimum."""
    build = ("build", other, "--target", "cpu", "--recipe", "w4a16-g32", "--json")
    optimum = ("--exporter", "optimum", "--optimum-python", python)
    reports = [
        json.loads(edgekit(*build, *optimum, "--out", tmp_path / n, "--threads", t).stdout)
        for n, t in (("a", 1), ("b", 2))
    ]
    assert reports[0]["digest"] == reports[1]["digest"]
    assert 0 < reports[0]["quality"]["kl_divergence_nats"] < 0.5
    bundle = tmp_path / "a"
    manifest = open_bundle(bundle).manifest
    assert set(manifest.size["linears"]) == {"w4-g32"}
    window = json.loads((other / "config.json").read_text()).get("sliding_window") or 256
    assert manifest.limits["max_context"] == window
    golden = json.loads(edgekit("verify", bundle, "--json").stdout)["golden"]
    assert golden["optimum.float32"]["passed"]
    text = ("--text", DATA / "shakespeare_dev.txt", "--window", 48, "--text-tokens", 96)
    rows = ("--data", DATA / "reasoning_dev.jsonl", "--limit", 2)
    report = json.loads(edgekit("eval", bundle, *text, *rows, "--json").stdout)
    assert report["total"] == 2
    assert report["perplexity"] > 1
    assert edgekit("run", bundle, "What is 5 + 4?", "--temperature", 0, "--max-tokens", 4).stdout
    edgekit("inspect", bundle)
    edgekit("diff", bundle, tmp_path / "b")
    assert "--exporter optimum" in edgekit(*build, "--out", tmp_path / "c", code=5).stderr


def test_native_family_answers_the_same(python: Path, tmp_path: Path) -> None:
    """The trained example, exported by Optimum and quantized, still adds; --reference works."""
    bundle = tmp_path / "tiny"
    build = ("build", EXAMPLE, "--target", "cpu", "--exporter", "optimum")
    edgekit(*build, "--optimum-python", python, "--recipe", "w8a16", "--out", bundle)
    answer = edgekit("run", bundle, "What is 58 + 67?", "--temperature", 0, "--hide-reasoning")
    assert answer.stdout == "58 + 67 = 125\n"
    text = ("--text", DATA / "shakespeare_dev.txt", "--window", 64, "--text-tokens", 256)
    report = json.loads(edgekit("eval", bundle, *text, "--reference", EXAMPLE, "--json").stdout)
    assert report["kl_divergence_nats"] < 0.02
