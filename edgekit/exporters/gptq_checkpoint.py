"""A bundle's weights as a GPTQ checkpoint, which NVIDIA's TensorRT Edge-LLM builds engines from.

Made on the device from the blobs that are there, so that no bundle holds its weights twice; needs
neither onnx nor torch, and holds a strip of one weight at a time.

What TensorRT Edge-LLM reads (github.com/NVIDIA/TensorRT-Edge-LLM, read at 33435397 and 17e065c7):

- ``config.json`` with ``quantization_config``: ``quant_method`` gptq, ``group_size``, ``sym``
  (``tensorrt_edgellm/config.py``, ``_parse_quant``). INT4 kernels take groups of 128 only, and a
  zero point of 8.
- per linear ``qweight`` int32 [K/8, N], code k in bits 4 * (k % 8); ``qzeros`` int32 [G, N/8],
  zero points minus 1, so 0x77777777; ``scales`` float16 [G, N]; ``g_idx``
  (``checkpoint/repacking.py``, ``repack_gptq_to_plugin``, which also wants N and K divisible by 64
  for the newer of its two plugins).
- A module with ``weight`` and no ``qweight`` is float16 (``_detect_unquantized_modules``); that
  reaches the head, but not the linears of layers, whose names it compares with ``model.`` kept.
- ``rope_scaling`` (``cpp/runtime/llmRuntimeUtils.cpp``, ``collectRopeConfig``): 17e065c7 computes
  llama3 and yarn; older states send both to plain RoPE, as all do with types they do not know, of
  which linear is one.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit import __version__
from edgekit.bundle.layout import TOKENIZER_FOLDER
from edgekit.bundle.reader import Bundle
from edgekit.bundle.storage import require_space, storage_errors, sync_folder
from edgekit.bundle.verify import check_digests
from edgekit.checkpoint.lazy import strips
from edgekit.checkpoint.shard_writer import MAX_SHARD_BYTES, NewTensor, write_shards
from edgekit.contracts.manifest import TensorEntry
from edgekit.errors import BundleError, QuantizationError, StorageError, UnsupportedModelError
from edgekit.graph.exponents import Exponents, read_exponents
from edgekit.graph.weights import codes_name, scales_name
from edgekit.models.config import Linear, ModelConfig, all_linears, tensor_shapes
from edgekit.models.exported import stored_config
from edgekit.models.hf_config import hf_config
from edgekit.pipeline.stored_schemes import stored_schemes
from edgekit.pipeline.stored_tensors import StoredTensors
from edgekit.progress import SILENT, Progress
from edgekit.quant.packing import SMALLEST_SCALE, unpack_int4

SCHEME = "w4-g128"
GROUP = 128
ZERO_WORD = 0x77777777
"""Eight zero points of 8, each stored minus 1."""
ALIGNMENT = 64
"""Of N and K, in Edge-LLM's second INT4 plugin."""
STRIP_ROWS = 1024
_REMEDY = "Build the bundle with --recipe w4a16-g128"
_ROPE_WARNINGS = {
    "linear": "does not know rope scaling of type linear, and computes plain RoPE instead",
    "llama3": "of some older releases computes plain RoPE instead of type llama3",
    "yarn": "of some older releases computes plain RoPE instead of type yarn",
}

Array = npt.NDArray[Any]


@dataclass(slots=True)
class GptqExport:
    """What was written.

    Attributes:
        path: The checkpoint's folder.
        size_bytes: Of its weights.
        head: ``w4-g128`` or ``float16``.
        embedding: ``float16``, or ``int8`` codes rounded to it.
        rms_norm_eps: Of ``config.json``; the bundle's residual exponent is in it.
        rounded: Tensors whose stored values float16 does not hold exactly.
        warnings: What the engine must be watched for.
    """

    path: Path
    size_bytes: int = 0
    head: str = "float16"
    embedding: str = "float16"
    rms_norm_eps: float = 0.0
    rounded: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def export_gptq(
    bundle: Bundle,
    out: Path,
    *,
    threads: int = 2,
    shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress = SILENT,
) -> GptqExport:
    """Write a bundle's weights as a GPTQ checkpoint.

    Args:
        bundle: An opened bundle; its digests are checked first.
        out: Folder to make.
        threads: Files hashed at once.
        shard_bytes: Most bytes of a file of weights.
        progress: Told about the stages ``digests`` and ``export``.

    Raises:
        UnsupportedModelError: The bundle was built with another exporter.
        QuantizationError: A linear is not 4 bits in groups of 128, or float16 cannot hold a value
            once an exponent is taken out.
        DigestMismatchError: The bundle is damaged.
        StorageError: ``out`` stands already, or cannot be written.
    """
    work = _Work.of(bundle, GptqExport(out))
    tensors = work.tensors()
    work.report.size_bytes = sum(tensor.size_bytes for tensor in tensors)
    with storage_errors(out):
        if out.exists() or out.is_symlink():
            raise StorageError(f"{out} exists already", "Choose another --out")
        out.parent.mkdir(parents=True, exist_ok=True)
    require_space(out.parent, work.report.size_bytes)
    check_digests(bundle, threads=threads, progress=progress)
    progress.start("export", work.report.size_bytes)
    partial_folder = out.parent / f".{out.name}.partial"
    with storage_errors(out, work.report.size_bytes):
        shutil.rmtree(partial_folder, ignore_errors=True)
        partial_folder.mkdir()
        write_shards(partial_folder, tensors, progress.advance, shard_bytes=shard_bytes)
        _write_files(bundle, partial_folder, work.config_json())
        sync_folder(partial_folder)
        partial_folder.rename(out)
        sync_folder(out.parent)
    progress.finish(f"{len(tensors)} tensors")
    return work.report


def export_obstacle(bundle: Bundle) -> str:
    """Return why a bundle cannot be written as such a checkpoint; empty if it can.

    No blob is read.
    """
    try:
        _Work.of(bundle, GptqExport(bundle.path)).tensors()
    except (UnsupportedModelError, QuantizationError, BundleError) as error:
        return str(error)
    return ""


def kept_exponents(stored: Exponents, config: ModelConfig) -> Exponents:
    """Return those of a bundle's exponents that a checkpoint can keep, and float16 needs.

    ``config.json`` has one epsilon for all norms, and no scale of the attention. The residual's
    exponent goes into the epsilon; q_norm and k_norm, where there are any, read what is scaled by
    as much. Those of values, the MLP and norms undo themselves. What queries and keys have in
    common is taken out, their difference stays: q times 2**-e with k times 2**e changes no score.
    """
    layers = range(config.num_hidden_layers)
    balanced = [_balance(*stored.attended(layer, qk_norm=config.qk_norm)) for layer in layers]
    queries = tuple(e for e, _ in balanced)
    keys = tuple(e for _, e in balanced)
    if config.qk_norm:
        same = (stored.residual,) * config.num_hidden_layers
        return replace(stored, query=same, key=same, query_norm=queries, key_norm=keys)
    return replace(stored, query=queries, key=keys)


def _balance(query: int, key: int) -> tuple[int, int]:
    """Return the nearest pair of exponents whose sum is 0."""
    half = int((query - key) / 2)
    return half, -half


def _difference(a: Exponents, b: Exponents, layers: int) -> Exponents:
    """Return ``a - b``; of_weight and of_bias are linear in every field."""

    def of(item: Any, name: str) -> tuple[int, ...]:
        value: tuple[int, ...] = getattr(item, name)
        return value or (0,) * layers

    found: dict[str, Any] = {}
    for name in (item.name for item in fields(Exponents)):
        if isinstance(getattr(a, name), int):
            found[name] = getattr(a, name) - getattr(b, name)
        else:
            found[name] = tuple(x - y for x, y in zip(of(a, name), of(b, name), strict=True))
    return Exponents(**found)


@dataclass(frozen=True, slots=True)
class _Work:
    """What every step needs.

    Attributes:
        entries: The manifest's tensors by name.
        config: The architecture, its embeddings untied.
        kept: Exponents that stay in the weights.
        undone: Exponents that are taken out.
        report: Filled on the way.
    """

    bundle: Bundle
    entries: dict[str, TensorEntry]
    config: ModelConfig
    kept: Exponents
    undone: Exponents
    report: GptqExport

    @classmethod
    def of(cls, bundle: Bundle, report: GptqExport) -> _Work:
        """Read what a manifest says of the weights."""
        config = stored_config(bundle.manifest.model["config"])
        if not isinstance(config, ModelConfig):
            raise UnsupportedModelError(
                f"{bundle.path} was built with another exporter, whose weights have other names",
                "Export a bundle of the families edgekit builds natively",
            )
        config = replace(config, tie_word_embeddings=False)
        entries = {entry.name: entry for entry in bundle.manifest.tensors}
        stored_schemes(bundle.manifest.tensors, config)  # refuses codes of other shapes
        stored = read_exponents(bundle.manifest.f16_exponents, config.num_hidden_layers)
        kept = kept_exponents(stored, config)
        undone = _difference(stored, kept, config.num_hidden_layers)
        work = cls(bundle, entries, config, kept, undone, report)
        work.warn()
        return work

    def warn(self) -> None:
        """Say what TensorRT Edge-LLM may compute otherwise than the bundle."""
        rope = _ROPE_WARNINGS.get(self.config.rope.rope_type)
        if rope is not None:
            self.report.warnings.append(
                f"TensorRT Edge-LLM {rope}: check its answers before they are used"
            )
        layers = [
            layer
            for layer in range(self.config.num_hidden_layers)
            if any(self.undone.attended(layer, qk_norm=self.config.qk_norm))
        ]
        if layers:
            self.report.warnings.append(
                "powers of two that kept queries and keys within float16 are taken out in layers "
                f"{', '.join(map(str, layers))}: a float16 engine may overflow there, so check "
                "its answers before they are used"
            )

    def tensors(self) -> list[NewTensor]:
        """Return every tensor of the checkpoint, after checking that the bundle has them so."""
        linears = {linear.weight_key: linear for linear in all_linears(self.config)}
        found: list[NewTensor] = []
        for key, shape in tensor_shapes(self.config).items():
            linear = linears.get(key)
            if linear is None or not self._is_int4(linear):
                found.append(NewTensor(key, "F16", tuple(shape), partial(self._dense, key)))
            else:
                found.extend(self._linear(linear))
        if any(tensor.name == "lm_head.qweight" for tensor in found):
            self.report.head = SCHEME
        self.report.embedding = (
            "int8, rounded" if codes_name("model.embed_tokens") in self.entries else "float16"
        )
        return found

    def config_json(self) -> dict[str, Any]:
        """Return ``config.json``; the residual's exponent is in its epsilon."""
        self.report.rms_norm_eps = math.ldexp(self.config.rms_norm_eps, -2 * self.kept.residual)
        config = hf_config(replace(self.config, rms_norm_eps=self.report.rms_norm_eps))
        config["quantization_config"] = {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GROUP,
            "sym": True,
            "desc_act": False,
            "checkpoint_format": "gptq",
            "lm_head": self.report.head == SCHEME,
            "meta": {
                "quantizer": [f"edgekit:{__version__}"],
                "bundle": f"sha256:{self.bundle.digest}",
            },
        }
        return config

    def _is_int4(self, linear: Linear) -> bool:
        """Return whether a linear stays codes; only the head may be anything else.

        Raises:
            QuantizationError: A layer's linear cannot stay codes.
        """
        entry = self.entries.get(codes_name(linear.name))
        scheme = "dense" if entry is None else str(entry.scheme)
        aligned = linear.out_features % ALIGNMENT == 0
        if scheme == SCHEME and aligned:
            return True
        if linear.name == "lm_head":
            return False
        if scheme == SCHEME:
            raise QuantizationError(
                f"{linear.name} has {linear.out_features} outputs, not a multiple of {ALIGNMENT}",
                "TensorRT Edge-LLM's INT4 kernels do not take this model",
            )
        raise QuantizationError(
            f"{linear.name} is {scheme}; a GPTQ checkpoint for TensorRT Edge-LLM takes {SCHEME} "
            "in all layers",
            _REMEDY,
        )

    def _linear(self, linear: Linear) -> list[NewTensor]:
        name, k, n = linear.name, linear.in_features, linear.out_features
        groups = k // GROUP
        return [
            NewTensor(f"{name}.qweight", "I32", (k // 8, n), partial(self._codes, name)),
            NewTensor(
                f"{name}.qzeros",
                "I32",
                (groups, n // 8),
                lambda: [np.full((groups, n // 8), ZERO_WORD, np.int32)],
            ),
            NewTensor(f"{name}.scales", "F16", (groups, n), partial(self._scales, name)),
            NewTensor(
                f"{name}.g_idx", "I32", (k,), lambda: [np.arange(k, dtype=np.int32) // GROUP]
            ),
        ]

    def _codes(self, name: str) -> Iterator[npt.NDArray[np.int32]]:
        """Yield rows of ``qweight`` from codes stored [K, N], two a byte along N."""
        packed = self.bundle.read_tensor(self.entries[codes_name(name)])
        for start in range(0, len(packed), STRIP_ROWS):
            strip = np.asarray(packed[start : start + STRIP_ROWS])
            codes = (unpack_int4(strip).view(np.uint8) + np.uint8(8)) & np.uint8(15)
            words = np.zeros((len(codes) // 8, codes.shape[1]), np.uint32)
            for lane in range(8):
                words |= codes[lane::8].astype(np.uint32) << np.uint32(4 * lane)
            yield words.view(np.int32)

    def _scales(self, name: str) -> Iterator[npt.NDArray[np.float16]]:
        scales = np.asarray(self.bundle.read_tensor(self.entries[scales_name(name)]))
        exponent = -self.undone.of_weight(name)
        if exponent == 0:
            yield scales
            return
        exact = np.ldexp(scales.astype(np.float32), exponent)
        # The smallest scale stands for a group of zeros: its value says nothing, but may not be 0.
        exact[scales == SMALLEST_SCALE] = SMALLEST_SCALE
        yield np.maximum(self._float16(f"{name}.scales", exact), np.float16(SMALLEST_SCALE))

    def _dense(self, key: str) -> Iterator[npt.NDArray[np.float16]]:
        """Yield a weight in float16, its exponents taken out; codes are dequantized."""
        stored = StoredTensors(self.bundle.path, self.entries, self.config, self.undone)
        for _, strip in strips(stored.open(key), STRIP_ROWS):
            yield self._float16(key, strip)

    def _float16(self, name: str, values: Array) -> npt.NDArray[np.float16]:
        with np.errstate(over="ignore"):
            half: npt.NDArray[np.float16] = values.astype(np.float16)
        if not np.isfinite(half).all():
            raise QuantizationError(
                f"{name} exceeds float16 once its power of two is taken out",
                "TensorRT Edge-LLM cannot run this model in float16",
            )
        if name not in self.report.rounded and not np.array_equal(half, values):
            self.report.rounded.append(name)
        return half


def _write_files(bundle: Bundle, folder: Path, config: dict[str, Any]) -> None:
    """Write ``config.json`` and the tokenizer's files, as they are."""
    text = json.dumps(config, indent=2) + "\n"
    documents = {"config.json": text.encode()}
    prefix = f"{TOKENIZER_FOLDER}/"
    for entry in bundle.manifest.files:
        if entry.path.startswith(prefix):
            documents[entry.path.removeprefix(prefix)] = (bundle.path / entry.path).read_bytes()
    for name, data in documents.items():
        with (folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
