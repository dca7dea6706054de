"""Builds from quantized checkpoints and with adapters: codes kept, LoRA merged, fp8 decoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import make_config, random_tensors, write_checkpoint, write_safetensors

from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.checkpoint.lazy import read_all
from edgekit.cli.main import main
from edgekit.errors import RecipeError
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.pipeline.verify import verify_bundle
from edgekit.quant.packing import unpack_int4
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS

Array = np.ndarray[Any, Any]
MODULE = "model.layers.0.mlp.up_proj"


def make(checkpoint: Path, out: Path, **options: Any) -> Bundle:
    recipe = options.pop("recipe", None) or load_recipe("w4a16-g64")
    request = BuildRequest(
        model=str(checkpoint), target=TARGETS["orin"], recipe=recipe, out=out, **options
    )
    return open_bundle(build(request).path)


def pack_words(codes: Array) -> Array:
    """Pack unsigned nibbles [..., M] into int32 [..., M / 8], lowest first."""
    words = np.zeros((*codes.shape[:-1], codes.shape[-1] // 8), np.uint32)
    for position in range(8):
        words |= codes[..., position::8].astype(np.uint32) << np.uint32(4 * position)
    return words.view(np.int32)


def write_gptq_checkpoint(folder: Path) -> tuple[Path, Array, Array]:
    """Write a checkpoint with one GPTQ weight; returns it, the codes [N, K] and scales [N, G]."""
    config = make_config(vocab=4096)
    tensors: dict[str, Any] = random_tensors(config)
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 16, (128, 64))  # [N, K], zero point 8
    scales = (0.01 + 0.01 * rng.random((128, 2))).astype(np.float16)
    del tensors[f"{MODULE}.weight"]
    tensors[f"{MODULE}.qweight"] = np.ascontiguousarray(pack_words(codes).T)  # [K / 8, N]
    # Version 1 stores zero points less one: 7 in every nibble.
    tensors[f"{MODULE}.qzeros"] = np.full((2, 16), 0x77777777, np.uint32).view(np.int32)
    tensors[f"{MODULE}.scales"] = np.ascontiguousarray(scales.T.astype(np.float32))
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False,
                    "sym": True}  # fmt: skip
    path = write_checkpoint(folder, tensors=tensors, dtype="f16", quantization_config=quantization)
    return path, codes, scales


def test_codes_of_a_gptq_checkpoint_are_kept(tmp_path: Path) -> None:
    """A symmetric GPTQ weight's codes and scales stand in the bundle as they were."""
    path, codes, scales = write_gptq_checkpoint(tmp_path / "gptq")
    bundle = make(path, tmp_path / "b")
    stored = bundle.read_tensor(bundle.tensor(f"{MODULE}.codes"))
    np.testing.assert_array_equal(unpack_int4(np.asarray(stored)), (codes - 8).T)
    kept_scales = bundle.read_tensor(bundle.tensor(f"{MODULE}.scales"))
    np.testing.assert_array_equal(kept_scales, scales.T)
    report = verify_bundle(bundle)
    assert report["graphs"]["standard.float16"]["linears"] == {"w4-g32": 1, "w4-g64": 14}
    assert all(golden["passed"] for golden in report["golden"].values())


def test_a_plan_counts_kept_codes_as_the_build_stores_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its weights the plan's bytes are the bundle's; of a config.json alone it says it is not.

    A method that a build refuses, and a recipe that it refuses for the codes' sake, a plan refuses.
    """
    path, _, _ = write_gptq_checkpoint(tmp_path / "gptq")
    stored = make(path, tmp_path / "b").manifest.size
    plan, warnings = planned(capsys, path)
    assert plan["memory"]["linear_bytes"] == stored["linear_bytes"]
    note = "1 of 15 linears keep the checkpoint's own codes w4-g32, as in a build; the others"
    assert any(note in warning for warning in warnings)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "config.json").write_text((path / "config.json").read_text())
    plan, warnings = planned(capsys, alone)
    assert plan["memory"]["linear_bytes"] < stored["linear_bytes"]
    note = "alone is quantized already, and its weights are not here: counted by w4a16-g64"
    assert any(note in warning for warning in warnings)
    main_exit(capsys, "plan", alone, "--target", "orin", text=note)
    main_exit(capsys, "plan", path, "--target", "orin", "--recipe", "w4a16-gptq-g64", code=3,
              text="would choose their codes anew")  # fmt: skip
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (alone / "config.json").write_text(json.dumps(config))
    main_exit(capsys, "plan", alone, "--target", "orin", code=5, text="'bitsandbytes'; edgekit")


def test_fp8_is_counted_by_the_recipe_as_it_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An fp8 weight is quantized anew, so a plan has nothing to add."""
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    folder = tmp_path / "fp8"
    folder.mkdir()
    config = make_config(vocab=4096)
    (folder / "config.json").write_text(json.dumps(config))
    plain = planned(capsys, folder)
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": fp8}))
    assert planned(capsys, folder) == plain


def planned(
    capsys: pytest.CaptureFixture[str], model: Path
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the plan of a model on an Orin, and its warnings."""
    out = main_exit(capsys, "plan", model, "--target", "orin", "--json")
    plan: dict[str, Any] = json.loads(out)["plans"][0]
    return plan, tuple(plan["warnings"])


def main_exit(
    capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0, text: str = ""
) -> str:
    """Run a command and hold it to its exit code and to what it prints, lines joined."""
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments)])
    said = capsys.readouterr()
    assert caught.value.code == code, said
    assert text in " ".join((said.err if code else said.out).split())
    return said.out


@pytest.mark.calibrate
def test_codes_of_a_checkpoint_are_not_chosen_anew(tmp_path: Path) -> None:
    """A calibrated recipe refuses a quantized checkpoint: it would drop or bend its codes."""
    path, _, _ = write_gptq_checkpoint(tmp_path / "gptq")
    text = tmp_path / "text.txt"
    text.write_text("words to calibrate on, " * 2000)
    for recipe in ("w4a16-gptq-g64", "mixed-4.3-gptq"):
        with pytest.raises(RecipeError, match=rf"1 linears .* {MODULE}\), recipe {recipe} would"):
            make(path, tmp_path / "b", recipe=load_recipe(recipe), calibration=text)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gptq", "text.txt"]


def test_adapter_is_merged_before_quantization(tmp_path: Path) -> None:
    """A LoRA changes its own modules' blobs only, and stands among the checkpoint's files."""
    path = write_checkpoint(tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    rng = np.random.default_rng(4)
    factors = {
        f"base_model.model.{MODULE}.lora_A.weight": rng.standard_normal((4, 64)),
        f"base_model.model.{MODULE}.lora_B.weight": rng.standard_normal((128, 4)),
    }
    write_safetensors(
        adapter / "adapter_model.safetensors",
        {name: values.astype(np.float32) for name, values in factors.items()},
        "f32",
    )
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["up_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    plain, merged = make(path, tmp_path / "p"), make(path, tmp_path / "m", adapter=adapter)
    digests = [{e.name: e.sha256 for e in b.manifest.tensors} for b in (plain, merged)]
    differing = {name for name in digests[0] if digests[0][name] != digests[1][name]}
    assert differing == {f"{MODULE}.codes", f"{MODULE}.scales"}
    names = {entry.path for entry in merged.manifest.checkpoint_files}
    assert "adapter_model.safetensors" in names


def test_fp8_blocks_are_decoded(tmp_path: Path) -> None:
    """A DeepSeek block-scaled fp8 weight is its bytes' values times its block's factor."""
    config = make_config(vocab=4096)
    tensors: dict[str, Any] = random_tensors(config)
    shape = tensors[f"{MODULE}.weight"].shape
    bits = np.random.default_rng(6).integers(0, 0x7E, shape, np.uint8)
    tensors[f"{MODULE}.weight"] = bits
    factors = np.array([[0.5], [0.25]], np.float32)
    tensors[f"{MODULE}.weight_scale_inv"] = factors
    quantization = {"quant_method": "fp8", "weight_block_size": [64, 64], "fmt": "e4m3"}
    path = write_checkpoint(
        tmp_path / "fp8",
        tensors=tensors,
        dtype="f32",
        kinds={f"{MODULE}.weight": "F8_E4M3"},
        quantization_config=quantization,
    )
    values = read_all(open_checkpoint(path).tensor(f"{MODULE}.weight"))
    exponent, mantissa = (bits >> 3).astype(int), bits & 7
    plain = np.where(exponent, (1 + mantissa / 8) * 2.0 ** (exponent - 7), mantissa / 8 * 2.0**-6)
    np.testing.assert_allclose(values, plain * np.repeat(factors, 64, axis=0), rtol=1e-6)
    assert make(path, tmp_path / "b").manifest.quality["checked"]
