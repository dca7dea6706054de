"""The settings that may be changed from afar, and what each may be. Nothing else may.

Both ends hold a document to this list: who signs one is told at once, and a device refuses the
whole of one that says anything more. What can leak is among them only in the tighter direction:
there is no value of ``log.prompts`` but false, and ``routing`` is taken as what a policy takes away
(``device.routing.policy``). Interplay with a device's own file is checked there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgekit.contracts.fields import show
from edgekit.contracts.series import is_value
from edgekit.contracts.topics import SEGMENT
from edgekit.errors import MessageError

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
CLOUD_REASONS: Final = ("context", "queue")
MAX_NAMES: Final = 256
_REMEDY: Final = "docs/remote-config.md lists what may be set"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a setting may be.

    Attributes:
        words: That, in words.
        allows: Whether a value is.
    """

    words: str
    allows: Callable[[Any], bool]


def _between(low: float, high: float, *, whole: bool = False) -> Setting:
    def allows(value: Any) -> bool:
        kinds = {int} if whole else {int, float}  # by type: true is no number
        return type(value) in kinds and low <= value <= high

    return Setting(f"{'an integer' if whole else 'a number'} from {low:g} to {high:g}", allows)


def _one_of(*choices: Any) -> Setting:
    words = " or ".join(str(choice).lower() for choice in choices)
    return Setting(
        words,
        lambda value: any(type(value) is type(one) and value == one for one in choices),
    )


def _names(*choices: str) -> Setting:
    def allows(value: Any) -> bool:
        if not isinstance(value, list) or len(value) > MAX_NAMES:
            return False
        return all(
            isinstance(name, str) and (name in choices if choices else 0 < len(name) <= MAX_NAMES)
            for name in value
        )

    return Setting(f"a list of {' and '.join(choices) or 'names'}", allows)


_BYTES = _between(0, 2**53, whole=True)
SETTINGS: Final[Mapping[str, Mapping[str, Setting]]] = {
    "telemetry": {
        "sample_s": _between(5, 3600),
        "batch_s": _between(10, 86_400),
        "daily_bytes": _between(100_000, 2**53, whole=True),
        "probe_daily_bytes": _BYTES,
    },
    "log": {"level": _one_of(*LOG_LEVELS), "prompts": _one_of(False)},
    "routing": {
        "cloud": _one_of(True, False),
        "reasons": _names(*CLOUD_REASONS),
        "daily_bytes": _BYTES,
        "local_only": _one_of(True, False),
        "local_clients": _names(),
    },
}
"""Table to key to what it may be; the table ``alarms`` is one of tables, see :data:`ALARM`."""
ALARM: Final[Mapping[str, Setting]] = {
    "series": Setting("a string", lambda value: isinstance(value, str)),
    "severity": Setting("a string", lambda value: isinstance(value, str)),
    **dict.fromkeys(
        ("raise_above", "clear_below", "hold_s", "clear_hold_s"),
        Setting("a number", lambda value: value is not None and is_value(value)),
    ),
}
"""Fields of a rule in the table ``alarms``; false in place of a rule switches it off."""
ALARMS: Final = "alarms"


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that are not on the list, or not what they may be.

    Raises:
        MessageError: Names the first value that is wrong, or every setting that is unknown.
    """
    unknown: list[str] = []
    for table, keys in settings.items():
        if table == ALARMS:
            _check_alarms(keys, unknown)
        elif table in SETTINGS:
            _check_table(table, keys, SETTINGS[table], unknown)
        else:
            unknown.append(table)
    if unknown:
        named = ", ".join(show(name) for name in sorted(unknown)[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise MessageError(f"settings has {named}{more}, which may not be set from afar", _REMEDY)


def _check_alarms(rules: Any, unknown: list[str]) -> None:
    if not isinstance(rules, Mapping):
        raise MessageError("settings: alarms is not an object of rules by name", _REMEDY)
    for name, rule in rules.items():
        if SEGMENT.fullmatch(name) is None:
            raise MessageError(f"settings: {show(name)} is not a name for an alarm", _REMEDY)
        if rule is not False:
            _check_table(f"{ALARMS}.{name}", rule, ALARM, unknown)


def _check_table(table: str, keys: Any, known: Mapping[str, Setting], unknown: list[str]) -> None:
    if not isinstance(keys, Mapping):
        raise MessageError(f"settings: {table} is not an object", _REMEDY)
    for key, value in keys.items():
        if key not in known:
            unknown.append(f"{table}.{key}")
        elif not known[key].allows(value):
            raise MessageError(
                f"settings: {table}.{key} must be {known[key].words}, not {show(value)}", _REMEDY
            )
