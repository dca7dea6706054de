"""Reads the sensors, decides the alarms, and puts both into the ring.

It is called every five seconds, which is how often alarms are looked at, and keeps a sample every
ten. A sensor that fails is counted and leaves its readings missing; the others are read.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Sequence

from device.telemetry.alarm_rules import PERIOD_S
from device.telemetry.alarms import Alarms, Decision
from device.telemetry.clock import Clock
from device.telemetry.loss_window import LossWindow
from device.telemetry.ring import ALARM, SAMPLE, Ring
from device.telemetry.rows import alarm_payload, sample_payload
from device.telemetry.sensors.sensor import Sensor
from edgekit.contracts.series import Number, Values, check_values

logger = logging.getLogger(__name__)

SAMPLE_S = 10.0
_UNSAVED = 256
"""Alarms kept in memory while the ring cannot be written."""


class Collector:
    """The part of the agent that needs no network.

    Args:
        sensors: Read in order; of two that have a reading the later one counts.
        alarms: What is decided.
        ring: Where all goes.
        clock: The ring's.
        sample_s: Time between two samples; may be changed at any time.

    Attributes:
        values: The last readings, whether the ring could keep them or not.
    """

    def __init__(
        self,
        sensors: Sequence[Sensor],
        alarms: Alarms,
        ring: Ring,
        clock: Clock,
        sample_s: float = SAMPLE_S,
    ) -> None:
        self._sensors = sensors
        self._alarms = alarms
        self._ring = ring
        self._clock = clock
        self.sample_s = sample_s
        self.values: Values = {}
        self._window = LossWindow()
        # 0 is told, too: the first failure of a counter that begins above it would be no increase.
        self._errors = Counter({sensor.name: 0 for sensor in sensors})
        self._sampled_s = float("-inf")
        self._synced = False  # what an agent before this one has kept may have to be dated, too
        self._unsaved: deque[bytes] = deque(maxlen=_UNSAVED)

    def tick(self, *, may_sample: bool = True) -> tuple[Values, list[Decision]]:
        """Do what is due now.

        Args:
            may_sample: Whether a sample may be kept; alarms are always decided.

        Returns:
            The readings of now, and the alarms that began or ended.

        Raises:
            RingError: The ring fails; alarms are decided all the same, and put with those of the
                next call.
        """
        now_s = self._clock.monotonic_ms() / 1000
        self.values = values = self._read(now_s)
        decisions = self._alarms.step(values, now_s)
        for decision in decisions:
            logger.warning("alarm %s %s: %s", decision.alarm, decision.state, decision.reading)
        self._unsaved.extend(map(alarm_payload, decisions))
        if self._unsaved:
            self._ring.put(list(self._unsaved), ALARM)
            self._unsaved.clear()
        self._redate()
        # Ticks come a little late or early: the next sample is that of the nearest one.
        if may_sample and now_s >= self._sampled_s + self.sample_s - PERIOD_S / 2:
            self._sampled_s = now_s
            self._ring.put([sample_payload(values)], SAMPLE)
        return values, decisions

    def _read(self, now_s: float) -> dict[str, Number | None]:
        values: dict[str, Number | None] = {}
        for sensor in self._sensors:
            values.update(self._read_one(sensor, now_s))
        sent, lost = values.get("probe_sent_total"), values.get("probe_lost_total")
        if sent is not None and lost is not None:
            bound = self._window.update(now_s, int(sent), int(lost))
            values["probe_loss_lower_bound_ratio"] = bound
        for name, count in self._errors.items():
            values[f"sensor_errors_total.{name}"] = count
        return values

    def _read_one(self, sensor: Sensor, now_s: float) -> Values:
        """Return a sensor's readings, none if it fails."""
        try:
            return check_values(sensor.read(now_s), sensor.name)
        except Exception as error:  # noqa: BLE001 - no sensor's fault may silence the alarms
            self._failed(sensor, error)
        return {}

    def _failed(self, sensor: Sensor, error: Exception) -> None:
        self._errors[sensor.name] += 1
        if self._errors[sensor.name] == 1:
            logger.warning("sensor %s: %s: %s", sensor.name, type(error).__name__, error)

    def _redate(self) -> None:
        """Date what the clock had wrong, once it is told the time."""
        synced = self._clock.is_synced()
        if synced and not self._synced and (rows := self._ring.redate()):
            logger.info("the clock is set: %d rows are dated anew", rows)
        self._synced = synced
