"""A device that takes documents up, and those who sign them; for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device.remote.effective import CLOSED, Effective, Leaks, Local
from device.remote.gate import Gate
from device.remote.remote import Remote
from device.remote.state import StateFile
from device.routing.policy import Policy
from edgekit.contracts.canonical import canonical_bytes
from edgekit.contracts.envelope import Envelope
from edgekit.contracts.signed import Audience, Command, Configuration, Document
from edgekit.contracts.topics import Device
from edgekit.signing import Role, SigningKey, TrustedKeys

NOW_MS = 1_764_000_000_000
DAY_MS = 86_400_000
ORIN = Device("acme", "orin-1")
OWNER = Local(Leaks(Policy(daily_bytes=1_000_000), log_prompts=True))


HOT: dict[str, Any] = {"alarms": {"temperature": {"raise_above": 95.0}}}
COOL: dict[str, Any] = {"alarms": {"temperature": {"raise_above": 88.0}}}
EU = Audience("cohort", "eu")


def key_of(seed: int) -> SigningKey:
    """Return a key that is the same in every run."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


KEY, SECOND, STRANGER = key_of(1), key_of(2), key_of(3)


def trusting(*keys: SigningKey, threshold: int = 1) -> TrustedKeys:
    """Return a device's keys, the same for both kinds of documents."""
    role = Role({key.public.keyid: key.public for key in keys}, threshold)
    return TrustedKeys({"configuration": role, "command": role})


@dataclass
class FakeClock:
    """A clock that is set by hand.

    Attributes:
        now_ms: The time.
        ticks_ms: The monotonic clock.
        synced: Whether NTP holds it.
    """

    now_ms: int = NOW_MS
    ticks_ms: int = 1000
    synced: bool = True

    def time_ms(self) -> int:
        return self.now_ms

    def monotonic_ms(self) -> int:
        return self.ticks_ms

    def is_synced(self) -> bool:
        return self.synced


def configuration(settings: Mapping[str, Any], counter: int = 1, **changes: Any) -> Configuration:
    """Return a configuration for the device, a day old, that lasts 30."""
    said: dict[str, Any] = {
        "tenant": "acme",
        "audience": Audience("device", "orin-1"),
        "counter": counter,
        "issued_ms": NOW_MS - DAY_MS,
        "expires_ms": NOW_MS + 30 * DAY_MS,
        "settings": settings,
    }
    return Configuration(**{**said, **changes})


def command(name: str, arguments: Mapping[str, Any], counter: int = 1, **changes: Any) -> Command:
    """Return a command for the device that lasts an hour."""
    said: dict[str, Any] = {
        "id": f"c-{counter}",
        "tenant": "acme",
        "device": "orin-1",
        "counter": counter,
        "issued_ms": NOW_MS,
        "expires_ms": NOW_MS + 3_600_000,
        "command": name,
        "arguments": arguments,
    }
    return Command(**{**said, **changes})


def signed(document: Document, *keys: SigningKey) -> Envelope:
    """Return a document in its envelope."""
    envelope = Envelope(document.TYPE, document.to_bytes())
    for key in keys or (KEY,):
        envelope = key.sign(envelope)
    return envelope


def answer(*envelopes: Envelope) -> bytes:
    """Return what the service would answer."""
    return canonical_bytes({"documents": [one.to_dict() for one in envelopes]})


@dataclass
class Agent:
    """Stands for what lets a configuration hold.

    Attributes:
        held: Every one that it was given, in order.
        fails: Raised instead, once.
    """

    held: list[Effective] = field(default_factory=list)
    fails: Exception | None = None

    def apply(self, effective: Effective) -> None:
        if self.fails is not None:
            error, self.fails = self.fails, None
            raise error
        self.held.append(effective)


@dataclass
class Device1:
    """The device ``acme/device/orin-1`` with a state file of its own."""

    path: Path
    keys: TrustedKeys = field(default_factory=lambda: trusting(KEY))
    cohorts: tuple[str, ...] = ("eu",)
    local: Local = OWNER
    clock: FakeClock = field(default_factory=FakeClock)
    agent: Agent = field(default_factory=Agent)

    def start(self) -> Remote:
        """Return what takes documents up, as after a start of the agent."""
        gate = Gate(ORIN, self.cohorts, self.keys)
        return Remote(gate, StateFile(self.path), self.local, self.clock, self.agent.apply)


def outcomes(remote: Remote) -> dict[str, float]:
    """Return what became of documents, without what never happened."""
    prefix = "remote_documents_total."
    return {name.removeprefix(prefix): n for name, n in remote.readings().items() if n}


def raised_above(device: Device1) -> float:
    """Return the threshold of temperature that holds."""
    return device.agent.held[-1].rules["temperature"].raise_above


def closed_here(device: Device1) -> Leaks:
    """Return what may leave a device that does not know what was forbidden."""
    return device.local.leaks.tightened_by(CLOSED)
