"""Bytes, operations and times, by hand."""

from __future__ import annotations

import pytest

from edgekit.errors import EdgekitError
from edgekit.models.published_shapes import find_shape
from edgekit.plan.hardware import find_machine, machines, scenarios
from edgekit.plan.roofline import ENGINES, Engine, find_engine, sm_bytes_per_clock
from edgekit.plan.workload import uniform_workload
from edgekit.targets import TARGETS

QWEN3_8B = find_shape("DeepSeek-R1-0528-Qwen3-8B")


def test_bytes_of_a_step_are_counted_from_shapes() -> None:
    """Qwen3-8B, INT4 in groups of 128, float16 head: 4.83 GB, as counted by hand."""
    work = uniform_workload(QWEN3_8B, 4.125, 16)
    layer = 4096 * 4096 * 2 + 2 * 4096 * 1024 + 3 * 4096 * 12288
    assert work.linear_weights == 36 * layer
    assert work.head_weights == 4096 * 151936
    norms = 2 * (36 * (2 * 4096 + 2 * 128) + 4096)
    assert work.weight_bytes == 36 * layer * 4.125 / 8 + 2 * work.head_weights + norms
    assert work.cache_bytes_per_token == 147_456
    moved = work.decode_bytes(3, 100)
    assert moved == work.weight_bytes + 3 * (2 * 4096 + 100 * 147_456)
    assert work.decode_bytes(1, 0) / 1e9 == pytest.approx(4.83, abs=0.01)


def test_operations_are_two_a_weight() -> None:
    """A token multiplies and adds once a weight, and twice with each key and value."""
    work = uniform_workload(QWEN3_8B, 4, 4)
    weights = work.linear_weights + work.head_weights
    assert work.decode_flops(2, 10) == 2 * (2 * weights + 10 * 4 * 36 * 4096)
    assert work.prefill_flops(1) == pytest.approx(2 * weights, rel=1e-3)


def test_a_step_is_its_terms_added() -> None:
    """Bytes over bandwidth, and the fixed time of every layer."""
    machine = find_machine("orin")
    work = uniform_workload(QWEN3_8B, 4.125, 16)
    engine = Engine("e", "agx-orin-64gb", 0.5, 1e-4, 0.5, 0.25, 1e-5)
    step = engine.decode_step_s(work, machine, 1, 1000)
    assert step == pytest.approx(work.decode_bytes(1, 1000) / 102.4e9 + 36e-4)
    more = engine.decode_step_s(work, machine, 2, 1000)
    added = work.decode_flops(1, 0) / (0.25 * machine.fp16_flops_per_s) + 36e-5
    cache = (work.decode_bytes(2, 1000) - work.decode_bytes(1, 1000)) / 102.4e9
    assert more - step == pytest.approx(added + cache)
    prompt = engine.prefill_s(work, machine, 100)
    compute = work.prefill_flops(100) / (0.5 * machine.fp16_flops_per_s)
    assert prompt == pytest.approx(compute + work.weight_bytes / 102.4e9 + 36e-4)


def test_slower_modes_are_slower() -> None:
    """Every rate falls with the power mode; below full clocks the SMs limit the bandwidth."""
    work = uniform_workload(QWEN3_8B, 4.25, 4.25)
    for name in ("orin", "orin-32gb", "orin-nx-16gb"):
        machine = find_machine(name)
        engine, _ = find_engine("edge-llm", machine.calibration)
        budgets = [m for m in machine.modes if m.name not in {"25W", "15W"} or "nx" not in name]
        steps = [engine.decode_step_s(work, machine.in_mode(m.name), 1, 256) for m in budgets]
        assert steps == sorted(steps), name
    slow = find_machine("orin").in_mode("30W")
    engine, _ = find_engine("edge-llm", "agx-orin-64gb")
    assert engine.bandwidth(slow) == pytest.approx(8 * 612e6 * sm_bytes_per_clock())
    assert engine.bandwidth(find_machine("orin")) == pytest.approx(204.8e9 * 0.838446)


def test_machines_agree_with_the_targets() -> None:
    """A build target's machine has its memory and bandwidth, and 42.6 TFLOPS of dense FP16."""
    for name in ("orin", "orin-jp62", "orin-32gb"):
        machine = find_machine(name)
        assert machine.target == TARGETS[name]
        assert machine.bandwidth_bytes_per_s == TARGETS[name].bandwidth_bytes_per_s == 204.8e9
    assert find_machine("orin").fp16_flops_per_s == pytest.approx(42.5e12, rel=0.01)
    assert find_machine("orin-32gb").fp16_flops_per_s == pytest.approx(27e12, rel=0.01)
    references = [m.name for m in machines().values() if m.is_reference]
    assert references == ["a100-80gb", "h100-80gb", "ascend-910b"]
    assert machines()["a100-80gb"].fp16_flops_per_s == 312e12
    assert all(m.sources and m.power_w > 0 for m in machines().values())
    assert list(scenarios()) == ["edge", "lab", "cloud"]


def test_what_does_not_exist_is_named() -> None:
    """Machines, modes, engines and batches that are not there are errors with a list."""
    with pytest.raises(EdgekitError, match="Use one of: MAXN, 50W, 30W, 15W"):
        find_machine("orin").in_mode("20W")
    with pytest.raises(EdgekitError, match="it has none"):
        find_machine("a100-80gb").in_mode("MAXN")
    with pytest.raises(EdgekitError, match="unknown machine"):
        find_machine("nano")
    with pytest.raises(EdgekitError, match="edge-llm, mlc"):
        find_engine("vllm", "agx-orin-64gb")
    work = uniform_workload(QWEN3_8B, 4, 4)
    for name in ENGINES[1:]:
        engine, _ = find_engine(name, "agx-orin-64gb")
        assert engine.prefill_s(work, find_machine("orin"), 16) is None
        with pytest.raises(EdgekitError, match="more than one sequence"):
            engine.decode_step_s(work, find_machine("orin"), 2, 16)
