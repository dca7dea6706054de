"""What the agent tells its telemetry: the server's counters, and which model it serves."""

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
from edgekit.contracts.telemetry import CommandNotice
from edgekit.errors import MissingExtraError

if TYPE_CHECKING:  # paho takes memory, and an agent without the table needs none of it
    from device.telemetry.service import Telemetry

_STATUS = Path("/proc/self/status")


def make_telemetry(
    config: AgentConfig,
    models: Models,
    metrics: Metrics,
    on_notice: Callable[[CommandNotice], None] | None = None,
) -> Telemetry | None:
    """Return the telemetry that a configuration asks for; None without its table.

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
    return Telemetry(
        config.telemetry,
        counters={
            "server": lambda: server_values(metrics),
            "engine": lambda: engine_values(config, models),
        },
        details=lambda: model_details(models),
        on_notice=on_notice,
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
