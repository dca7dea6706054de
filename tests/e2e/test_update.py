"""``edgekit build --base``: an update keeps the old scales where they are as good."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import make_config, random_tensors, write_checkpoint
from test_build import digests, edgekit

from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.evaluate.text_quality import TextSample
from edgekit.graph.exponents import Exponents
from edgekit.graph.float16_range import AttentionRange, ModelRange, NormRange
from edgekit.pipeline.base import Base
from edgekit.pipeline.quality import Reference
from edgekit.quant.packing import unpack_int4

SIZES: dict[str, Any] = {"hidden": 128, "intermediate": 256, "vocab": 4096}
CONFIG = make_config("qwen2", **SIZES)
TUNED = "model.layers.1.self_attn.v_proj"
RESCALED = "model.layers.0.mlp.up_proj"


def tuned_tensors() -> dict[str, Any]:
    """Return the first version's weights with one linear tuned a little and one tripled."""
    tensors = random_tensors(CONFIG)
    rng = np.random.default_rng(1)
    weight = tensors[f"{TUNED}.weight"]
    update = rng.standard_normal((weight.shape[0], 2)) @ rng.standard_normal((2, weight.shape[1]))
    tensors[f"{TUNED}.weight"] = weight + np.float32(0.0005) * update.astype(np.float32)
    tensors[f"{RESCALED}.weight"] = 3 * tensors[f"{RESCALED}.weight"]
    return tensors


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a checkpoint; the second built with and without the first as its base."""
    root = tmp_path_factory.mktemp("versions")
    write_checkpoint(root / "v1", tensors=random_tensors(CONFIG), **SIZES)
    write_checkpoint(root / "v2", tensors=tuned_tensors(), **SIZES)
    for source, out, more in (
        ("v1", "old", ()),
        ("v2", "plain", ()),
        ("v2", "new", ("--base", root / "old")),
    ):
        edgekit("build", root / source, "--target", "cpu", "--out", root / out, "--no-check", *more)
    return root


def changed_codes(old: Bundle, new: Bundle, linear: str) -> float:
    """Return the fraction of a linear's codes that differ."""
    a, b = (x.read_tensor(x.tensor(f"{linear}.codes")) for x in (old, new))
    return float((unpack_int4(np.asarray(a)) != unpack_int4(np.asarray(b))).mean())


def relative_rmse(bundle: Bundle, linear: str) -> float:
    """Return a linear's error as the manifest reports it."""
    rows = {row["name"]: row for row in bundle.manifest.quality["tensors"]}
    return float(rows[linear]["relative_rmse"])


def test_codes_of_tuned_weights_rarely_move(versions: Path) -> None:
    """Kept scales keep most codes, at the same error."""
    old, plain, new = (open_bundle(versions / name) for name in ("old", "plain", "new"))
    assert changed_codes(old, new, TUNED) < 0.8 * changed_codes(old, plain, TUNED)
    assert relative_rmse(new, TUNED) < 1.01 * relative_rmse(plain, TUNED)


def test_scales_that_no_longer_fit_are_not_kept(versions: Path) -> None:
    """A tripled weight gets its own scales: with the old ones most codes would be clipped."""
    plain, new = (open_bundle(versions / name) for name in ("plain", "new"))
    name = f"{RESCALED}.scales"
    assert new.tensor(name).sha256 == plain.tensor(name).sha256


def test_update_is_reproducible_and_says_what_it_is(versions: Path, tmp_path: Path) -> None:
    """The same inputs give the same bytes; the report and the manifest name the base."""
    common = ("build", versions / "v2", "--target", "cpu", "--no-check", "--base", versions / "old")
    report = json.loads(edgekit(*common, "--out", tmp_path / "again", "--json").stdout)
    assert digests(tmp_path / "again") == digests(versions / "new")
    update = report["update"]
    old, new = open_bundle(versions / "old"), open_bundle(tmp_path / "again")
    assert update["base"] == f"sha256:{old.digest}"
    assert new.manifest.recipe["base_sha256"] == old.digest
    # All of the tuned linear's scales but a few, none of the tripled one's, and all others.
    rescaled = old.tensor(f"{RESCALED}.scales").size_bytes // 2
    assert 0.99 < update["kept_scales"] / (update["scales"] - rescaled) <= 1
    assert 0 < update["transfer_bytes"] < report["full_bytes"]
    diff = json.loads(edgekit("diff", versions / "old", tmp_path / "again", "--json").stdout)
    assert diff["transfer_bytes"] == update["transfer_bytes"]


def test_exponents_of_the_base_are_kept(tmp_path: Path) -> None:
    """Activations that need fewer powers of two keep the base's, and with it every scale."""
    loud = random_tensors(CONFIG)
    for name in loud:
        if name.endswith(("down_proj.weight", "o_proj.weight")):
            loud[name] = loud[name] * 3000
    quieter = {k: v * np.float32(0.25 if np.abs(v).max() > 100 else 1) for k, v in loud.items()}
    write_checkpoint(tmp_path / "v1", tensors=loud, **SIZES)
    write_checkpoint(tmp_path / "v2", tensors=quieter, **SIZES)
    edgekit("build", tmp_path / "v1", "--target", "orin", "--out", tmp_path / "old")
    arguments = ("--target", "orin", "--base", tmp_path / "old", "--out", tmp_path / "new")
    edgekit("build", tmp_path / "v2", *arguments)
    edgekit("build", tmp_path / "v2", "--target", "orin", "--out", tmp_path / "plain")
    old, new, plain = (open_bundle(tmp_path / name).manifest for name in ("old", "new", "plain"))
    assert plain.f16_exponents != old.f16_exponents
    assert new.f16_exponents == old.f16_exponents
    report = json.loads(edgekit("verify", tmp_path / "new", "--json").stdout)
    assert all(golden["passed"] for golden in report["golden"].values())


@pytest.mark.parametrize(
    ("own", "kept"),
    [((1, 1), (1, 1)), ((2, -1), (2, -1)), ((0, 0), (1, 0)), ((1, 5), (1, 0)), ((6, 0), (1, 0))],
)
def test_attention_keeps_both_exponents_or_none(
    own: tuple[int, int], kept: tuple[int, int]
) -> None:
    """A base's exponents of queries and keys are kept only where the pair of them still fits."""
    held = AttentionRange(query=8000.0, key=4.0, score=10.0, head_dim=16)
    assert held.exponents() == (1, 0)
    sample = TextSample((), None, None)
    norm = NormRange(8.0, 1.0)
    needed = Exponents(mlp=(0,), value=(0,), query=(1,), key=(0,))
    reference = Reference(sample, needed, (), ModelRange((held,), (norm,), (norm,), norm))
    base = Base(None, {}, replace(needed, query=own[:1], key=own[1:]))  # type: ignore[arg-type]
    chosen = base.keep_exponents(reference)
    assert (chosen.query[0], chosen.key[0]) == kept


@pytest.mark.parametrize(("own", "kept"), [(8, 8), (9, 9), (12, 12), (13, 8), (7, 8), (0, 8)])
def test_norms_keep_exponents_that_fit(own: int, kept: int) -> None:
    """A base's exponent of a norm is kept where it still fits and is no more than a few larger."""
    attention, norm = AttentionRange(1.0, 1.0, 1.0, 16), NormRange(1e6, 1e5)
    held = ModelRange((attention,), (norm,), (norm,), norm)
    zero = Exponents(mlp=(0,), value=(0,), query=(0,), key=(0,))
    needed = replace(zero, input_norm=(8,), post_attention_norm=(8,), final_norm=8)
    base = replace(zero, input_norm=(own,), post_attention_norm=(own,), final_norm=own)
    reference = Reference(TextSample((), None, None), needed, (), held)
    chosen = Base(None, {}, base).keep_exponents(reference)  # type: ignore[arg-type]
    assert chosen.input_norm == chosen.post_attention_norm == (kept,)
    assert chosen.final_norm == kept
    older = Base(None, {}, zero).keep_exponents(reference)  # type: ignore[arg-type]
    assert (older.input_norm, older.final_norm) == ((8,), 8)


def test_useless_bases_are_refused(versions: Path, tmp_path: Path) -> None:
    """A base of another scheme, of calibrated codes, or that would be overwritten is an error."""
    common = ["build", versions / "v2", "--target", "cpu", "--no-check", "--base", versions / "old"]
    other = edgekit(*common, "--recipe", "w4a16-g32", "--out", tmp_path / "b", check=10)
    assert "no scales to keep" in other.stderr
    same = edgekit(*common, "--out", versions / "old", "--overwrite", check=10)
    assert "both --base and --out" in same.stderr
    data = Path(__file__).parent.parent / "data" / "shakespeare_calibration.txt"
    calibrated = ["--recipe", "w4a16-gptq-g64", "--calibration", data, "--out", tmp_path / "b"]
    assert "--base does nothing" in edgekit(*common, *calibrated, check=3).stderr
    common[-1] = tmp_path / "nothing"
    assert "is not a bundle" in edgekit(*common, "--out", tmp_path / "b", check=10).stderr
    assert not list(tmp_path.iterdir())
