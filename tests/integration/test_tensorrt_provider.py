"""TensorRT as a provider of `load_bundle`, `run`, `verify` and `eval`, and what it cannot do."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from fake_tensorrt import FakeCuda
from session_cases import random_tokens
from tensorrt_cases import CONTEXT, INFO, SLOTS, FakeMachine, float_bundle, plan_of, planned
from trt_cases import small_bundle

from edgekit.bundle.reader import Bundle
from edgekit.cli.main import main
from edgekit.engine import tensorrt
from edgekit.engine.load import load_bundle
from edgekit.engine.ort import OrtSession
from edgekit.engine.tensorrt import TensorRTSession
from edgekit.errors import EdgekitError, EngineError, GraphError, MissingExtraError
from edgekit.pipeline.evaluate import EvalRequest, evaluate_bundle
from edgekit.pipeline.verify import verify_bundle
from edgekit.trt import cuda as cuda_module
from edgekit.trt import device_build
from edgekit.trt.cuda import load_cuda
from edgekit.trt.device_build import Machine
from edgekit.trt.engine_cache import EngineCache
from edgekit.trt.module import BuilderInfo

SCHEMAS = Path(__file__).parents[2] / "docs/schemas"
REFUSED = GraphError("TensorRT's parser refuses standard.onnx at node layers.0.mul (FancyMul)")
NO_MEMORY = EngineError("TensorRT ran out of memory building standard", "Free memory")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return float_bundle(tmp_path_factory.mktemp("provider"))


@pytest.fixture(scope="module")
def bundle(plain: Bundle) -> Bundle:
    return planned(plain, plan_of(plain))


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def orin(cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    monkeypatch.setenv("EDGEKIT_ENGINES", str(tmp_path / "engines"))
    return FakeMachine(monkeypatch, cuda)


def test_a_bundle_is_loaded_from_the_cache_of_engines(
    bundle: Bundle, orin: FakeMachine, cuda: FakeCuda, tmp_path: Path
) -> None:
    """The engine is built once, held while it is open, and everything is freed."""
    engines = tmp_path / "engines"
    for _ in range(2):
        model = load_bundle(bundle, provider="tensorrt", max_sequences=2)
        assert isinstance(model.session, TensorRTSession)
        assert np.isfinite(model.session.prefill(0, random_tokens(9))).all()
        assert model.warnings == ()
        assert not EngineCache(engines)._evict_one(next(engines.glob("*.engine")))
        model.session.close()
        model.session.close()
    assert len(orin.made) == 1
    assert not cuda.device
    assert EngineCache(engines)._evict_one(next(engines.glob("*.engine")))


def test_what_can_be_refused_is_refused_before_a_build(
    plain: Bundle, bundle: Bundle, orin: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many sequences, no plan, another dialect, other versions, no GPU: nothing is built."""
    rtx = BuilderInfo("tensorrt_rtx", "TensorRT-RTX", "1.7.1.116", "8.6")
    cases: list[tuple[Bundle, Machine, dict[str, Any], str]] = [
        (bundle, orin.machine, {"max_sequences": 9}, "decodes 4 sequences at once, not 9"),
        (bundle, orin.machine, {"dialect": "ort"}, "plans no engine of its ort graph"),
        (plain, orin.machine, {}, "has no engine plan"),
        (bundle, Machine(replace(INFO, version="10.3.0"), None), {}, "needs TensorRT >=10.15,<12"),
        (bundle, Machine(rtx, None), {}, "needs an NVIDIA GPU and its driver, and neither"),
    ]
    monkeypatch.setattr(device_build, "gpu_sm", lambda: None)
    for refused, machine, options, said in cases:
        orin.machine = machine
        with pytest.raises(EngineError, match=said):
            load_bundle(refused, provider="tensorrt", **options)
    monkeypatch.setattr(tensorrt, "gpu_sm", lambda: "9.0")
    with pytest.raises(
        EngineError, match=r"of SM 9\.0, for which TensorRT-RTX 1\.7\.1\.116 builds"
    ):
        load_bundle(bundle, provider="tensorrt")
    assert orin.made == []


def test_no_tensorrt_and_no_cuda_are_said(
    bundle: Bundle, orin: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without either is told what to install; with a fallback it runs, and says so."""

    def no_cuda() -> None:
        raise MissingExtraError("Running a TensorRT engine", "tensorrt")

    monkeypatch.setattr(tensorrt, "load_cuda", no_cuda)
    with pytest.raises(MissingExtraError, match=r"edgekit\[tensorrt\]"):
        load_bundle(bundle, provider="tensorrt")

    def nothing() -> None:
        raise EngineError("this machine has no TensorRT with a GPU", "On a Jetson: apt install")

    monkeypatch.setattr(tensorrt, "find_machine", nothing)
    with pytest.raises(EngineError, match="no TensorRT"):
        load_bundle(bundle, provider="tensorrt")
    model = load_bundle(bundle, provider="tensorrt", fallback="cpu", threads=1)
    assert isinstance(model.session, OrtSession)
    assert model.warnings == (
        "not run on TensorRT but in ONNX Runtime on cpu: this machine has no TensorRT with a GPU. "
        "On a Jetson: apt install",
    )
    model.session.close()
    assert orin.made == []


def test_cuda_bindings_are_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_module, "_MODULE", "no_such_cuda.bindings.runtime")
    with pytest.raises(MissingExtraError, match=r"edgekit\[tensorrt\]"):
        load_cuda()


def test_an_engine_that_is_not_built_is_named(
    bundle: Bundle, orin: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without onnx nothing is built: the error says for what, and what the cache has."""
    load_bundle(bundle, provider="tensorrt").session.close()
    orin.machine = Machine(replace(INFO, version="10.16.3", sm="10.1"), "39.3.0")

    def build(*arguments: Any) -> dict[str, Any]:
        raise AssertionError(arguments)

    monkeypatch.setattr(device_build, "_build", build)
    monkeypatch.setattr("importlib.util.find_spec", {"onnx": None}.get)
    name = INFO.module
    with pytest.raises(MissingExtraError) as caught:
        load_bundle(bundle, provider="tensorrt")
    assert f"{name} 10.16.3 on SM 10.1 under L4T 39.3.0 is not built" in caught.value.message
    assert f"has one for {name} 10.16.2.10 on SM 8.7 under L4T 39.2.0" in caught.value.message


def test_a_damaged_engine_is_built_again(bundle: Bundle, orin: FakeMachine, tmp_path: Path) -> None:
    """The cache's damage costs a build, never a wrong answer."""
    load_bundle(bundle, provider="tensorrt").session.close()
    os.truncate(next((tmp_path / "engines").glob("*.engine")), 20)
    load_bundle(bundle, provider="tensorrt").session.close()
    assert len(orin.made) == 2


@pytest.mark.parametrize("failure", [REFUSED, NO_MEMORY])
def test_a_failed_build_is_an_error_or_a_fallback(
    failure: EdgekitError, bundle: Bundle, orin: FakeMachine
) -> None:
    """Nothing is there: the error is the builder's, and a fallback is taken only where allowed."""
    orin.failure = failure
    with pytest.raises(type(failure)) as caught:
        load_bundle(bundle, provider="tensorrt")
    assert caught.value is failure
    model = load_bundle(bundle, provider="tensorrt", fallback="cpu", threads=1, max_sequences=2)
    assert failure.message in model.warnings[0]
    assert model.session.max_sequences == 2
    model.session.close()


def test_a_failed_build_leaves_the_engine_that_is_there(
    plain: Bundle, bundle: Bundle, orin: FakeMachine, cuda: FakeCuda
) -> None:
    """Of the same graph and weights, built for another plan or L4T: it runs, by its own plan."""
    load_bundle(bundle, provider="tensorrt").session.close()
    orin.failure = NO_MEMORY
    wider = planned(plain, plan_of(plain, max_sequences=8))
    for machine in (orin.machine, Machine(INFO, "39.2.1")):
        orin.machine = machine
        model = load_bundle(wider, provider="tensorrt", fallback="cpu")
        assert isinstance(model.session, TensorRTSession)
        (warning,) = model.warnings
        assert "out of memory" in warning
        assert "another plan or L4T runs instead" in warning
        assert np.isfinite(model.session.prefill(0, random_tokens(9))).all()
        model.session.close()
    with pytest.raises(EngineError, match="decodes 4 sequences at once, not 8"):
        load_bundle(wider, provider="tensorrt", max_sequences=8)
    assert not cuda.device
    orin.machine = Machine(replace(INFO, sm="8.9"), "39.2.1")
    with pytest.raises(EngineError, match="ran out of memory"):
        load_bundle(wider, provider="tensorrt")


def test_verify_and_eval_run_on_tensorrt(bundle: Bundle, orin: FakeMachine, tmp_path: Path) -> None:
    """The golden sequences pass; perplexity is ONNX Runtime's; nothing stands in for verify."""
    report = verify_bundle(bundle, provider="tensorrt", graphs=False)
    (golden,) = report["golden"].values()
    assert golden["passed"]
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    found = {}
    for provider in ("cpu", "tensorrt"):
        request = EvalRequest(
            text=text, window=CONTEXT // 2, text_tokens=CONTEXT, provider=provider, threads=1
        )
        found[provider] = evaluate_bundle(bundle, request)["perplexity"]
    assert found["tensorrt"] == pytest.approx(found["cpu"], rel=1e-3)
    assert bundle.manifest.limits["max_sequences"] == SLOTS < 8
    orin.failure, orin.machine = NO_MEMORY, Machine(INFO, "39.2.1")
    with pytest.raises(EngineError, match="ran out of memory"):
        verify_bundle(bundle, provider="tensorrt", graphs=False)


def test_run_warns_of_the_fallback(
    orin: FakeMachine,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The command runs on the CPU where it may, and says so, in JSON too; else it exits with 11."""
    orin.failure = NO_MEMORY
    path = str(small_bundle(tmp_path, layers=1).path)
    command = ["run", path, "58 + 67", "--max-tokens", "2", "--temperature", "0"]
    command += ["--provider", "tensorrt", "--threads", "1"]
    code, _, err = invoke(command, capsys)
    assert (code, "ran out of memory" in err) == (11, True)
    code, out, err = invoke([*command, "--fallback", "cpu"], capsys)
    assert (code, "warning not run on TensorRT" in err) == (0, True)
    assert out.strip()
    code, out, _ = invoke([*command, "--fallback", "cpu", "--json"], capsys)
    document = json.loads(out)
    jsonschema.validate(document, json.loads((SCHEMAS / "run.schema.json").read_text()))
    assert "ran out of memory" in document["warnings"][0]
    code, _, err = invoke(["run", path, "x", "--fallback", "cpu"], capsys)
    assert (code, "--fallback does nothing with --provider cpu" in err) == (2, True)


def invoke(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[Any, str, str]:
    """Run the command line; returns its exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as caught:
        main(command)
    captured = capsys.readouterr()
    return caught.value.code, captured.out, captured.err


def test_bundle_without_a_plan_is_refused_by_the_command(
    plain: Bundle, orin: FakeMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = invoke(["run", str(plain.path), "Hello", "--provider", "tensorrt"], capsys)
    assert (code, "has no engine plan" in err, orin.made) == (11, True, [])
