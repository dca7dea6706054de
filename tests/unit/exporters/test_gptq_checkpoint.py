"""An exported GPTQ checkpoint holds the bundle's codes, and computes what the bundle does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import EXAMPLE, make_config, random_tensors, write_checkpoint

from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.checkpoint.prequantized import kept_codes
from edgekit.errors import DigestMismatchError, QuantizationError, StorageError
from edgekit.evaluate.reference import ReferenceModel
from edgekit.exporters.gptq_checkpoint import export_gptq, kept_exponents
from edgekit.graph.exponents import Exponents
from edgekit.graph.weights import codes_name, scales_name
from edgekit.models.config import ModelConfig, RopeConfig, all_linears
from edgekit.models.families import model_config_from_hf
from edgekit.models.hf_config import hf_config
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.pipeline.stored_tensors import StoredTensors
from edgekit.quant.packing import unpack_int4
from edgekit.recipe import parse_recipe
from edgekit.targets import TARGETS

SIZES: dict[str, Any] = {"hidden": 256, "intermediate": 384, "heads": 4, "kv_heads": 2}
G128 = 'schema_version = 1\nname = "t"\n[quant.linear]\ngroup_size = 128\n[quant.lm_head]\n'
EXACT, ROUNDED = 1e-5, 1e-3
"""Largest difference of logits over the largest logit: of summation, and of float16's rounding."""
INT4_HEAD = 'dtype = "int4"\ngroup_size = 128\n'


def make(
    root: Path, *, head: str = INT4_HEAD, grow: bool = False, family: str = "qwen2", **more: Any
) -> Bundle:
    """Build a small model for float16; ``grow`` needs powers of two everywhere."""
    options = {**SIZES, "vocab": 4096, **more}
    tensors = random_tensors(make_config(family, **options))
    if grow:
        tensors["model.embed_tokens.weight"] *= 2.0**17
        for layer in (0, 1):
            tensors[f"model.layers.{layer}.mlp.up_proj.weight"] *= 2.0**14
            if family == "qwen2":
                tensors[f"model.layers.{layer}.self_attn.k_proj.bias"] *= 2.0**14
    checkpoint = write_checkpoint(root / "c", family=family, tensors=tensors, **options)
    recipe = parse_recipe(G128 + head, "t.toml")
    request = BuildRequest(str(checkpoint), TARGETS["orin"], recipe, root / "b", threads=1)
    return open_bundle(build(request).path)


def logits_of_both(bundle: Bundle, out: Path) -> tuple[Any, Any]:
    """Return the reference's logits over the bundle's blobs and over the exported folder."""
    config = replace(
        ModelConfig.from_dict(bundle.manifest.model["config"]), tie_word_embeddings=False
    )
    exponents = Exponents.from_dict(bundle.manifest.f16_exponents)
    entries = {entry.name: entry for entry in bundle.manifest.tensors}
    stored = StoredTensors(bundle.path, entries, config, exponents)
    exported = open_checkpoint(out)
    windows = [np.random.default_rng(5).integers(0, config.vocab_size, 24)]
    ours = ReferenceModel(config, stored.open, threads=1).logits(windows)[0]
    theirs = ReferenceModel(exported.config, exported.tensor, threads=1).logits(windows)[0]
    return ours, theirs


def check_codes(bundle: Bundle, out: Path) -> None:
    """Hold the folder, read by edgekit's GPTQ reader, to the bundle's blobs bit for bit."""
    exported = open_checkpoint(out)
    for linear in all_linears(exported.config):
        tensor = kept_codes(exported.tensor(linear.weight_key))
        assert tensor is not None
        assert (tensor.bits, tensor.group_size) == (4, 128)
        packed = np.asarray(bundle.read_tensor(bundle.tensor(codes_name(linear.name))))
        scales = np.asarray(bundle.read_tensor(bundle.tensor(scales_name(linear.name))))
        rows = linear.out_features
        assert np.array_equal(tensor.codes(0, rows), unpack_int4(packed).T)
        assert np.array_equal(tensor.scales(0, rows), scales.T.astype(np.float32))


@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_codes_are_the_bundles(family: str, tied: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """Codes and scales are bit-equal, and so the function is the same."""
    bundle = make(tmp_path, family=family, tied=tied)
    out = tmp_path / "gptq"
    report = export_gptq(bundle, out, shard_bytes=200_000)
    assert (report.head, report.warnings) == ("w4-g128", [])
    assert (report.embedding, report.rounded) == ("float16", [])
    check_codes(bundle, out)
    ours, theirs = logits_of_both(bundle, out)
    assert np.abs(ours - theirs).max() < EXACT * np.abs(ours).max()
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(shards) > 2
    assert sorted(set(index["weight_map"].values())) == shards
    assert (out / "tokenizer.json").read_bytes() == (EXAMPLE / "tokenizer.json").read_bytes()


def test_edge_llm_finds_what_it_looks_for(tmp_path: Path) -> None:
    """Names, types, shapes and zero points are those that TensorRT Edge-LLM's loader takes."""
    from safetensors.numpy import load_file

    export_gptq(make(tmp_path), tmp_path / "gptq")
    config = json.loads((tmp_path / "gptq" / "config.json").read_text())
    quantization = config["quantization_config"]
    wanted = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
    assert {key: quantization[key] for key in wanted} == wanted
    stored = load_file(tmp_path / "gptq" / "model-00001-of-00001.safetensors")
    module = "model.layers.1.mlp.down_proj"
    shapes = {name: stored[f"{module}.{name}"].shape for name in ("qweight", "qzeros", "scales")}
    assert shapes == {"qweight": (48, 256), "qzeros": (3, 32), "scales": (3, 256)}
    assert stored[f"{module}.scales"].dtype == np.float16
    assert (stored[f"{module}.qzeros"] == 0x77777777).all()
    assert np.array_equal(stored[f"{module}.g_idx"], np.arange(384) // 128)
    assert f"{module}.weight" not in stored
    assert {values.dtype.name for values in stored.values()} == {"int32", "float16"}


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_exponents_that_float16_needs_stay(family: str, tmp_path: Path) -> None:
    """The residual's is in the epsilon, the others undo themselves: the function is the same."""
    bundle = make(tmp_path, grow=True, family=family)
    exponents = Exponents.from_dict(bundle.manifest.f16_exponents)
    assert exponents.residual > 0
    assert any(exponents.mlp)
    report = export_gptq(bundle, tmp_path / "gptq")
    assert report.rms_norm_eps == 1e-6 * 4.0**-exponents.residual
    config = json.loads((tmp_path / "gptq" / "config.json").read_text())
    assert config["rms_norm_eps"] == report.rms_norm_eps
    if family == "qwen2":
        assert any(exponents.key)
        assert any("queries and keys" in warning for warning in report.warnings)
    ours, theirs = logits_of_both(bundle, tmp_path / "gptq")
    assert np.abs(ours - theirs).max() < EXACT * np.abs(ours).max()


def test_what_queries_and_keys_share_is_taken_out() -> None:
    """Their difference is split so that no score changes; the rest is the bundle's."""
    config = model_config_from_hf(make_config("qwen2"))
    stored = Exponents(residual=3, mlp=(1, 2), query=(4, 0), key=(4, 6), final_norm=2)
    kept = kept_exponents(stored, config)
    assert (kept.query, kept.key) == ((0, -3), (0, 3))
    assert replace(kept, query=stored.query, key=stored.key) == stored
    qwen3 = replace(config, qk_norm=True)
    stored = Exponents(residual=3, query=(5, 5), key=(0, 0), query_norm=(1, 2), key_norm=(0, 2))
    kept = kept_exponents(stored, qwen3)
    assert kept.query == kept.key == (3, 3)
    assert (kept.query_norm, kept.key_norm) == ((0, 0), (0, 0))


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_other_heads_and_embeddings_become_float16(kind: str, tmp_path: Path) -> None:
    """What is not 4 bits in groups of 128 outside the layers is float16: int8 is rounded to it."""
    recipe = f'dtype = "{kind}"\n[quant.embedding]\ndtype = "{kind}"\n'
    bundle = make(tmp_path, head=recipe)
    report = export_gptq(bundle, tmp_path / "gptq")
    assert report.head == "float16"
    names = ["lm_head.weight", "model.embed_tokens.weight"]
    assert sorted(report.rounded) == (names if kind == "int8" else [])
    ours, theirs = logits_of_both(bundle, tmp_path / "gptq")
    limit = ROUNDED if kind == "int8" else EXACT
    assert np.abs(ours - theirs).max() < limit * np.abs(ours).max()


@pytest.mark.parametrize("kind", ["linear", "llama3"])
def test_rope_that_the_engine_may_not_know_is_said(kind: str, tmp_path: Path) -> None:
    """TensorRT Edge-LLM drops some rope scaling without a word: the export does not."""
    bands = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    more = {**bands, "original_max_position_embeddings": 64} if kind == "llama3" else {}
    rope = {"rope_type": kind, "factor": 4.0, **more}
    bundle = make(tmp_path, family="llama", rope=rope)
    (warning,) = export_gptq(bundle, tmp_path / "gptq").warnings
    assert kind in warning
    assert "plain RoPE" in warning
    ours, theirs = logits_of_both(bundle, tmp_path / "gptq")
    assert np.abs(ours - theirs).max() < EXACT * np.abs(ours).max()


def test_other_schemes_are_refused(tmp_path: Path) -> None:
    """Groups of 64 are refused with the recipe to build with, and nothing is written."""
    checkpoint = write_checkpoint(tmp_path / "c", **SIZES)
    recipe = parse_recipe('schema_version = 1\nname = "t"\n', "t.toml")
    build(BuildRequest(str(checkpoint), TARGETS["orin"], recipe, tmp_path / "b", threads=1))
    with pytest.raises(QuantizationError, match=r"q_proj is w4-g64; .* takes w4-g128") as caught:
        export_gptq(open_bundle(tmp_path / "b"), tmp_path / "gptq")
    assert caught.value.remedy == "Build the bundle with --recipe w4a16-g128"
    assert not list(tmp_path.glob("*gptq*"))


def test_damage_and_standing_folders_are_refused(tmp_path: Path) -> None:
    """A damaged bundle gives no checkpoint; a folder that stands is left alone."""
    bundle = make(tmp_path)
    (tmp_path / "gptq").mkdir()
    with pytest.raises(StorageError, match="exists already"):
        export_gptq(bundle, tmp_path / "gptq")
    blob = max((tmp_path / "b" / "blobs").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[7] ^= 1
    blob.write_bytes(data)
    with pytest.raises(DigestMismatchError):
        export_gptq(bundle, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(),
        RopeConfig("linear", 1e4, 4.0),
        RopeConfig("llama3", 5e5, 8.0, 8192, 1.0, 4.0),
        RopeConfig("yarn", 1e6, 4.0, 32768, None, None, 32.0, 1.0, 1.0),
    ],
)
@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3"])
def test_config_reads_back(family: str, rope: RopeConfig) -> None:
    """What is written as config.json is read as the same architecture."""
    config = replace(model_config_from_hf(make_config(family, head_dim=32)), rope=rope)
    for ends in ((1,), (1, 5), ()):
        wanted = replace(config, eos_token_ids=ends)
        assert model_config_from_hf(json.loads(json.dumps(hf_config(wanted)))) == wanted
