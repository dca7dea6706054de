"""The rules, in their order, as one pure function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from device.routing.policy import CloudReason, Policy, client_name

LocalReason = Literal[
    "default", "privacy", "forbidden", "tokens", "link", "budget", "circuit", "failed", "refused"
]
"""Why a request stays: nothing sends it away; it is pinned; the policy forbids it; it names tokens
of this model; link, budget or circuit breaker hold it back; the cloud failed or refused it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules look at.

    Attributes:
        pinned: Whether the request asks to stay.
        client: Whose it is.
        names_tokens: Whether it has ids of this model's tokens, which are others in another model.
        prompt_tokens: Length of its prompt.
        context_tokens: What the context holds.
        wait_s: Estimated seconds until it would get a slot.
        service_s: Seconds that answers have taken of late once they had one.
        left_s: Seconds until its deadline.
        max_wait_s: Longest wait that is let be, whatever the deadline.
        link: Whether the link is up.
        bytes_wanted: What sending it would take of the budget.
        bytes_left: What is left of it.
        circuit: Whether the circuit breaker lets it pass.
    """

    pinned: bool
    client: str
    names_tokens: bool
    prompt_tokens: int
    context_tokens: int
    wait_s: float
    service_s: float
    left_s: float
    max_wait_s: float
    link: bool
    bytes_wanted: int
    bytes_left: float
    circuit: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes.

    Attributes:
        route: There.
        reason: The rule that said so.
        wanted: Why the cloud was wanted; None if it was not.
    """

    route: Literal["local", "cloud"]
    reason: CloudReason | LocalReason
    wanted: CloudReason | None = None

    @property
    def header(self) -> str:
        """The value of ``x-edgekit-route``."""
        return self.route if self.reason == "default" else f"{self.route}; reason={self.reason}"


def decide(facts: Facts, policy: Policy) -> Decision:
    """Return where a request goes."""
    if facts.pinned or policy.local_only or client_name(facts.client) in policy.local_clients:
        return Decision("local", "privacy")
    wanted = _wanted(facts)
    if wanted is None:
        return Decision("local", "default")
    held = _held(facts, policy, wanted)
    if held is not None:
        return Decision("local", held, wanted)
    return Decision("cloud", wanted, wanted)


def _wanted(facts: Facts) -> CloudReason | None:
    """Return why a request should go to the cloud, if anything says so."""
    if facts.prompt_tokens > facts.context_tokens:
        return "context"
    if facts.wait_s > facts.max_wait_s:
        return "queue"
    # Without a wait the cloud would not be sooner: what is slow here is the model.
    if facts.wait_s > 0 and facts.wait_s + facts.service_s > facts.left_s:
        return "queue"
    return None


def _held(facts: Facts, policy: Policy, wanted: CloudReason) -> LocalReason | None:
    """Return what holds a request back that should go to the cloud."""
    if not policy.cloud or wanted not in policy.reasons:
        return "forbidden"
    if facts.names_tokens:
        return "tokens"
    if not facts.link:
        return "link"
    if facts.bytes_wanted > facts.bytes_left:
        return "budget"
    return None if facts.circuit else "circuit"
