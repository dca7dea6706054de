"""The compile check with a real builder: TensorRT-RTX on hosts without a GPU (extra trt-check)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from trt_cases import changed, compiled, small_bundle

from edgekit.bundle.reader import Bundle
from edgekit.cli.main import main
from edgekit.contracts.engine_plan import EnginePlan
from edgekit.errors import EngineError, GraphError, MissingExtraError
from edgekit.pipeline import compiled as stage
from edgekit.trt.compile_check import WORKER, judge
from edgekit.trt.engine import build_engine
from edgekit.trt.module import find_builder


@pytest.fixture(scope="module")
def whole_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle for JetPack 7.2; tests leave it as it is."""
    return small_bundle(tmp_path_factory.mktemp("compile"))


@pytest.mark.parametrize(
    ("target", "recipe", "attention", "updates"),
    [
        ("orin", "w4a16-g32", "fused", 8),
        ("orin-jp62", "w4a16-g32", "decomposed", 0),
        ("orin", "w8a16", "fused", 8),
        ("orin-jp62", "w8a16", "decomposed", 0),
        ("orin", "float16", "fused", 8),
    ],
)
def test_every_dialect_and_scheme_compiles(
    target: str, recipe: str, attention: str, updates: int, tmp_path: Path
) -> None:
    """Weights stay codes, caches are updated in place, attention is as the dialect says."""
    bundle = small_bundle(tmp_path, target, recipe)
    found = compiled(bundle)
    assert (found["status"], found["attention"]) == ("passed", attention)
    assert found["cache_updates"] == updates
    codes = [entry for entry in bundle.manifest.tensors if entry.role == "codes"]
    assert found["quantized_weights"] == len(codes)
    assert found["layers_compiled"] == found["layers"] == 4
    assert found["profiles"] == ["decode-1", "prefill"]
    assert found["target_version"] is (found["builder"] == "TensorRT")


def test_findings_repeat(whole_bundle: Bundle) -> None:
    """They stand in the manifest, so two checks find the same."""
    assert compiled(whole_bundle) == compiled(whole_bundle)


def test_shortened_graph_compiles(whole_bundle: Bundle) -> None:
    """First and last layer stand for the rest, which are shown to be the same; so it is said."""
    found = compiled(whole_bundle, full=False)
    assert (found["layers_compiled"], found["layers"], found["rest"]) == (2, 4, "isomorphic")
    assert (found["layer_kinds"], found["embedding_rows_compiled"]) == (1, 1024)
    assert found["cache_updates"] == 4


def test_attention_without_a_fused_kernel_is_decomposed(tmp_path: Path) -> None:
    """Heads of 320 have no kernel: attention is built of primitives, and the findings say so."""
    bundle = small_bundle(tmp_path, heads=2, kv_heads=2, head_dim=320, layers=1)
    assert compiled(bundle)["attention"] == "decomposed"


def test_refused_operator_is_named(tmp_path: Path) -> None:
    """The parser's error names the node and the operator."""

    def gelu(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "Sigmoid")
        node.op_type, node.domain = "FancyGate", "com.example"

    bundle = changed(small_bundle(tmp_path), gelu)
    with pytest.raises(
        GraphError, match=r"refuses standard.float16.onnx at node .*silu.*FancyGate"
    ):
        compiled(bundle)


def test_ignored_input_is_named(tmp_path: Path) -> None:
    """The parser drops Attention's nonpad_kv_seqlen without a word; the check does not."""

    def lengths(graph: onnx.GraphProto) -> None:
        graph.input.append(helper.make_tensor_value_info("lengths", TensorProto.INT64, ["batch"]))
        for node in graph.node:
            if node.op_type == "Attention":
                node.input.extend(["", "", "lengths"])

    bundle = changed(small_bundle(tmp_path), lengths)
    with pytest.raises(GraphError, match=r"ignores input 6 of Attention .* nothing reads lengths"):
        compiled(bundle)


def test_weight_that_became_float16_is_named(tmp_path: Path) -> None:
    """A dequantization that was folded into a float16 constant is caught by the weight's name."""

    def fold(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "DequantizeLinear")
        codes = next(tensor for tensor in graph.initializer if tensor.name == node.input[0])
        dense = np.ones(tuple(codes.dims), np.float16)
        graph.initializer.append(onnx.numpy_helper.from_array(dense, node.output[0]))
        graph.node.remove(node)

    bundle = changed(small_bundle(tmp_path), fold)
    with pytest.raises(GraphError, match=r"layers.0.self_attn.q_proj.codes is stored as int4"):
        compiled(bundle)


def test_widened_engine_is_refused() -> None:
    """An engine whose weights outgrow the stored ones is refused, whatever the network says."""
    answer: dict[str, Any] = {
        "kept": [0], "dequantized": [], "stored_bytes": 100_000_000, "dense_bytes": 0,
        "profiles": ["decode-1", "prefill"], "weights_bytes": 112_000_000, "census": {},
        "layer_types": {},
    }  # fmt: skip
    with pytest.raises(GraphError, match="weights were widened"):
        judge(answer, (), "standard.float16")
    judge({**answer, "weights_bytes": 110_000_000}, (), "standard.float16")
    answer |= {"weights_bytes": 0, "census": {"TensorScatter": 2}}
    answer["layer_types"] = {"KV_CACHE_UPDATE": 1}
    with pytest.raises(GraphError, match="2 TensorScatter became 1 cache updates"):
        judge(answer, (), "standard.float16")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("os.kill(os.getpid(), 9)", "was killed in 'Building': most likely memory ran out"),
        ("os.kill(os.getpid(), 11)", "ended by SIGSEGV in 'Building'"),
        ("sys.stderr.write('std::bad_alloc\\n'); sys.exit(3)", "exit status 3 .*std::bad_alloc"),
    ],
)
def test_a_worker_that_dies_is_an_error(body: str, message: str, whole_bundle: Bundle) -> None:
    """The builder's crash or an out-of-memory kill becomes one clear line."""
    script = f'import os, sys; print(\'{{"phase": "Building"}}\', flush=True); {body}'
    with pytest.raises(EngineError, match=message):
        compiled(whole_bundle, command=(sys.executable, "-c", script))


def test_builder_without_memory_is_an_error(whole_bundle: Bundle) -> None:
    """A real builder that gets no more memory ends in an EngineError, never in a finding."""
    limited = ("bash", "-c", 'ulimit -v 700000; exec "$@"', "bash", *WORKER)
    with pytest.raises(EngineError):
        compiled(whole_bundle, command=limited)


def test_engine_to_keep_needs_its_plans_tensorrt(whole_bundle: Bundle) -> None:
    """An engine that would be kept is refused before anything is built."""
    plan = EnginePlan.from_dict({**whole_bundle.manifest.engine_plans[0], "tensorrt": ">=99"})
    path = whole_bundle.path / whole_bundle.graph("target").path
    model = onnx.load(path, load_external_data=False)
    kept: list[memoryview] = []
    with pytest.raises(EngineError, match="needs TensorRT >=99"):
        build_engine(model, path, plan, find_builder(), sink=kept.append)
    assert not kept


def test_build_and_verify_say_what_was_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest, both tables and both documents have the findings."""
    small_bundle(tmp_path)  # makes the checkpoint
    built = cli(capsys, "build", tmp_path / "checkpoint", "--target", "orin", "--recipe",
                "w4a16-g32", "--max-context", 64, "--out", tmp_path / "b")  # fmt: skip
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["compile_check"] == built["compile_check"]
    assert built["compile_check"]["status"] == "passed"
    assert manifest["engine_plans"][0]["cache_capacity"] == 64
    assert cli(capsys, "verify", tmp_path / "b")["compile_check"] == built["compile_check"]
    found = cli(capsys, "verify", tmp_path / "b", "--no-run")["compile_check"]
    assert found == {"status": "not run", "reason": "verified with --no-run"}


def test_check_that_was_not_run_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a builder, by option, or without TensorRT on the target: never silently."""

    def none() -> None:
        raise MissingExtraError("the TensorRT compile check", "trt-check")

    small_bundle(tmp_path)
    monkeypatch.setattr(stage, "find_builder", none)
    arguments = ("build", tmp_path / "checkpoint", "--recipe", "w4a16-g32", "--no-check")
    reasons = {
        "no TensorRT builder is installed": ("--target", "orin"),
        "built with --no-compile-check": ("--target", "orin", "--no-compile-check"),
        "the target runs no TensorRT": ("--target", "cpu"),
    }
    for index, (reason, options) in enumerate(reasons.items()):
        built = cli(capsys, *arguments, *options, "--out", tmp_path / str(index))
        assert built["compile_check"]["status"] == "not run"
        assert reason in built["compile_check"]["reason"]
    with pytest.raises(SystemExit):
        main([*map(str, arguments), "--target", "cpu", "--no-compile-check", "--out",
              str(tmp_path / "x")])  # fmt: skip
    assert "leaves nothing out" in capsys.readouterr().err


def cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments), "--json"])
    text = capsys.readouterr().out
    assert caught.value.code == os.EX_OK, text
    data: dict[str, Any] = json.loads(text)
    return data
