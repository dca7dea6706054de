"""GPTQ, AWQ and compressed-tensors weights: decoded exactly, and codes kept where they can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import packed
import pytest
from factories import make_config, random_tensors, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.checkpoint.lazy import read_all
from edgekit.checkpoint.prequantized import PrequantizedTensor, kept_codes, unpack_words
from edgekit.errors import CheckpointError, UnsupportedModelError

Array = np.ndarray[Any, Any]
MODULE = "model.layers.0.mlp.up_proj"
N, K = 128, 64
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
PACKED: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "pack-quantized"}


class Quantized:
    """A random quantized weight: unsigned codes, zeros and scales, and the values they mean."""

    def __init__(self, bits: int = 4, groups: int = 2, *, symmetric: bool = True) -> None:
        rng = np.random.default_rng(bits * 10 + groups)
        top = 2**bits
        self.bits, self.middle = bits, top // 2
        self.codes = rng.integers(0, top, (N, K))
        self.zeros = np.full((N, groups), self.middle)
        if not symmetric:
            self.zeros = rng.integers(0, top, (N, groups))
        # float16 scales survive the factory's rounding to float16.
        self.scales = (rng.random((N, groups)) + 0.1).astype(np.float16).astype(np.float32)
        self.group_of = np.arange(K) // (K // groups)

    @property
    def values(self) -> Array:
        """The weight by the definition, float32 [N, K]."""
        shifted = (self.codes - self.zeros[:, self.group_of]).astype(np.float32)
        result: Array = shifted * self.scales[:, self.group_of]
        return result


def opened(
    path: Path, parts: dict[str, Any], quantization: dict[str, Any], **more: Any
) -> Checkpoint:
    """Open a checkpoint whose ``up_proj`` of layer 0 is stored as these parts."""
    tensors = random_tensors(make_config())
    del tensors[f"{MODULE}.weight"]
    tensors.update({f"{MODULE}.{name}": array for name, array in parts.items()})
    tensors.update(more)
    return open_checkpoint(
        write_checkpoint(
            path, tokenizer=False, tensors=tensors, dtype="f16", quantization_config=quantization
        )
    )


def check(checkpoint: Checkpoint, wanted: Quantized) -> PrequantizedTensor:
    """Hold a tensor to the definition, whole and in odd strips; returns it."""
    tensor = checkpoint.tensor(f"{MODULE}.weight")
    assert isinstance(tensor, PrequantizedTensor)
    assert tensor.shape == (N, K)
    np.testing.assert_array_equal(read_all(tensor), wanted.values)
    for start, stop in ((3, 4), (5, 18), (0, 9), (120, 128)):
        np.testing.assert_array_equal(tensor.rows(start, stop), wanted.values[start:stop])
    return tensor


def check_kept(tensor: PrequantizedTensor, wanted: Quantized) -> None:
    """Hold the codes to the definition: in range, and codes times scales is the weight."""
    kept = kept_codes(tensor)
    assert kept is not None
    codes, scales = kept.codes(5, 99), kept.scales(5, 99)
    assert codes.dtype == np.int8
    assert codes.flags.c_contiguous
    np.testing.assert_array_equal(codes, (wanted.codes - wanted.middle)[5:99])
    np.testing.assert_array_equal(codes * scales[:, wanted.group_of], wanted.values[5:99])
    assert kept.group_size == (0 if scales.shape[1] == 1 else K // scales.shape[1])
    assert kept.bits == wanted.bits


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_gptq(tmp_path: Path, bits: int, groups: int, form: str) -> None:
    """GPTQ of 4 and 8 bits, in both zero conventions; symmetric ones keep their codes."""
    wanted = Quantized(bits, groups)
    parts = packed.gptq(wanted.codes, wanted.zeros, wanted.scales, bits, v1=form == "gptq")
    quantization = {**GPTQ, "bits": bits, "checkpoint_format": form}
    tensor = check(opened(tmp_path / "c", parts, quantization), wanted)
    check_kept(tensor, wanted)
    assert tensor.stored_bytes == N * K * bits // 8 + groups * N * (bits + 16) // 8


def test_gptq_without_symmetry_is_read_as_floats(tmp_path: Path) -> None:
    """Zero points off the middle are honoured, 0 wrapped to 15 by version 1 included."""
    wanted = Quantized(symmetric=False)
    assert (wanted.zeros == 0).any()
    parts = packed.gptq(wanted.codes, wanted.zeros, wanted.scales, 4)
    assert kept_codes(check(opened(tmp_path / "c", parts, GPTQ), wanted)) is None


def test_gptq_in_activation_order(tmp_path: Path) -> None:
    """``g_idx`` out of order is honoured, and such codes are not kept; in order it is inert."""
    wanted = Quantized()
    parts = packed.gptq(wanted.codes, wanted.zeros, wanted.scales, 4)
    in_order = {**parts, "g_idx": wanted.group_of.astype(np.int32)}
    check_kept(check(opened(tmp_path / "a", in_order, GPTQ), wanted), wanted)
    wanted.group_of = np.random.default_rng(0).permutation(wanted.group_of)
    shuffled = {**parts, "g_idx": wanted.group_of.astype(np.int32)}
    assert kept_codes(check(opened(tmp_path / "b", shuffled, GPTQ), wanted)) is None
    bad = {**parts, "g_idx": np.full(K, 2, np.int32)}
    with pytest.raises(CheckpointError, match=r"g_idx names groups outside 0 to 1"):
        opened(tmp_path / "c", bad, GPTQ)


@pytest.mark.parametrize("symmetric", [True, False])
def test_awq(tmp_path: Path, *, symmetric: bool) -> None:
    """AWQ's interleaved nibbles are read in order; only symmetric codes are kept."""
    wanted = Quantized(symmetric=symmetric)
    parts = packed.awq(wanted.codes, wanted.zeros, wanted.scales)
    tensor = check(opened(tmp_path / "c", parts, AWQ), wanted)
    if symmetric:
        check_kept(tensor, wanted)
    else:
        assert kept_codes(tensor) is None


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_packed(
    tmp_path: Path, bits: int, groups: int, *, symmetric: bool
) -> None:
    """pack-quantized of 4 and 8 bits, with and without packed zero points."""
    wanted = Quantized(bits, groups, symmetric=symmetric)
    zeros = None if symmetric else wanted.zeros
    parts = packed.compressed(wanted.codes, zeros, wanted.scales, bits)
    tensor = check(opened(tmp_path / "c", parts, PACKED), wanted)
    if symmetric:
        check_kept(tensor, wanted)
    else:
        assert kept_codes(tensor) is None


def test_compressed_tensors_int8(tmp_path: Path) -> None:
    """int-quantized weights are int8 as they stand; activation settings change nothing."""
    wanted = Quantized(8, 1)
    parts = {
        "weight": (wanted.codes - 128).astype(np.int8),
        "weight_scale": wanted.scales,
        "weight_zero_point": np.zeros((N, 1), np.int8),
        "input_scale": np.ones(1, np.float32),
    }
    activations = {"num_bits": 8, "type": "int", "dynamic": True}
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": activations}},
        "kv_cache_scheme": None,
        "sparsity_config": {"format": "dense"},
    }
    check_kept(check(opened(tmp_path / "c", parts, quantization), wanted), wanted)


def test_compressed_tensors_fp8(tmp_path: Path) -> None:
    """float-quantized weights are E4M3 values times their row's scale."""
    scales = np.arange(1, N + 1, dtype=np.float32)[:, None]
    tensors = random_tensors(make_config())
    tensors[f"{MODULE}.weight"] = np.full((N, K), 0x38, np.uint8)  # 1.0
    tensors[f"{MODULE}.weight_scale"] = scales
    quantization = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    path = write_checkpoint(
        tmp_path / "c", tokenizer=False, tensors=tensors, dtype="f32",
        kinds={f"{MODULE}.weight": "F8_E4M3"}, quantization_config=quantization,
    )  # fmt: skip
    found = read_all(open_checkpoint(path).tensor(f"{MODULE}.weight"))
    np.testing.assert_array_equal(found, np.repeat(scales, K, axis=1))


def test_an_empty_bias_beside_a_quantized_weight_is_left_out(tmp_path: Path) -> None:
    """Old GPTQ writers give every module a bias; all zeros mean none, others are an error."""
    wanted = Quantized()
    parts = packed.gptq(wanted.codes, wanted.zeros, wanted.scales, 4)
    zeros = {**parts, "bias": np.zeros(N, np.float32)}
    assert f"{MODULE}.bias" not in opened(tmp_path / "a", zeros, GPTQ).names
    with pytest.raises(CheckpointError, match=f"does not have: {MODULE}.bias"):
        opened(tmp_path / "b", {**parts, "bias": np.ones(N, np.float32)}, GPTQ)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({**GPTQ, "bits": 3}, "edgekit reads 4 or 8 bits in format gptq or gptq_v2"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "'checkpoint_format': 'marlin'"),
        ({**GPTQ, "dynamic": {"lm_head": {"bits": 8}}}, "alike in all modules"),
        ({**AWQ, "version": "gemv"}, "version gemv; edgekit reads 4 bits, version gemm"),
        ({**PACKED, "format": "marlin-24"}, "format marlin-24; edgekit reads pack-quantized"),
        ({**PACKED, "kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ({**PACKED, "transform_config": {"config_groups": {"u": 1}}}, "transform_config"),
    ],
)
def test_unread_settings_are_refused(
    tmp_path: Path, quantization: dict[str, Any], message: str
) -> None:
    """A packing or setting that would be misread is refused by name, with a remedy."""
    wanted = Quantized()
    parts = packed.gptq(wanted.codes, wanted.zeros, wanted.scales, 4)
    with pytest.raises(UnsupportedModelError) as caught:
        opened(tmp_path / "c", parts, quantization)
    assert message in caught.value.message
    assert "unquantized" in caught.value.remedy


def test_parts_must_fit_each_other(tmp_path: Path) -> None:
    """A missing or misshapen part is named with what it should be."""
    wanted = Quantized()
    good = packed.gptq(wanted.codes, wanted.zeros, wanted.scales, 4)
    lacking = {name: part for name, part in good.items() if name != "qzeros"}
    with pytest.raises(CheckpointError, match=f"lacks {MODULE}.qzeros"):
        opened(tmp_path / "a", lacking, GPTQ)
    with pytest.raises(CheckpointError, match=r"qzeros is I32 \[1, 16\], .* I32 \[2, 16\]"):
        opened(tmp_path / "b", {**good, "qzeros": good["qzeros"][:1]}, GPTQ)
    with pytest.raises(CheckpointError, match=r"qweight is I64 \[8, 128\]"):
        opened(tmp_path / "c", {**good, "qweight": good["qweight"].astype(np.int64)}, GPTQ)
    awq = packed.awq(wanted.codes, wanted.zeros, wanted.scales)
    three = {name: np.ones((3, part.shape[1]), part.dtype) for name, part in awq.items()}
    with pytest.raises(CheckpointError, match="has 64 input channels in 3 groups"):
        opened(tmp_path / "g", {**three, "qweight": awq["qweight"]}, AWQ)
    for index, (parts, config) in enumerate(((good, GPTQ), (awq, AWQ))):
        none = {**parts, "scales": parts["scales"][:0], "qzeros": parts["qzeros"][:0]}
        with pytest.raises(CheckpointError, match="are not a packed weight and its scales"):
            opened(tmp_path / f"h{index}", none, config)
    mine = packed.compressed(wanted.codes, None, wanted.scales, 4)
    with pytest.raises(CheckpointError, match=f"lacks {MODULE}.weight_scale"):
        opened(tmp_path / "d", {k: v for k, v in mine.items() if k != "weight_scale"}, PACKED)
    lying = {**mine, "weight_shape": np.array([N, 2 * K + 8], np.int64)}
    with pytest.raises(UnsupportedModelError, match=r"is no 128 by 136 weight of 4 or 8 bits"):
        opened(tmp_path / "e", lying, PACKED)
    ragged = {**mine, "weight_scale": np.ones((N, 3), np.float32)}
    with pytest.raises(UnsupportedModelError, match="equal groups of the 64 input channels"):
        opened(tmp_path / "f", ragged, PACKED)


@given(st.sampled_from([4, 8]), st.lists(st.integers(0, 255), min_size=8, max_size=64))
def test_unpacking_undoes_packing(bits: int, values: list[int]) -> None:
    """Words unpack to the codes they were packed from, whatever the number of them."""
    codes = np.array(values[: len(values) // 8 * 8]) % 2**bits
    np.testing.assert_array_equal(unpack_words(packed.pack(codes, bits), bits), codes)
