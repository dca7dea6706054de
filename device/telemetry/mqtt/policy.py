"""How often to sample and send: pure functions of what is left of the day and of the link.

Alarms do not pass here: they are sent at once whatever is left. Everything else gets what alarms
and pings leave over: first new samples, at their pace or a slower one, then what is old and waits
in the ring.
"""

from __future__ import annotations

from dataclasses import dataclass

ALARM_SHARE = 0.05
"""Of a day's bytes, set aside for alarms and for staying connected."""
MAX_STRETCH_SAMPLE = 30.0
"""Samples are at most this much rarer: one in 10 s becomes one in 5 minutes."""
MAX_STRETCH_BATCH = 6.0
"""Batches likewise: 10 minutes become an hour."""
WEAK_STRETCH = 2.0
"""Batches on a weak link, where every exchange costs repetitions."""
WEAK_RTT_MS = 1500.0
WEAK_RETRANSMITTED = 0.10
WEAK_RSRP_DBM = -115.0
"""Near the cell's edge."""


@dataclass(frozen=True, slots=True)
class Link:
    """How the link is; None is unknown, which is not weak.

    Attributes:
        rtt_ms: Smoothed round trip.
        retransmitted: Share of segments sent again lately.
        rsrp_dbm: Signal strength of the radio.
    """

    rtt_ms: float | None = None
    retransmitted: float | None = None
    rsrp_dbm: float | None = None

    @property
    def is_weak(self) -> bool:
        """Whether exchanges are to be few."""
        return (
            (self.rtt_ms is not None and self.rtt_ms > WEAK_RTT_MS)
            or (self.retransmitted is not None and self.retransmitted > WEAK_RETRANSMITTED)
            or (self.rsrp_dbm is not None and self.rsrp_dbm < WEAK_RSRP_DBM)
        )


@dataclass(frozen=True, slots=True)
class Day:
    """What the budget says.

    Attributes:
        limit: Bytes of a whole day.
        left: Bytes of it that may still be used.
        left_s: Seconds until it ends.
    """

    limit: int
    left: int
    left_s: float

    @property
    def spendable(self) -> float:
        """Bytes for all but alarms."""
        return max(self.left - ALARM_SHARE * self.limit, 0.0)


@dataclass(frozen=True, slots=True)
class Cost:
    """What sending costs, as measured.

    Attributes:
        sample_bytes: Of one sample in a batch.
        exchange_bytes: Of a batch beside its samples: headers, both acknowledgements.
    """

    sample_bytes: float
    exchange_bytes: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do until the next look.

    Attributes:
        sample_s: Time between two samples.
        batch_s: Time between two batches of new samples; None: send none.
        replay_bytes: Bytes that old samples may have today.
        live: Whether live mode may run.
    """

    sample_s: float
    batch_s: float | None
    replay_bytes: float
    live: bool


def plan(day: Day, link: Link, cost: Cost, *, sample_s: float, batch_s: float) -> Plan:
    """Return how to go on.

    The need of the rest of the day is worked out for the wanted times. Where less is left, samples
    and batches become rarer by the same factor, each up to its bound; past the bounds nothing is
    sent once the share of the alarms is reached, and the ring keeps it for tomorrow.

    Args:
        day: What is left.
        link: How the link is.
        cost: Of what is sent.
        sample_s: Wanted time between samples.
        batch_s: Wanted time between batches.
    """
    need = day.left_s * (cost.sample_bytes / sample_s + cost.exchange_bytes / batch_s)
    stretch = max(need / day.spendable, 1.0) if day.spendable > 0 else float("inf")
    sample_stretch = min(stretch, MAX_STRETCH_SAMPLE)
    batch_stretch = min(stretch, MAX_STRETCH_BATCH)
    if link.is_weak:
        batch_stretch = max(batch_stretch, WEAK_STRETCH)
    one_batch = cost.sample_bytes + cost.exchange_bytes
    can_send = day.spendable >= one_batch
    replay = 0.0 if link.is_weak else max(day.spendable - need, 0.0)
    return Plan(
        sample_s=sample_s * sample_stretch,
        batch_s=batch_s * batch_stretch if can_send else None,
        replay_bytes=replay,
        live=replay > 0,
    )
