"""What the agent tells its telemetry: the server's counters, which model it serves, what holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import Counter

from device.agent.config import AgentConfig
from device.agent.models import Models
from device.api.metrics import Metrics
from device.telemetry.sensors.files import read_text
from edgekit.contracts.series import Number, Values
from edgekit.errors import MissingExtraError

if TYPE_CHECKING:  # paho takes memory, and an agent without the table needs none of it
    from device.agent.fleet import Fleet
    from device.telemetry.clock import Clock
    from device.telemetry.service import Telemetry

_STATUS = Path("/proc/self/status")


def make_telemetry(
    config: AgentConfig,
    models: Models,
    metrics: Metrics,
    fleet: Fleet | None = None,
    clock: Clock | None = None,
) -> Telemetry | None:
    """Return the telemetry that a configuration asks for; None without its table.

    Args:
        config: The agent's.
        models: Tells which one is served.
        metrics: The server's.
        fleet: Is told of notices, and says what holds; None where nobody does.
        clock: The device's.

    Raises:
        MissingExtraError: The extra ``telemetry`` is not installed.
    """
    if config.telemetry is None:
        return None
    try:
        from device.telemetry.service import Telemetry  # noqa: PLC0415 - see above
    except ModuleNotFoundError as error:
        raise MissingExtraError("sending telemetry", "telemetry", "or leave [telemetry] out") from (
            error
        )
    own = config.telemetry
    counters: dict[str, Callable[[], Values]] = {
        "server": lambda: server_values(metrics),
        "engine": lambda: engine_values(config, models),
    }
    if fleet is None:
        return Telemetry(own, counters=counters, details=lambda: model_details(models), clock=clock)
    return Telemetry(
        own,
        counters={**counters, "remote": fleet.remote.readings},
        details=lambda: {**model_details(models), **fleet.remote.details()},
        tuning=lambda: fleet.tuning or own.tuning,
        on_notice=fleet.puller.notice,
        on_connect=fleet.puller.connected,
        clock=clock,
    )


def server_values(metrics: Metrics) -> Values:
    """Return the server's readings; any thread may call it."""
    live = list(metrics.live)
    refused = _sum(metrics.refused)
    return {
        "requests_running": int(sum(model.read("running") for model in live)),
        "requests_waiting": int(sum(model.read("waiting") for model in live)),
        "requests_total": _sum(metrics.ended) + refused,
        "requests_failed_total": refused,
        "prompt_tokens_total": _sum(metrics.prompt),
        "generated_tokens_total": _sum(metrics.generated),
    }


def engine_values(config: AgentConfig, models: Models, status: Path = _STATUS) -> Values:
    """Return what the engine on CPUs holds, and of what; nothing for another or without a model.

    Memory of CUDA and TensorRT is in no number of this process; ``memory_used_ratio`` has it on a
    Jetson, whose memory is one.

    Args:
        config: Says where the model runs.
        models: Has it, or not.
        status: ``/proc/self/status``.
    """
    if config.provider != "cpu" or models.current is None:
        return {}
    from device.agent.memory import read_memory  # noqa: PLC0415 - NumPy, which a model has loaded

    for line in (read_text(status) or "").splitlines():
        name, _, rest = line.partition(":")
        if name == "VmRSS":
            return {
                "engine_memory_bytes": int(rest.split()[0]) * 1024,
                "engine_memory_budget_bytes": read_memory().total_bytes,
            }
    return {}


def model_details(models: Models) -> Mapping[str, str | Number | None]:
    """Return what a birth tells of the model."""
    current = models.current
    return {
        "state": models.state,
        "model": None if current is None else current.name,
        "digest": None if current is None else current.bundle.digest,
    }


def _sum(counter: Counter) -> int:
    """Return a counter's sum over its labels."""
    return int(
        sum(
            sample.value
            for family in counter.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        )
    )
