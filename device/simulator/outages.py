"""Outages of a simulated device's network: at random, by seed.

Times in and out of them are drawn from exponential distributions, so that the share of time is as
asked and nothing keeps devices in step.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from device.telemetry.mqtt.session import Session
from edgekit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class OutageRates:
    """How often a network fails.

    Attributes:
        share: Of the time, from 0 to below 1.
        mean_s: Length of an outage, on average.
    """

    share: float = 0.0
    mean_s: float = 120.0

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(f"the outages' share is {self.share:g}, and must be 0 to below 1")
        if self.mean_s <= 0:
            raise ConfigError(f"the outages' length is {self.mean_s:g} s, and must be above 0")

    @property
    def between_s(self) -> float:
        """Time between two outages, on average."""
        return self.mean_s * (1 - self.share) / self.share if self.share else float("inf")


class Outages:
    """The outages of one device; time must not go back.

    Args:
        rates: How often.
        chance: Of this device.
    """

    def __init__(self, rates: OutageRates, chance: random.Random) -> None:
        self._rates, self._chance = rates, chance
        self._is_out = False
        self._until_s: float | None = None

    def is_out(self, now_s: float) -> bool:
        """Whether the network is away at a monotonic time."""
        if not self._rates.share:
            return False
        if self._until_s is None:  # from the start on it is out as often as later
            self._is_out = self._chance.random() < self._rates.share
            self._until_s = now_s + self._length_s()
        while now_s >= self._until_s:
            self._is_out = not self._is_out
            self._until_s += self._length_s()
        return self._is_out

    def _length_s(self) -> float:
        mean_s = self._rates.mean_s if self._is_out else self._rates.between_s
        return self._chance.expovariate(1 / mean_s)


class FailingSession(Session):
    """A session whose network fails: its connection is cut, and it does not try another.

    Args:
        arguments: Of :class:`Session`.
        outages: When.
        options: Of :class:`Session`.
    """

    def __init__(self, *arguments: Any, outages: Outages, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._outages = outages
        self._was_out = False

    def step(self) -> None:
        """Do as :meth:`Session.step` while there is a network."""
        is_out = self._outages.is_out(self._now_s())
        if is_out and not self._was_out:
            self.counts["outages"] += 1
        self._was_out = is_out
        if is_out:
            self.cut("the network is away")
        else:
            super().step()
