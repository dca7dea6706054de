"""Bounds on what a chat template may cost: steps, seconds, and the length of what it makes.

A template is a program that came with the weights. jinja2's sandbox keeps it from the machine, not
from its memory and time; these checks do, each before the work is done.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

MAX_RENDERED_CHARS: Final = 16 << 20
"""Longest prompt rendered; at some 3 characters a token, far above any context."""
MAX_STEPS: Final = 1_000_000
"""Loop iterations, macro calls and list items of one rendering; published templates need some ten
a message."""
MAX_RENDER_S: Final = 10.0
"""Longest rendering: a bound on what one step (a sort, a replacement) can take."""

_WIDTH = re.compile(r"[*]|\d{5,}|:[^}]*\{")
"""In a format string: a width that is computed, or of more than four digits."""
_PADDING: Final = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})


class Work(threading.local):
    """Steps of the rendering that runs in this thread, and when it began."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin a rendering."""
        self.steps = 0
        self.started_s = time.monotonic()

    def add(self, steps: int) -> None:
        """Count steps.

        Raises:
            SecurityError: There are too many, or they take too long.
        """
        from jinja2.exceptions import SecurityError  # noqa: PLC0415 - an extra

        self.steps += steps
        if self.steps > MAX_STEPS:
            message = f"it takes more than {MAX_STEPS} steps"
            raise SecurityError(message)
        if time.monotonic() - self.started_s > MAX_RENDER_S:
            message = f"it takes more than {MAX_RENDER_S:g} s"
            raise SecurityError(message)


work = Work()


def limited_range(*arguments: int) -> range:
    """Return a range whose items are counted."""
    from jinja2.sandbox import safe_range  # noqa: PLC0415 - an extra

    numbers: range = safe_range(*arguments)
    work.add(len(numbers))
    return numbers


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Refuse a binary operation that would fill the memory before output is counted.

    Raises:
        SecurityError: It would.
    """
    if operator == "+":
        check_sum(left, right)
    elif operator == "%":
        _check_format(left)
    else:
        _check_product(operator, left, right)


def check_sum(left: Any, right: Any) -> None:
    """Count the items of a sum of lists, and refuse one of strings that is too long.

    Raises:
        SecurityError: There are too many.
    """
    from jinja2.exceptions import SecurityError  # noqa: PLC0415 - an extra

    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        work.add(len(left) + len(right))
    if isinstance(left, str) and isinstance(right, str):
        count = len(left) + len(right)
        if count > MAX_RENDERED_CHARS:
            message = f"it joins strings to {count} characters"
            raise SecurityError(message)


def _check_product(operator: str, left: Any, right: Any) -> None:
    from jinja2.exceptions import SecurityError  # noqa: PLC0415 - an extra

    for value, times in ((left, right), (right, left)):
        if not isinstance(times, int):
            continue
        if isinstance(value, (str, list, tuple)) and len(value) * times > MAX_RENDERED_CHARS:
            message = f"it repeats {len(value)} items {times} times"
            raise SecurityError(message)
    if operator == "**" and isinstance(right, int) and right > 64:
        message = f"it raises a number to the power {right}"
        raise SecurityError(message)


def _check_format(template: Any) -> None:
    """Refuse a ``%`` format that pads to a length of its own choosing.

    Raises:
        SecurityError: It does.
    """
    from jinja2.exceptions import SecurityError  # noqa: PLC0415 - an extra

    if isinstance(template, str) and _WIDTH.search(template):
        message = "it formats with a width that is computed or of more than four digits"
        raise SecurityError(message)


def check_call(name: str, text: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Refuse a string method or filter whose result would be too long.

    Args:
        name: Of the method or filter.
        text: What it works on.
        arguments: Its positional arguments.
        named: Its keyword arguments.

    Raises:
        SecurityError: It pads or repeats beyond the length of a prompt.
    """
    from jinja2.exceptions import SecurityError  # noqa: PLC0415 - an extra

    if not isinstance(text, str):
        return
    values = (*arguments, *named.values())
    length = 0
    if name in _PADDING:
        length = max((value for value in values if isinstance(value, int)), default=0)
        length *= 1 + text.count("\t") if name == "expandtabs" else 1
    elif name == "indent":
        lines = 1 + text.count("\n")
        length = lines * max((v if isinstance(v, int) else len(str(v)) for v in values), default=0)
    elif name == "replace" and len(values) > 1:
        found = text.count(str(values[0])) if values[0] else len(text) + 1
        length = found * len(str(values[1]))
    elif name in {"format", "format_map"}:
        _check_format(text)
    if length > MAX_RENDERED_CHARS:
        message = f"its {name} makes {length} characters"
        raise SecurityError(message)
