"""The radio link, from ModemManager over D-Bus: RSRP, RSRQ, SNR of LTE and 5G.

Only signal strengths are kept of what ModemManager tells; identities (IMEI, IMSI, ICCID, cell) are
neither reported nor logged. Sources: org.freedesktop.ModemManager1.Modem.Signal in
freedesktop.org's ModemManager documentation; ranges of 3GPP TS 38.133 tables 10.1.6.1-1,
10.1.11.1-1 and 10.1.16.1-1, outside of which a driver's number is no measurement.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

from edgekit.contracts.series import Number, Values
from edgekit.errors import MissingExtraError, SensorError, first_line

_SERVICE = "org.freedesktop.ModemManager1"
_MODEM = f"{_SERVICE}.Modem"
_SIGNAL = f"{_SERVICE}.Modem.Signal"
_RANGES = {
    "rsrp": ("modem_rsrp_dbm", -156.0, -31.0),
    "rsrq": ("modem_rsrq_db", -43.0, 20.0),
    "snr": ("modem_snr_db", -23.0, 40.0),
}
_TECHNOLOGIES = {"Lte": "lte", "Nr5g": "nr5g"}
_TIMEOUT_S = 2.0


def parse_objects(objects: Any) -> tuple[dict[str, Number | None], str | None]:
    """Return the first modem's readings, and its path if its signal has to be asked for.

    Args:
        objects: What ``GetManagedObjects`` returned, variants unpacked: path to interface to
            property to value.

    Raises:
        SensorError: It is of another form.
    """
    if not isinstance(objects, Mapping):
        raise SensorError("ModemManager answered with no objects")
    for path in sorted(map(str, objects)):
        interfaces = objects.get(path)
        if isinstance(interfaces, Mapping) and _SIGNAL in interfaces:
            signal = _mapping(interfaces[_SIGNAL])
            values = {
                **_percent(_mapping(interfaces.get(_MODEM)).get("SignalQuality")),
                **_strengths(signal),
            }
            return values, None if signal.get("Rate") else path
    return {}, None


def _strengths(signal: Mapping[str, Any]) -> dict[str, Number | None]:
    found: dict[str, Number | None] = {}
    for field, technology in _TECHNOLOGIES.items():
        told = _mapping(signal.get(field))
        for key, (series, least, most) in _RANGES.items():
            value = told.get(key)
            if value is None:
                continue
            real = isinstance(value, float) and math.isfinite(value) and least <= value <= most
            found[f"{series}.{technology}"] = round(value, 1) if real else None
    return found


def _percent(quality: Any) -> dict[str, Number | None]:
    """Return ModemManager's quality; one that is not recent is missing."""
    if not isinstance(quality, (list, tuple)) or len(quality) != 2:
        return {}
    percent, recent = quality
    right = type(percent) is int and 0 <= percent <= 100 and recent is True
    return {"modem_signal_percent": percent if right else None}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


class Modem:
    """Asks ModemManager.

    Args:
        address: Of the bus; None for the system's.
        rate_s: How often the modem shall measure.
    """

    name = "modem"

    def __init__(self, address: str | None = None, rate_s: int = 10) -> None:
        self._address = address
        self._rate_s = rate_s
        self._loop = asyncio.new_event_loop()
        self._bus: Any = None

    def read(self, now_s: float) -> Values:
        """Return the readings; none where there is no modem.

        Raises:
            SensorError: There is no bus, or ModemManager fails or does not answer.
            MissingExtraError: The extra ``modem`` is not installed.
        """
        del now_s
        try:
            return self._loop.run_until_complete(asyncio.wait_for(self._read(), _TIMEOUT_S))
        except (OSError, EOFError, asyncio.TimeoutError) as error:
            self._disconnect()
            raise SensorError(f"ModemManager cannot be asked: {first_line(error)}") from error

    def close(self) -> None:
        """Leave the bus."""
        self._disconnect()
        self._loop.close()

    async def _read(self) -> dict[str, Number | None]:
        root = "/org/freedesktop/ModemManager1"
        objects = await self._call(
            root, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", "", []
        )
        values, quiet = parse_objects(objects)
        if quiet is not None:
            await self._call(quiet, _SIGNAL, "Setup", "u", [self._rate_s])
        return values

    async def _call(
        self, path: str, interface: str, member: str, signature: str, body: list[Any]
    ) -> Any:
        """Call a method; return the first value of its answer."""
        try:
            import dbus_fast  # noqa: PLC0415
            from dbus_fast.aio import MessageBus  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtraError("reading the modem", "modem") from error
        message = dbus_fast.Message(
            destination=_SERVICE, path=path, interface=interface, member=member,
            signature=signature, body=body,
        )  # fmt: skip
        try:
            if self._bus is None or not self._bus.connected:
                bus = MessageBus(bus_address=self._address, bus_type=dbus_fast.BusType.SYSTEM)
                self._bus = await bus.connect()
            reply = await self._bus.call(message)
        except dbus_fast.DBusError as error:
            raise SensorError(f"ModemManager fails: {error.text}") from error
        if reply.message_type is dbus_fast.MessageType.ERROR:
            raise SensorError(f"ModemManager refuses {member}: {reply.error_name}")
        return dbus_fast.unpack_variants(reply.body[0]) if reply.body else None

    def _disconnect(self) -> None:
        if self._bus is not None:
            self._bus.disconnect()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._bus = None
