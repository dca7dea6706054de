"""The parts put together: what an agent needs of this package, made of its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from device.agent.config import AgentConfig
from device.diagnostics.bundle import Part, pack
from device.diagnostics.sources import facts_of, kernel_tail, versions
from device.remote.commands import handlers
from device.remote.config import FleetConfig
from device.remote.effective import TELEMETRY, Effective, Leaks, Local, alarm_table, describe
from device.remote.exchange import Exchange
from device.remote.gate import Gate
from device.remote.puller import Puller
from device.remote.remote import Remote
from device.remote.state import StateFile
from device.routing.remote import SHUT
from device.telemetry.clock import Clock
from device.telemetry.tuning import Tuning
from edgekit.signing import TrustedKeys


def local_of(config: AgentConfig) -> Local:
    """Return the owner's word, as the agent's file has it."""
    policy = SHUT if config.routing is None else config.routing.policy
    # Nothing in this release writes prompts down, so nothing may.
    leaks, telemetry = Leaks(policy, log_prompts=False), config.telemetry
    if telemetry is None:
        return Local(leaks)
    return Local(leaks, alarm_table(telemetry.alarms), telemetry.sample_s, telemetry.batch_s)


def tuning_of(effective: Effective, own: Tuning) -> Tuning:
    """Return what holds of the telemetry's settings.

    Args:
        effective: What holds of all.
        own: The owner's, for what nobody else has set.
    """
    said = {name: value for name in TELEMETRY if (value := getattr(effective, name)) is not None}
    return replace(own, rules=effective.rules, **said)


def make_remote(
    fleet: FleetConfig, local: Local, clock: Clock, apply: Callable[[Effective], None]
) -> Remote:
    """Return what takes documents up.

    Args:
        fleet: The table ``[fleet]``.
        local: The owner's word.
        clock: The device's.
        apply: Lets a configuration hold; called before this returns.

    Raises:
        TrustError: The file of trusted keys is missing, or not what it should be.
        StorageError: The file of what was taken up cannot be opened.
        TelemetryError: A rule of the owner's cannot work.
    """
    gate = Gate(fleet.identity, fleet.cohorts, TrustedKeys.load(Path(fleet.trusted_keys)))
    return Remote(gate, StateFile(Path(fleet.state_file)), local, clock, apply)


def make_puller(
    fleet: FleetConfig,
    remote: Remote,
    clock: Clock,
    go_live: Callable[[float], None],
    parts: Sequence[Part],
) -> Puller:
    """Return what looks for documents: run it, and tell it of notices and connections.

    Args:
        fleet: The table ``[fleet]``.
        remote: Takes documents up.
        clock: The device's.
        go_live: Has telemetry send every sample at once for so many seconds.
        parts: Of a diagnostic bundle.
    """
    exchange = Exchange(fleet)
    commands = handlers(go_live, lambda: pack(parts, clock.time_ms()), exchange)
    return Puller(remote, exchange, commands, fleet.interval_s)


def bundle_parts(
    config: AgentConfig,
    log: Callable[[], Sequence[str]],
    readings: Callable[[], Mapping[str, Any]],
    remote: Remote | None,
) -> tuple[Part, ...]:
    """Return the parts of a bundle.

    Args:
        config: The agent's.
        log: Returns the log's last lines.
        readings: Returns what the sensors, the engine and the ring last said.
        remote: What was said from afar.
    """
    return (
        Part("versions.json", "facts", versions),
        Part("config.json", "facts", lambda: facts_of(config)),
        Part("remote.json", "facts", lambda: None if remote is None else told_of(remote)),
        Part("readings.json", "facts", readings),
        Part("log.jsonl", "events", log),
        Part("kernel.log", "lines", kernel_tail),
    )


def told_of(remote: Remote) -> dict[str, Any]:
    """Return what holds and because of what, in JSON's types."""
    return {
        "effective": describe(remote.effective),
        "documents": remote.describe(),
        "outcomes": dict(remote.readings()),
        "told": remote.details(),
    }
