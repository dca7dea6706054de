"""The series: what is counted of a token and of a request, and vLLM's names for it."""

from __future__ import annotations

import re

from scheduler_cases import Engine, ask, lasting

from device.api.metrics import Metrics
from device.runtime.gaps import BOUNDS_S, Gaps
from device.runtime.scheduler import Scheduler

LABEL = 'model_name="r1"'


class Clock:
    """Goes on by a step whenever it is read."""

    def __init__(self, step_s: float) -> None:
        self.now_s, self._step_s = 100.0, step_s

    def __call__(self) -> float:
        self.now_s += self._step_s
        return self.now_s


def sample(text: str, name: str) -> float:
    (found,) = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found)


def served(metrics: Metrics, tokens: int, step_s: float = 0.004) -> None:
    """Let an engine answer one request, counted as the model r1's."""
    clock, own = Clock(step_s), metrics.of("r1", "d")
    scheduler = Scheduler(Engine(), clock=clock, gaps=own.gaps)
    own.watch(scheduler)
    request = ask(lasting(tokens), tokens)
    scheduler.submit(request)
    while scheduler.step():
        pass
    own.ended(request, clock.now_s)
    own.close()


def test_a_gap_is_in_its_bucket() -> None:
    """Bounds belong to the bucket below them, as Prometheus has it; the last has the rest."""
    gaps = Gaps()
    for seconds in (0.0, 0.001, 0.0011, 5.0, 6.0):
        gaps.observe(seconds)
    buckets = dict(gaps.buckets())
    assert buckets["0.001"] == 2
    assert buckets["0.0025"] == 3
    assert (buckets["5.0"], buckets["+Inf"]) == (4, 5)
    assert gaps.total_s == 0.0 + 0.001 + 0.0011 + 5.0 + 6.0
    assert list(BOUNDS_S) == sorted(set(BOUNDS_S))


def test_tokens_and_times_of_requests() -> None:
    """Every token after the first is a gap; prefill, decode and time per token add up."""
    metrics = Metrics()
    served(metrics, 20)
    text = metrics.exposition().decode()
    assert sample(text, f"edgekit_inter_token_latency_seconds_count{{{LABEL}}}") == 19
    decode = sample(text, f"edgekit_request_decode_time_seconds_sum{{{LABEL}}}")
    gaps = sample(text, f"edgekit_inter_token_latency_seconds_sum{{{LABEL}}}")
    assert abs(decode - gaps) <= 0.004 + 1e-9  # the first token's sampling
    per_token = sample(text, f"edgekit_request_time_per_output_token_seconds_sum{{{LABEL}}}")
    assert abs(per_token - decode / 19) < 1e-9
    assert sample(text, f"edgekit_request_prompt_tokens_sum{{{LABEL}}}") == 2
    assert sample(text, f"edgekit_request_generation_tokens_sum{{{LABEL}}}") == 20
    assert sample(text, f"edgekit_prefix_cache_queries_total{{{LABEL}}}") == 2
    prefill = sample(text, f"edgekit_request_prefill_time_seconds_sum{{{LABEL}}}")
    queue = sample(text, f"edgekit_request_queue_time_seconds_sum{{{LABEL}}}")
    first = sample(text, f"edgekit_time_to_first_token_seconds_sum{{{LABEL}}}")
    assert abs(queue + prefill - first) < 1e-9


def test_one_token_has_no_time_per_token() -> None:
    """Nor a gap."""
    metrics = Metrics()
    served(metrics, 1)
    text = metrics.exposition().decode()
    assert sample(text, f"edgekit_request_generation_tokens_count{{{LABEL}}}") == 1
    assert f"edgekit_request_time_per_output_token_seconds_count{{{LABEL}}}" not in text
    assert sample(text, f"edgekit_inter_token_latency_seconds_count{{{LABEL}}}") == 0


def test_what_was_counted_stays_when_a_model_goes() -> None:
    """Two engines of one name are one series, living or gone; gauges are of those that live."""
    metrics = Metrics()
    served(metrics, 20)
    served(metrics, 10)
    text = metrics.exposition().decode()
    assert sample(text, f"edgekit_inter_token_latency_seconds_count{{{LABEL}}}") == 19 + 9
    assert f"edgekit_num_requests_running{{{LABEL}}}" not in text
    assert "edgekit_model_info{" not in text
    living = metrics.of("r1", "d")
    living.gaps.observe(1.0)
    engine = Engine(2)
    scheduler = Scheduler(engine, gaps=living.gaps)
    living.watch(scheduler)
    scheduler.submit(ask(lasting(30), 30))
    for _ in range(12):
        scheduler.step()
    text = metrics.exposition().decode()
    # The prompt's chunk and the first decode are one step.
    held = len(engine.held[0])
    assert sample(text, f"edgekit_kv_cache_usage_perc{{{LABEL}}}") == held / (2 * 64)
    assert held > 10
    assert sample(text, f"edgekit_num_requests_running{{{LABEL}}}") == 1
    assert sample(text, f'edgekit_model_info{{digest="d",{LABEL}}}') == 1


def test_vllms_names() -> None:
    """Asked for, every series that vLLM has stands there twice with one value; its own do not."""
    metrics = Metrics()
    served(metrics, 20)
    metrics.swaps.labels("beside").inc()
    plain, both = metrics.exposition().decode(), metrics.exposition(vllm=True).decode()
    assert "vllm:" not in plain
    assert both.startswith(plain)
    for name in (
        f"time_to_first_token_seconds_count{{{LABEL}}}",
        f"inter_token_latency_seconds_sum{{{LABEL}}}",
        f"prompt_tokens_total{{{LABEL}}}",
        f'request_success_total{{finished_reason="length",{LABEL}}}',
    ):
        assert sample(both, f"vllm:{name}") == sample(both, f"edgekit_{name}")
    assert "# TYPE vllm:generation_tokens_total counter" in both
    assert "vllm:model" not in both
    assert "vllm:log" not in both
