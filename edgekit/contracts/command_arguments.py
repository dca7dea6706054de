"""What a signed command may say besides its name; both ends hold it to this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgekit.contracts.fields import show
from edgekit.contracts.signed import Command
from edgekit.errors import MessageError

MAX_LIVE_MINUTES: Final = 60
"""Live mode ends by itself: it costs a message for every sample."""
MAX_URL_CHARS: Final = 2000
_REMEDY: Final = "docs/remote-config.md has the commands"


def live_minutes(command: Command) -> int:
    """Return for how long ``live`` is to last.

    Raises:
        MessageError: It does not say, says more than :data:`MAX_LIVE_MINUTES`, or something else.
    """
    minutes = _only(command, "minutes")
    if type(minutes) is not int or not 1 <= minutes <= MAX_LIVE_MINUTES:
        raise MessageError(
            f"command live: minutes must be 1 to {MAX_LIVE_MINUTES}, not {show(minutes)}", _REMEDY
        )
    return minutes


def upload_url(command: Command) -> str:
    """Return where ``logs`` wants its bundle put; whether the device sends it there is its own.

    Raises:
        MessageError: It does not say, or something else.
    """
    url = _only(command, "url")
    if not isinstance(url, str) or not url.isascii() or len(url) > MAX_URL_CHARS:
        raise MessageError(f"command logs: url {show(url)} is no address", _REMEDY)
    return url


def check_arguments(command: Command) -> None:
    """Refuse a command whose arguments no device understands; an unknown command passes.

    Raises:
        MessageError: So it is.
    """
    if command.command == "live":
        live_minutes(command)
    elif command.command == "logs":
        upload_url(command)


def _only(command: Command, name: str) -> Any:
    arguments: Mapping[str, Any] = command.arguments
    if set(arguments) != {name}:
        raise MessageError(
            f"command {command.command} takes {name} and nothing else, "
            f"not {show(sorted(arguments))}",
            _REMEDY,
        )
    return arguments[name]
