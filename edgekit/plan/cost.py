"""What a million tokens cost: hardware over its years, and the energy it draws."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.plan.hardware import Machine, scenarios

HOURS_PER_YEAR = 8766.0
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True)
class CostAssumptions:
    """What a cost rests on; every field is an option of ``edgekit plan``.

    Attributes:
        scenario: ``edge``, ``lab`` or ``cloud``: gives ``utilization`` and ``energy_overhead``.
        price_usd: Of the machine, everything it needs included.
        lifetime_years: Years over which the price is spread.
        utilization: Share of that time in which it generates at the stated rate.
        power_w: Drawn while it generates: the power mode's budget, so an upper bound. Idle time
            is counted at the same power.
        energy_overhead: Drawn from the grid over ``power_w`` (PUE).
        energy_usd_per_kwh: Price of energy.
    """

    scenario: str
    price_usd: float
    utilization: float
    power_w: float
    energy_overhead: float
    lifetime_years: float = 3.0
    energy_usd_per_kwh: float = 0.15

    def usd_per_million_tokens(self, tokens_per_s: float) -> float:
        """Return the cost of a million tokens generated at a rate."""
        hardware_usd_per_s = self.price_usd / (self.lifetime_years * HOURS_PER_YEAR * 3600)
        energy_usd_per_s = (
            self.power_w * self.energy_overhead * self.energy_usd_per_kwh / JOULES_PER_KWH
        )
        return (hardware_usd_per_s + energy_usd_per_s) / (self.utilization * tokens_per_s) * 1e6

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def assume(
    machine: Machine, scenario: str | None = None, **options: float | None
) -> CostAssumptions:
    """Return the assumptions for a machine, its defaults overridden by the options that are given.

    Args:
        machine: In its power mode.
        scenario: None is the machine's own.
        **options: Fields of :class:`CostAssumptions`; None keeps the default.

    Raises:
        EdgekitError: There is no such scenario.
    """
    name = scenario or machine.scenario
    place = scenarios().get(name)
    if place is None:
        raise EdgekitError(f"unknown scenario {name!r}", f"Use one of: {', '.join(scenarios())}")
    defaults = CostAssumptions(
        name, machine.price_usd, place.utilization, machine.power_w, place.overhead
    )
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    return replace(defaults, **given)
