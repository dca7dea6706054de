"""Version ranges as manifests carry them: ``>=10.15,<12``, a part of PEP 440.

Standard library only, so that the device can read them: releases of numbers and dots, and the
comparisons ``>=``, ``>``, ``<=``, ``<``, ``==`` and ``!=``, joined by commas.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

from edgekit.errors import BundleError

_RELEASE = re.compile(r"\d{1,9}(?:\.\d{1,9}){0,9}")
_PART = re.compile(rf"(>=|<=|==|!=|>|<)\s*({_RELEASE.pattern})")
_COMPARE: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


def check_range(text: str, where: str) -> None:
    """Refuse what is no version range; an empty one holds every version.

    Raises:
        BundleError: Names the range.
    """
    _parts(text, where)


def in_range(version: str, wanted: str) -> bool:
    """Whether a version lies in a range; of the version its leading release counts.

    Raises:
        BundleError: ``wanted`` is no range, or ``version`` begins with no release.
    """
    release = _RELEASE.match(version)
    if release is None:
        raise BundleError(f"{version!r} is not a version")
    have = _numbers(release[0])
    return all(_COMPARE[sign](have, bound) for sign, bound in _parts(wanted, "version range"))


def _parts(text: str, where: str) -> list[tuple[str, tuple[int, ...]]]:
    parts = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = _PART.fullmatch(part)
        if match is None:
            raise BundleError(f"{where} is {text!r}, not a range such as '>=10.15,<12'")
        parts.append((match[1], _numbers(match[2])))
    return parts


def _numbers(release: str) -> tuple[int, ...]:
    """Return a release's numbers less trailing zeros: 10.0 is 10."""
    numbers = [int(number) for number in release.split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
