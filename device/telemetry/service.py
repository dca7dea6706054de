"""The agent's telemetry: one thread that collects, publishes and takes notices.

How often and how much may be changed while it runs: the thread looks between turns at what holds.
Whatever fails in it, the disk, the broker or the network, is logged and tried again; nothing that
serves requests waits for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from device.telemetry.assembly import Assembly
from device.telemetry.clock import Clock, SystemClock
from device.telemetry.config import TelemetryConfig
from device.telemetry.mqtt.backoff import Windows
from device.telemetry.mqtt.health import Details
from device.telemetry.mqtt.live import Live
from device.telemetry.mqtt.notices import Handler
from device.telemetry.station import TURN_S
from device.telemetry.tuning import Tuning
from edgekit.batch_encoding import compress
from edgekit.contracts.series import Values
from edgekit.errors import EdgekitError

logger = logging.getLogger(__name__)

RETRY_S = 60.0
"""Between two tries to open the ring."""
STOP_S = 10.0


class Telemetry:
    """Runs a station in a thread of its own.

    Args:
        config: What it is told.
        counters: Other parts' readings by name, such as the engine's; called in its thread.
        details: More facts for the birth, such as the model's name; called at every connect.
        tuning: Returns what holds of the settings that may change; the configuration's, if None.
            Called in its thread, often.
        on_notice: Called with notices of what is to be fetched; it must not wait. Without it they
            are unknown.
        on_connect: Called once a broker has accepted the device; it must not wait.
        clock: Tells the time.
        turn_s: Longest wait of a turn, in real seconds whatever the clock says.
        windows: Of the session's back-off.
        is_encrypted: False is for tests: no TLS.

    Raises:
        MissingExtraError: The encoding's compressor is not installed.
    """

    def __init__(
        self,
        config: TelemetryConfig,
        *,
        counters: Mapping[str, Callable[[], Values]] | None = None,
        details: Callable[[], Details] | None = None,
        tuning: Callable[[], Tuning] | None = None,
        on_notice: Handler | None = None,
        on_connect: Callable[[], None] | None = None,
        clock: Clock | None = None,
        turn_s: float = TURN_S,
        windows: Windows | None = None,
        is_encrypted: bool = True,
    ) -> None:
        own = config.tuning
        self._tuning = tuning or (lambda: own)
        clock = clock or SystemClock()
        self._live = Live(clock)
        self._readings: Values = {}
        self._assembly = Assembly(
            config=config,
            counters=dict(counters or {}),
            details=details or dict,
            tuning=self._tuning,
            on_notice=on_notice,
            on_connect=on_connect,
            live=self._live,
            clock=clock,
            turn_s=turn_s,
            windows=windows or Windows(),
            is_encrypted=is_encrypted,
        )
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        compress(b"", config.encoding)

    @property
    def readings(self) -> Values:
        """The last readings; any thread may ask."""
        return self._readings

    def go_live(self, for_s: float) -> None:
        """Send every sample at once for a while; any thread may call it.

        Args:
            for_s: For how long, an hour at most; asked again it begins anew.

        Raises:
            TelemetryError: The day's bytes are spoken for.
        """
        self._live.start(for_s)

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """Say goodbye to the broker and close the ring; whether that was done in time."""
        self._stopping.set()
        if self._thread is None:
            return True
        self._thread.join(STOP_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        """Work until it is stopped; a ring that cannot be opened is tried again."""
        while not self._stopping.is_set():
            try:
                with self._assembly.station() as station:
                    while not self._stopping.is_set():
                        station.tune(self._tuning())
                        station.turn()
                        self._readings = station.readings
                    station.close()
            except EdgekitError as error:
                logger.error("no telemetry: %s; next try in %.0f s", error, RETRY_S)  # noqa: TRY400
            except Exception:  # a fault of ours must not end the agent
                logger.exception("telemetry failed; next try in %.0f s", RETRY_S)
            self._stopping.wait(RETRY_S)
