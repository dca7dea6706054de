"""A small decoder graph as Optimum exports one, and a stand-in for the Python that exports it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from factories import EXAMPLE, write_safetensors
from onnx import TensorProto, helper, numpy_helper

HIDDEN, HEADS, LAYERS, POSITIONS, VOCAB = 64, 4, 2, 128, 4096
DIM = HIDDEN // HEADS
Array = np.ndarray[Any, Any]


class GraphMaker:
    """Collects nodes and random weights."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: list[str], output: str, name: str = "", **attrs: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=name or output, **attrs))
        return output

    def weight(self, name: str, *shape: int) -> str:
        values = self.rng.standard_normal(shape).astype(np.float32) * 0.15
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def ints(self, name: str, values: list[int] | int) -> str:
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def matmul(self, x: str, scope: str, k: int, n: int, output: str = "") -> str:
        weight = self.weight(f"onnx::MatMul_{len(self.nodes)}", k, n)
        made = output or f"{scope}/MatMul_output_0"
        return self.node("MatMul", [x, weight], made, f"{scope}/MatMul")

    def gemm(self, x: str, scope: str, k: int, n: int) -> str:
        """Add a Gemm by a weight [N, K], as exporters write a linear with bias in two dims."""
        name = scope.strip("/").replace("/", ".")
        inputs = [x, self.weight(f"{name}.weight", n, k), self.weight(f"{name}.bias", n)]
        return self.node("Gemm", inputs, f"{scope}/Gemm_output_0", f"{scope}/Gemm", transB=1)


def make_graph(*, ffn: int = 128, seed: int = 0) -> onnx.ModelProto:
    """Return a two-layer decoder with learned positions and growing caches, opset 18."""
    g = GraphMaker(seed)
    g.ints("heads", [0, 0, HEADS, DIM])
    g.ints("merged", [0, 0, HIDDEN])
    g.ints("flat", [-1, HIDDEN])
    for name, value in (("zero", 0), ("one", 1), ("two", 2)):
        g.ints(name, value)
    g.ints("axis_1", [1])
    g.weights.append(numpy_helper.from_array(np.array(-1e9, np.float32), "low"))
    x = g.node("Gather", [g.weight("model.embed_tokens.weight", VOCAB, HIDDEN), "input_ids"], "e")
    p = g.node("Gather", [g.weight("model.positions.weight", POSITIONS, HIDDEN), "position_ids"],
               "p")  # fmt: skip
    x = g.node("Add", [x, p], "x")
    width = g.node("Gather", [g.node("Shape", ["attention_mask"], "mask_shape"), "one"], "width")
    keys = g.node("Range", ["zero", width, "one"], "keys")
    g.ints("last", [-1])
    rows = g.node("Unsqueeze", ["position_ids", g.ints("mask_axes", [1, 3])], "rows")
    mask = g.node("GreaterOrEqual", [rows, keys], "mask")
    for layer in range(LAYERS):
        x = _layer(g, layer, x, mask, ffn)
    g.matmul(x, "/lm_head", HIDDEN, VOCAB, output="logits")
    model = helper.make_model(
        helper.make_graph(g.nodes, "main", _inputs(), _outputs(), g.weights),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    return model


def _layer(g: GraphMaker, layer: int, x: str, mask: str, ffn: int) -> str:
    scope = f"/model/layers.{layer}"
    split = {}
    for kind in "qkv":
        flat = g.matmul(x, f"{scope}/self_attn/{kind}_proj", HIDDEN, HIDDEN)
        heads = g.node("Reshape", [flat, "heads"], f"{flat}.heads")
        split[kind] = g.node("Transpose", [heads], f"{flat}.split", perm=[0, 2, 1, 3])
    past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
    keys = g.node("Concat", [past[0], split["k"]], f"present.{layer}.key", axis=2)
    values = g.node("Concat", [past[1], split["v"]], f"present.{layer}.value", axis=2)
    turned = g.node("Transpose", [keys], f"{scope}.turned", perm=[0, 1, 3, 2])
    scores = g.node("MatMul", [split["q"], turned], f"{scope}.scores", f"{scope}/self_attn/MatMul")
    seen = g.node("Where", [mask, scores, "low"], f"{scope}.seen")
    share = g.node("Softmax", [seen], f"{scope}.share", axis=-1)
    mixed = g.node("MatMul", [share, values], f"{scope}.mixed", f"{scope}/self_attn/MatMul_1")
    back = g.node("Transpose", [mixed], f"{scope}.back", perm=[0, 2, 1, 3])
    joined = g.node("Reshape", [back, "merged"], f"{scope}.joined")
    out = g.matmul(joined, f"{scope}/self_attn/o_proj", HIDDEN, HIDDEN)
    x = g.node("Add", [x, out], f"{scope}.attended")
    shape = g.node("Shape", [x], f"{scope}.shape")
    inner = g.gemm(g.node("Reshape", [x, "flat"], f"{scope}.flat"), f"{scope}/mlp/fc1", HIDDEN, ffn)
    inner = g.node("Relu", [inner], f"{scope}.relu")
    inner = g.gemm(inner, f"{scope}/mlp/fc2", ffn, HIDDEN)
    inner = g.node("Reshape", [inner, shape], f"{scope}.unflat")
    return g.node("Add", [x, inner], f"{scope}.output")


def _inputs() -> list[onnx.ValueInfoProto]:
    info = helper.make_tensor_value_info
    caches = [
        info(f"past_key_values.{i}.{kind}", TensorProto.FLOAT, ["b", HEADS, "past", DIM])
        for i in range(LAYERS)
        for kind in ("key", "value")
    ]
    return [
        info("input_ids", TensorProto.INT64, ["b", "s"]),
        info("attention_mask", TensorProto.INT64, ["b", "past + s"]),
        info("position_ids", TensorProto.INT64, ["b", "s"]),
        *caches,
    ]


def _outputs() -> list[onnx.ValueInfoProto]:
    info = helper.make_tensor_value_info
    caches = [
        info(f"present.{i}.{kind}", TensorProto.FLOAT, ["b", HEADS, "past + s", DIM])
        for i in range(LAYERS)
        for kind in ("key", "value")
    ]
    return [info("logits", TensorProto.FLOAT, ["b", "s", VOCAB]), *caches]


def save_graph(model: onnx.ModelProto, folder: Path, *, external: bool = True) -> Path:
    """Write a graph, its weights beside it or inside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    onnx.save(copy, path, save_as_external_data=external, location="model.onnx_data",
              size_threshold=100)  # fmt: skip
    return path


def write_source(path: Path, **config: Any) -> Path:
    """Write a checkpoint of a family without a native graph; its weights are never looked at."""
    path.mkdir(parents=True)
    values = {
        "model_type": "mistral",
        "vocab_size": VOCAB,
        "max_position_embeddings": POSITIONS,
        "num_attention_heads": HEADS,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        **config,
    }
    (path / "config.json").write_text(json.dumps(values))
    write_safetensors(path / "model.safetensors", {"w": np.ones((8, 8), np.float32)})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, path / name)
    return path


FAKE = """#!{python}
import json, pathlib, shutil, sys
arguments = sys.argv[1:]
if arguments[0] == "-c":
    config = json.loads(pathlib.Path(arguments[2], "config.json").read_text())
    read = {{"rope_theta": {theta} or config.get("rope_theta"), "partial_rotary_factor": None}}
    tools = {{name: "1.0" for name in ("optimum", "optimum-onnx", "torch", "transformers")}}
    print("a warning")
    print(json.dumps({{"tools": tools, "config": read}}) if {code} == 0 else "No module named 'optimum'")
    sys.exit({code})
assert arguments[:2] == ["-m", "optimum.exporters.onnx"], arguments
assert "--trust-remote-code" not in arguments
print("exporting")
if {graph!r} is None:
    print("ValueError: a custom or unsupported architecture")
    sys.exit(1)
shutil.copytree({graph!r}, arguments[-1])
"""  # noqa: E501


def fake_python(
    path: Path, graph: Path | None = None, *, code: int = 0, theta: float | None = None
) -> Path:
    """Write a program that answers as a Python with Optimum does.

    Args:
        path: Where.
        graph: Folder that an export copies; None lets it fail.
        code: Exit code of the first look at the environment.
        theta: Rotary base it pretends to read; None is the configuration's.
    """
    folder = None if graph is None else str(graph)
    text = FAKE.format(python=sys.executable, graph=folder, code=code, theta=theta)
    path.write_text(text)
    path.chmod(0o755)
    return path
