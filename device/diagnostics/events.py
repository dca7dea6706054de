"""Lines of the agent's log, field by field: what is not known to be harmless goes.

The log is JSON lines (``docs/agent.md``). A field that is not listed here is left out, whatever it
holds: a new one has to be thought about before it leaves a device.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from device.diagnostics.redact import Redactor

_COUNTED: Final = frozenset(
    {
        "status",
        "prompt_tokens",
        "cached_tokens",
        "completion_tokens",
        "ttft_s",
        "seconds",
        "exit_code",
        "port",
        "cut_off",
    }
)
"""Numbers of known meaning."""
_WORDS: Final = frozenset(
    {
        "event",
        "model",
        "finish_reason",
        "error",
        "version",
        "bundle",
        "way",
        "why",
        "warning",
        "level",
        "logger",
    }
)
"""Texts of the agent's own making; they are redacted all the same."""
_TELLING: Final = frozenset({"engine_fault", "model_failed", "reload_failed", "log"})
"""Events whose message is an error of ours. Any other's may quote what broke it."""
_FORMS: Final = {
    "id": re.compile(r"req-[0-9a-f]{24}"),  # a client may choose its own, and put anything into it
    "time": re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}\+00:00"),
    "digest": re.compile(r"sha256:[0-9a-f]{64}"),
    "route": re.compile(r"unknown|(?:/v1)?(?:/[a-z_]{1,20}){1,3}"),
}
"""Texts that are told as they are, if they are of this form."""


class Events:
    """Redacts the log of one bundle; a client has the same number in all of its lines.

    Args:
        redactor: For the texts.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._clients: dict[str, int] = {}

    def lines(self, lines: Iterable[str]) -> Iterator[str]:
        """Yield lines of the log without what is private.

        Args:
            lines: JSON objects; what is none is redacted as free text.
        """
        for line in lines:
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                event = None
            if isinstance(event, dict):
                yield json.dumps(self._event(event), ensure_ascii=False)
            elif line.strip():
                yield json.dumps({"text": self._redactor.line(line)}, ensure_ascii=False)

    def _event(self, event: Mapping[str, Any]) -> dict[str, Any]:
        kept = {}
        for name, value in event.items():
            told = self._field(name, value, str(event.get("event")))
            if told is None and value is not None:
                self._redactor.counts["field"] += 1
            else:
                kept[name] = told
        return kept

    def _field(self, name: str, value: Any, event: str) -> Any:
        """Return what may be told of a field; None for nothing."""
        if name in _COUNTED:
            ours = type(value) in {int, float} and abs(value) < 10**9
            return value if ours else None
        if not isinstance(value, str):
            return None
        if name == "client":
            return f"client-{self._clients.setdefault(value, len(self._clients) + 1)}"
        if name in _FORMS:
            return value if _FORMS[name].fullmatch(value) else None
        if name in _WORDS or (name == "message" and event in _TELLING):
            return self._redactor.line(value)
        return None
