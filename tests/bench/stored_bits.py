"""Bits per linear weight, counted in the files that were written.

Counted: every byte stored for the decoder's linears and the LM head: codes, scales, zero points,
minima. Not counted: the embedding (unless it is the head), norms, biases, tables. What a format
wastes (float32 scales, say) is its own and counts.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_GGUF_LINEAR = re.compile(r"blk\.\d+\.(attn_(q|k|v|output)|ffn_(gate|up|down))\.weight")
_BUNDLE_LINEAR = re.compile(r"(.*_proj|lm_head)\.(codes|scales|weight)")


@dataclass(frozen=True, slots=True)
class StoredLinears:
    """What a model's linears take.

    Attributes:
        weights: Elements of all linears' matrices, the LM head included.
        stored_bytes: Bytes stored for them.
    """

    weights: int
    stored_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per element."""
        return 8 * self.stored_bytes / self.weights


def of_bundle(folder: Path) -> StoredLinears:
    """Count an edgekit bundle by its manifest."""
    weights = stored = 0
    for tensor in json.loads((folder / "manifest.json").read_bytes())["tensors"]:
        match = _BUNDLE_LINEAR.fullmatch(tensor["name"])
        if match:
            stored += tensor["size_bytes"]
            weights += math.prod(tensor["shape"]) if match[2] != "scales" else 0
    return StoredLinears(weights, stored)


def of_onnx(graph: Path) -> StoredLinears:
    """Count a graph of ``MatMulNBits`` and dense ``MatMul`` nodes (onnxruntime-genai's)."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in model.initializer}
    weights = stored = 0
    for node in model.node:
        if node.op_type == "MatMulNBits":
            sizes = {item.name: item.i for item in node.attribute}
            weights += sizes["K"] * sizes["N"]
            # A, B, scales, zero_points, g_idx, bias: the bias is no weight.
            parts = [tensors[name] for name in node.input[1:5] if name]
            stored += sum(_onnx_bytes(part) for part in parts)
        elif node.op_type == "MatMul" and node.input[1] in tensors:
            matrix = tensors[node.input[1]]
            weights += math.prod(matrix.dims)
            stored += _onnx_bytes(matrix)
    return StoredLinears(weights, stored)


def of_gguf(path: Path) -> StoredLinears:
    """Count a GGUF file; with tied embeddings the head is the embedding's tensor."""
    gguf: Any = importlib.import_module("gguf")  # only in llama.cpp's environment
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    names = [name for name in tensors if _GGUF_LINEAR.fullmatch(name)]
    names.append("output.weight" if "output.weight" in tensors else "token_embd.weight")
    chosen = [tensors[name] for name in names]
    return StoredLinears(
        sum(int(tensor.n_elements) for tensor in chosen),
        sum(int(tensor.n_bytes) for tensor in chosen),
    )


def _onnx_bytes(tensor: Any) -> int:
    import onnx

    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(dtype.itemsize) * math.prod(int(dim) for dim in tensor.dims)
