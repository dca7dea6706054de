"""Server-sent events, from the bytes of a response to the data of each event.

Source: html.spec.whatwg.org/multipage/server-sent-events.html, as far as OpenAI's streams use it:
``data`` lines, comments, and blank lines between events. Lines end with LF, CRLF or CR only; what
else Unicode calls a line's end (U+2028 in a model's text) is text.
"""

from __future__ import annotations

import re

from edgekit.errors import EndpointError

MAX_EVENT_BYTES = 16 << 20
"""A stream without a line's end is no stream of events, and must not fill the memory."""
_LINE = re.compile(rb"([^\r\n]*)(\r\n|\n|\r(?=.))", re.DOTALL)


class EventDecoder:
    """Puts events together, wherever the network cut them."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[str]:
        """Return the data of the events that a piece of the body completes.

        Raises:
            EndpointError: An event is longer than any answer's, or is not UTF-8.
        """
        text, found, end = self._rest + piece, list[str](), 0
        for match in _LINE.finditer(text):
            end = match.end()
            line = match[1]
            if line:
                self._take(line)
            elif self._data:
                found.append(self._event())
        self._rest = text[end:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EndpointError(
                f"a line of the stream has more than {MAX_EVENT_BYTES >> 20} MiB",
                "Check that the address is that of an OpenAI-compatible server",
            )
        return found

    def _take(self, line: bytes) -> None:
        """Keep a ``data`` line; other fields and comments say nothing here."""
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))

    def _event(self) -> str:
        data, self._data = b"\n".join(self._data), []
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise EndpointError(
                "an event of the stream is not UTF-8", "Report it to who made the server"
            ) from error
