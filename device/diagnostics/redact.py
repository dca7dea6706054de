"""Takes out of a text what is private: who asks and what, which subscriber, where the device is.

The second wall: nothing here is written into the log in the first place. What is unsure goes. A
line in which a modem is spoken to, or that names a subscriber or a cell, goes as a whole, since AT,
QMI and MBIM write identities in more forms than can be listed; after a word that names what is
asked or a key, the rest of the line goes; and any long number goes, wherever it stands, since IMSI,
IMEI, ICCID and MSISDN are nothing but long numbers.

Lengths: IMSI up to 15 digits and MSISDN up to 15 (ITU-T E.212, E.164), IMEI 14 to 16 (3GPP TS
23.003), ICCID 18 to 20 (ITU-T E.118).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

MAX_LINE_CHARS: Final = 500
MAX_READ_CHARS: Final = 4096
MAX_DEPTH: Final = 8
_MODEM: Final = re.compile(
    # What is said to a modem, and by it.
    r"\bat[+^!#$%*&][a-z]|<(?:cr|lf)>|(?:^|[^a-z0-9])[+^!#$%*][a-z][a-z0-9]{2,}\s*[:=?]|\bmbim\b"
    r"|\bqmi\b|cdc-wdm|servingcell|neighbourcell|\$g[pn][a-z]{3}"
    # Who the subscriber is.
    r"|imsi|imei|iccid|msisdn|subscriber|\bmeid\b|\besn\b|\beid\b|sim[ _-]?(?:id|serial)"
    r"|equipment[ _-]?id|own[ _-]?number|\bown\b\s*[:=]|phone|\bpin\b|\bpuk\b|\bapn\b"
    # Where the device is.
    r"|(?:cell|tower|sector)[ _-]?id|cellid|\bpci\s*="
    r"|\b(?:ci|cid|eci|nci|lac|tac|mcc|mnc|plmn|enb|gnb|e?nodeb|earfcn)\b"
    r"|(?:location|tracking|routing)[ _-]?area|operator|latitude|longitude|\bgps\b|\bnmea\b|ssid",
    re.IGNORECASE,
)
"""A line with one of these goes as a whole."""
_PRIVATE: Final = re.compile(
    r"prompt(?!_tokens)|\bmessages?[\"']\s*[:=]|\bcontent[\"']?\s*[:=]|completion(?!_tokens)"
    r"|\b(?:input|output|answer|question|choices|delta|reasoning|text|tool_calls)[\"']?\s*[:=]"
    r"|authorization|bearer|\bbasic\s|cookie|passw|passphrase|secret|credential"
    r"|\b(?:psk|pwd|pass)[\"']?\s*[:=]"
    r"|(?:api|access|auth|private|session|signing)[ _-]?(?:key|token)|\btoken\b"
    r"|-----begin|\bsk-|\bhf_|\bakia",
    re.IGNORECASE,
)
"""After one of these the rest of the line goes: what is asked and answered, keys."""
_PATTERNS: Final[Mapping[str, re.Pattern[str]]] = {
    "address": re.compile(
        r"\d{1,3}(?:\.\d{1,3}){3}"
        r"|[0-9a-f:.%]*::[0-9a-f:.%]*"
        r"|[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){7}"
        r"|[0-9a-f]{2}(?:[:-][0-9a-f]{2}){5,}"
        r"|\b[0-9a-f]{4}(?:\.[0-9a-f]{4}){2}\b",
        re.IGNORECASE,
    ),
    "link": re.compile(r"(?<=://)[^\s/@]*@|(?<=\S)\?\S+"),
    "mail": re.compile(r"[^\s@<>\"']+@[^\s@<>\"']+\.[a-z]{2,}", re.IGNORECASE),
    "number": re.compile(
        r"(?:\+|\b00)\d[\d ()/-]{5,}\d"
        r"|\d{2}[ -]\d{6}[ -]\d{6}[ -]\d"
        r"|\d{4}(?:[ -]\d{4}){2,}"
        r"|\d{2,4}(?:[ -]\d{3,4}){3,}"
        r"|\d{9,}"
    ),
    "token": re.compile(r"[A-Za-z0-9+/_=-]{32,}|[0-9a-f]{16,}", re.IGNORECASE),
}
_KEYS: Final = re.compile(
    r"prompt(?!_tokens)|message|content|completion(?!_tokens)|imsi|imei|iccid|msisdn|cell|secret"
    r"|passw|token(?!s)|(?:^|_)(?:ci|tac|lac|mcc|mnc|key|keys|pin|apn|client|clients)$",
    re.IGNORECASE,
)
_COUNTS: Final = re.compile(r"_(?:ms|s|ns|bytes|total|mw|mhz|tokens)$")
LARGEST_NUMBER: Final = 10**8
"""Of numbers without a unit in their name: a longer one could be a subscriber's."""


class Redactor:
    """Takes out, and counts what.

    Attributes:
        counts: Kind to how often it was taken out.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def line(self, text: str) -> str:
        """Return a line of free text without what is private.

        Args:
            text: Printable or not; of more than one line the ends are made visible.
        """
        text = _plain(text)
        if _MODEM.search(text):
            return self._taken("modem")
        found = _PRIVATE.search(text)
        if found is not None:
            head = self._patterns(text[: found.start()])
            return f"{_cut(head, MAX_LINE_CHARS)}{found[0].strip()} {self._taken('private')}"
        return _cut(self._patterns(text), MAX_LINE_CHARS)

    def value(self, value: Any, key: str = "", depth: int = 0) -> Any:
        """Return a JSON value without what is private, by the names of its fields as well.

        Args:
            value: It.
            key: Under which it stands.
            depth: How deep; what is deeper than 8 goes.
        """
        if isinstance(value, bool) or value is None:
            return value
        if _KEYS.search(key) or depth > MAX_DEPTH:
            return self._taken("field")
        if isinstance(value, int | float):
            return self._number(value, key)
        if isinstance(value, Mapping):
            return {
                self.line(str(name)): self.value(item, str(name), depth + 1)
                for name, item in value.items()
            }
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [self.value(item, key, depth + 1) for item in value]
        return self.line(str(value))

    def _number(self, value: float, key: str) -> Any:
        known = _COUNTS.search(key.partition(".")[0]) is not None
        return value if known or abs(value) < LARGEST_NUMBER else self._taken("number")

    def _patterns(self, text: str) -> str:
        for kind, pattern in _PATTERNS.items():
            text, times = pattern.subn(f"[{kind}]", text)
            if times:
                self.counts[kind] += times
        return text

    def _taken(self, kind: str) -> str:
        self.counts[kind] += 1
        return f"[{kind}]"


def _plain(text: str) -> str:
    """Return a text in which patterns see what a reader sees.

    Full-width digits become digits (NFKC), and what takes no room, which could stand between two
    digits, goes. It is cut between two words: half of a number would not be known for one.
    """
    text = unicodedata.normalize("NFKC", _cut(text, MAX_READ_CHARS))
    shown = (" " if c.isspace() else c for c in text if c.isspace() or c.isprintable())
    return _cut("".join(shown), MAX_READ_CHARS)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit].rpartition(' ')[0]} ..."
