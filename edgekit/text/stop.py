"""Finds stop strings in streaming text, across the boundaries of its pieces."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.text.reasoning import partial_match


class StopMatcher:
    """Passes text through until a stop string appears; the string itself is not passed.

    Text that may turn out to begin a stop string is held back. Of several matches the one
    that begins first wins, whatever the chunks the text came in.

    Args:
        stop: Stop strings, none empty.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Return the text that is settled; nothing once ``stopped`` is true."""
        if self.stopped:
            return ""
        self._held += text
        held = max((partial_match(self._held, stop) for stop in self._stop), default=0)
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        # A longer stop string still open before the match may yet begin earlier: wait for it.
        if found and min(found) <= len(self._held) - held:
            self.stopped = True
            return self._take(min(found))
        return self._take(len(self._held) - held)

    def flush(self) -> str:
        """Return what is held back at the end of the text, cut at a stop string in it."""
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._take(min(found))
        return self._take(len(self._held))

    def _take(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        if self.stopped:
            self._held = ""
        return text
