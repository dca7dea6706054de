"""The benchmarks' own arithmetic and bookkeeping: what a wrong figure would come from."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

import cuda_steps
import numpy as np
import open_load
import pytest
import soak_serve
from bench_decode import parse_llama_bench
from divergence import compare, log_softmax
from make_checkpoint import SHAPES, Shape, make_checkpoint, plan_shards
from measure import MIB, BenchError, run, run_checked
from soak_serve import Held
from stored_bits import of_bundle

from edgekit.models.config import count_parameters, tensor_shapes

ALLOCATE = "import time; block = bytearray(96 << 20); block[::4096] = b'x' * 24576; time.sleep(0.3)"


def test_identical_logits_have_no_divergence() -> None:
    """A model compared with itself: KL 0, every best token the same, any shift of logits."""
    windows = np.arange(12).reshape(2, 6)
    logits = np.random.default_rng(0).standard_normal((2, 6, 12)).astype(np.float32)
    result = compare(logits, logits + np.float32(3), windows)
    assert result.kl_divergence_nats == pytest.approx(0, abs=1e-7)
    assert result.top1_agreement == 1
    assert result.positions == 12


def test_divergence_is_the_textbook_sum() -> None:
    """KL(reference || candidate) in that order, and the text's perplexity, by hand."""
    p, q = np.array([0.75, 0.25]), np.array([0.5, 0.5])
    windows = np.array([[0, 1, 0]])
    reference = np.log(np.tile(p, (1, 3, 1))).astype(np.float32)
    candidate = np.log(np.tile(q, (1, 3, 1))).astype(np.float32)
    result = compare(reference, candidate, windows)
    assert result.kl_divergence_nats == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-5)
    assert result.perplexity == pytest.approx(2, rel=1e-5)


def test_perplexity_crosses_row_blocks() -> None:
    """The token after a block of rows is scored too: blocks change nothing."""
    random = np.random.default_rng(1)
    windows = random.integers(0, 5, (1, 600))
    logits = random.standard_normal((1, 600, 5)).astype(np.float32)
    scores = log_softmax(logits[0, :-1])[np.arange(599), windows[0, 1:]]
    wanted = float(np.exp(-scores.mean()))
    assert compare(logits, logits, windows).perplexity == pytest.approx(wanted, rel=1e-9)


def test_padded_vocabulary_is_dropped_and_nan_refused() -> None:
    """Padding columns do not count; logits that are not finite are an error, not a figure."""
    windows = np.zeros((2, 4), np.int64)
    logits = np.random.default_rng(2).standard_normal((2, 4, 8)).astype(np.float32)
    padded = np.concatenate([logits, np.full((2, 4, 3), 50, np.float32)], axis=2)
    assert compare(logits, padded, windows).kl_divergence_nats == pytest.approx(0, abs=1e-12)
    padded[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        compare(logits, padded, windows)


def test_memory_of_a_grandchild_is_counted() -> None:
    """A program that lets another do the work is charged for it."""
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ALLOCATE!r}])"
    usage = run([sys.executable, "-c", code])
    assert usage.returncode == 0
    assert 96 * MIB < usage.peak_anonymous_bytes < 160 * MIB
    assert usage.wall_s > 0.3
    assert usage.other_cores >= 0


def test_failure_shows_what_the_command_said(tmp_path: Path) -> None:
    """A command that fails is an error with its last words, never a fast run."""
    with pytest.raises(BenchError, match="no such shape"):
        run_checked([sys.executable, "-c", "exit('no such shape')"], log=tmp_path / "log")


@pytest.mark.parametrize(
    ("name", "millions"),
    [("qwen2-0.5b", 494), ("qwen2-1.5b-distill", 1777), ("qwen2-7b", 7616), ("llama-8b", 8030)],
)
def test_shapes_have_the_published_sizes(name: str, millions: int) -> None:
    """The shapes are those of the published models: their parameter counts agree."""
    assert round(count_parameters(SHAPES[name].model) / 1e6) == millions


def test_shards_keep_order_and_bound() -> None:
    """Shards hold every tensor once, in order, none beyond the bound unless one tensor is."""
    shapes = tensor_shapes(SHAPES["qwen2-7b"].model)
    shards = plan_shards(shapes, 4_000_000_000)
    assert [name for shard in shards for name in shard] == list(shapes)
    sizes = [sum(2 * int(np.prod(shape)) for shape in shard.values()) for shard in shards]
    assert len(shards) >= 4
    assert max(sizes) <= 4_000_000_000


def test_made_checkpoint_is_read_back(tmp_path: Path) -> None:
    """A sharded checkpoint opens with the published reader: shapes, scale, no equal tensors."""
    from safetensors import safe_open

    shape = _small()
    make_checkpoint(shape, tmp_path, max_shard_bytes=600_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensor_shapes(shape.model))
    assert len(set(index["weight_map"].values())) > 1
    heads = set()
    for name, wanted in tensor_shapes(shape.model).items():
        with safe_open(tmp_path / index["weight_map"][name], "pt") as file:
            tensor = file.get_tensor(name).float()
        assert tuple(tensor.shape) == wanted
        if name.endswith("proj.weight"):
            assert float(tensor.std()) == pytest.approx(0.02, rel=0.1)
            heads.add(tuple(tensor.flatten()[:8].tolist()))
    assert len(heads) == 7 * shape.model.num_hidden_layers


def test_bundle_bits_leave_out_the_embedding(tmp_path: Path) -> None:
    """Codes, scales and dense linears count; embedding, norms and biases do not."""
    tensors = [
        {"name": "model.layers.0.mlp.up_proj.codes", "shape": [128, 64], "size_bytes": 4096},
        {"name": "model.layers.0.mlp.up_proj.scales", "shape": [2, 64], "size_bytes": 256},
        {"name": "lm_head.weight", "shape": [64, 32], "size_bytes": 4096},
        {"name": "model.embed_tokens.weight", "shape": [32, 64], "size_bytes": 4096},
        {"name": "model.layers.0.self_attn.q_proj.bias", "shape": [64], "size_bytes": 128},
    ]
    (tmp_path / "manifest.json").write_text(json.dumps({"tensors": tensors}))
    linears = of_bundle(tmp_path)
    assert linears.weights == 128 * 64 + 64 * 32
    assert linears.stored_bytes == 4096 + 256 + 4096


def test_llama_bench_output_is_read_behind_its_chatter() -> None:
    """Its JSON is found after log lines; depth and prompt become the names of the figures."""
    tests = [
        {"n_prompt": 128, "n_gen": 0, "n_depth": 0, "avg_ts": 200.5},
        {"n_prompt": 0, "n_gen": 64, "n_depth": 2048, "avg_ts": 40.25},
    ]
    text = "load_backend: loaded\n" + json.dumps(tests, indent=2) + "\n"
    assert parse_llama_bench(text) == {"pp128": 200.5, "tg@2048": 40.25}
    assert parse_llama_bench("error: no such file\n") == {}


def _small() -> Shape:
    from dataclasses import replace

    shape = SHAPES["qwen2-0.5b"]
    model = replace(
        shape.model,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=4096,
    )
    return replace(shape, model=model)


def test_selections_are_timed_only_beside_their_answers() -> None:
    """Every kind of selection is held to NumPy's, before and after one row is not finite."""
    options = argparse.Namespace(vocabs=[512], batches=[2], provider="cpu")
    whole, *selections = cuda_steps.select_rows(options)
    assert whole["kind"] == "whole"
    assert [row["kind"] for row in selections] == 2 * list(cuda_steps.KINDS)
    assert all(row["exact"] and row["nan_told"] and row["us"] > 0 for row in selections)
    assert max(row["sum_relative_error"] for row in selections) < 1e-5


def test_requests_at_random_times_wait_for_none_before_them() -> None:
    """A server that answers after a while is asked as often as one that answers at once."""
    begun: list[float] = []

    async def ask() -> float:
        begun.append(time.perf_counter())
        await asyncio.sleep(0.2)
        return 0.2

    firsts = asyncio.run(open_load.arrivals(ask, 200.0, 60, seed=1))
    assert firsts == [0.2] * 60
    assert begun[-1] - begun[0] < 2.0  # one after the other they would take 12
    assert open_load.quantiles(firsts)["p99_to_p50"] == pytest.approx(1)


def test_a_capacity_is_what_clients_that_never_pause_get() -> None:
    """Four who are answered after 50 ms each are 80 answers a second, at most."""

    async def ask() -> float:
        await asyncio.sleep(0.05)
        return 0.05

    assert 20 < asyncio.run(open_load.capacity(ask, 4, 40)) <= 80


def test_a_soak_tells_a_leak_from_what_fills_at_first() -> None:
    """A line through the later samples rises with a leak, and not with what came before them."""
    flat = [Held(100.0 + min(n, 20), 5, 10) for n in range(101)]
    leak = [Held(one.resident_mib + n / 10, 5, 10) for n, one in enumerate(flat)]
    assert soak_serve.told(flat)["slope_mib_per_1000"] == pytest.approx(0, abs=0.02)
    assert soak_serve.told(leak)["slope_mib_per_1000"] == pytest.approx(1, abs=0.02)
