"""The engine plan a manifest carries, and the version ranges in it."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from edgekit.cli.commands import build, verify
from edgekit.contracts.engine_plan import EnginePlan, input_shapes, plan_engine
from edgekit.contracts.versions import in_range
from edgekit.errors import (
    BundleError,
    EdgekitError,
    EngineError,
    GraphError,
    MissingExtraError,
)
from edgekit.pipeline.compiled import with_remedy
from edgekit.trt import module
from edgekit.trt.module import (
    BuilderInfo,
    MessageLog,
    NoBuilderError,
    find_builder,
    require_version,
)
from edgekit.worker_process import error_from


def plan(context: int = 4096, sequences: int = 8) -> EnginePlan:
    return plan_engine(
        "standard.float16",
        ">=10.15,<12",
        max_context=context,
        max_sequences=sequences,
        chunk_tokens=512,
    )


def test_plan_round_trips() -> None:
    """What a manifest holds reads back to the same plan, unknown fields passed over."""
    values = {**plan().to_dict(), "later": 1}
    assert EnginePlan.from_dict(values) == plan()


@pytest.mark.parametrize(
    ("sequences", "names"),
    [
        (1, ["decode-1", "prefill"]),
        (6, ["decode-1", "decode-2", "decode-4", "decode-6", "prefill"]),
        (8, ["decode-1", "decode-2", "decode-4", "decode-8", "prefill"]),
    ],
)
def test_profiles_reach_the_sequences(sequences: int, names: list[str]) -> None:
    """Batches are powers of two up to the bundle's sequences, which are the last batch."""
    assert [profile.name for profile in plan(sequences=sequences).profiles] == names


def test_prefill_fits_a_short_cache() -> None:
    """TensorRT refuses an update longer than the cache, so the chunk is cut to it."""
    short = plan(context=100)
    assert short.profiles[-1].max_tokens == 100
    shapes = input_shapes(short, short.profiles[-1], "attention_mask", (-1, 1, -1, -1))
    assert shapes == ((1, 1, 1, 100), (1, 1, 100, 100), (1, 1, 100, 100))


def test_mask_is_as_wide_as_the_cache() -> None:
    """A mask of width 1 would be broadcast over the cache without a word: no profile allows it."""
    for profile in plan().profiles:
        shapes = input_shapes(plan(), profile, "attention_mask", (-1, 1, -1, -1))
        assert {shape[-1] for shape in shapes} == {4096}


def test_unknown_input_is_refused() -> None:
    """An input that no profile has a shape for is named."""
    with pytest.raises(BundleError, match="nonpad_kv_seqlen"):
        input_shapes(plan(), plan().profiles[0], "nonpad_kv_seqlen", (-1,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"profiles": []}, "no profile"),
        ({"cache_capacity": 0}, "cache_capacity"),
        ({"cache_capacity": 100}, "prefill has 32 wanted of 512 tokens in a cache of 100"),
        ({"tensorrt": "about 10"}, "not a range"),
        ({"strongly_typed": 1}, "strongly_typed"),
        ({"profiles": [{"name": "x"}]}, "lacks 'batch'"),
    ],
)
def test_bad_plans_are_refused(change: dict[str, Any], message: str) -> None:
    """A plan that could not be built is refused when it is read."""
    with pytest.raises(BundleError, match=message):
        EnginePlan.from_dict({**plan().to_dict(), **change})


@pytest.mark.parametrize(
    ("version", "wanted", "inside"),
    [
        ("10.16.2.10", ">=10.15,<12", True),
        ("10.3.0", ">=10.15,<12", False),
        ("12.0", ">=10.15,<12", False),
        ("10.3.0.30", ">=10.3,<10.4", True),
        ("10.15", ">=10.15.0", True),
        ("11.1.0rc1", ">10,!=11", True),
        ("1.7.1.116", "", True),
    ],
)
def test_version_ranges(version: str, wanted: str, inside: bool) -> None:  # noqa: FBT001 - a case
    """Releases compare number by number, not as text."""
    assert in_range(version, wanted) is inside


def test_wrong_tensorrt_is_refused() -> None:
    """An engine to keep is not built by another TensorRT than its plan's, nor by TensorRT-RTX."""
    for builder in (
        BuilderInfo("tensorrt", "TensorRT", "10.3.0.30", "8.7"),
        BuilderInfo("tensorrt_rtx", "TensorRT-RTX", "10.16.2", "8.6"),
    ):
        with pytest.raises(EngineError, match=f"has {builder.name} {builder.version}"):
            require_version(builder, ">=10.15,<12")
    require_version(BuilderInfo("tensorrt", "TensorRT", "10.16.2.10", "8.7"), ">=10.15,<12")


def test_reason_is_not_that_there_is_no_gpu() -> None:
    """A builder without a GPU says so after every error; that is not what failed."""
    log = MessageLog()
    log.take("Error Code 4: kOPT values violate\nshape constraints", is_error=True)
    log.take("[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime", is_error=True)
    log.take("Total Weights Memory: 6064264 bytes", is_error=False)
    assert log.reason() == "Error Code 4: kOPT values violate shape constraints"
    assert log.weights_bytes == 6064264


@pytest.mark.parametrize(
    ("gpu", "installed", "found"),
    [
        ("8.7", {"tensorrt", "tensorrt_rtx_bindings"}, ("tensorrt", "TensorRT", "8.7")),
        (
            None,
            {"tensorrt", "tensorrt_rtx_bindings"},
            ("tensorrt_rtx_bindings", "TensorRT-RTX", "8.6"),
        ),
        ("9.0", {"tensorrt_rtx"}, ("tensorrt_rtx", "TensorRT-RTX", "8.6")),
    ],
)
def test_tensorrt_with_a_gpu_comes_first(
    gpu: str | None,
    installed: set[str],
    found: tuple[str, str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TensorRT needs a GPU to build; without one TensorRT-RTX is used, and said to be it."""
    monkeypatch.setattr(module, "gpu_sm", lambda: gpu)
    monkeypatch.setattr(module, "_version", lambda name: f"1.{len(name)}")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name in installed else None
    )
    builder = find_builder()
    assert (builder.module, builder.name, builder.sm) == found


@pytest.mark.parametrize("installed", [{"tensorrt", "tensorrt_rtx"}, {"tensorrt"}])
def test_tensorrt_of_other_versions_is_passed_over(
    installed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TensorRT outside the plan's versions is not taken; what is taken instead says why."""
    monkeypatch.setattr(module, "gpu_sm", lambda: "8.7")
    monkeypatch.setattr(module, "_version", {"tensorrt": "8.6.1", "tensorrt_rtx": "1.7"}.get)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name in installed else None
    )
    assert find_builder(">=8,<9") == BuilderInfo("tensorrt", "TensorRT", "8.6.1", "8.7")
    why = "TensorRT 8.6.1 is installed, the engine plan takes >=10.15,<12"
    if "tensorrt_rtx" in installed:
        other = BuilderInfo("tensorrt_rtx", "TensorRT-RTX", "1.7", "8.6", why)
        assert find_builder(">=10.15,<12") == other
        return
    with pytest.raises(NoBuilderError, match=r"\[trt-check\]', or TensorRT >=10.15,<12") as caught:
        find_builder(">=10.15,<12")
    assert caught.value.reason == why


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (EngineError("m", "Free memory"), "Free memory; --no-compile-check leaves"),
        (GraphError("m"), "This is TensorRT-RTX, the device has TensorRT >=10.15,<12, which may"),
    ],
)
def test_a_failed_check_says_what_to_do(error: EdgekitError, remedy: str) -> None:
    """Every error of the check has a remedy, with an option that build and verify both have."""
    found = with_remedy(error, BuilderInfo("m", "TensorRT-RTX", "1.7", "8.6"), ">=10.15,<12")
    assert type(found) is type(error)
    assert found.remedy.startswith(remedy)
    assert found.remedy.endswith("--no-compile-check leaves the check out")
    own = with_remedy(GraphError("m"), BuilderInfo("m", "TensorRT", "11.0", "8.7"), ">=10.15,<12")
    assert own.remedy.startswith("The device would fail alike")
    for command in (build.command, verify.command):
        assert "--no-compile-check" in [name for x in command.params for name in x.opts]


def test_no_builder_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any builder the error says how to get one."""
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    with pytest.raises(MissingExtraError, match=r"edgekit\[trt-check\]"):
        find_builder()


def test_a_workers_error_keeps_its_kind() -> None:
    """What fails in the worker's process is the same error here, exit code and all."""
    error = error_from({"kind": "GraphError", "message": "m", "remedy": "r"})
    assert (type(error), error.message, error.remedy) == (GraphError, "m", "r")
    assert (
        type(error_from({"kind": "NoFusedKernelError", "message": "m", "remedy": ""}))
        is EngineError
    )
