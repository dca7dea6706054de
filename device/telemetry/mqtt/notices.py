"""Notices of the cloud: parsed, told apart, and handed on once.

A notice says that something waits. It carries nothing that a device would act upon: what is behind
it is fetched and trusted only if it is signed. So a notice that was forged, late or double costs a
request at most.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping

from device.telemetry.clock import Clock
from edgekit.contracts.fields import show
from edgekit.contracts.telemetry import CommandNotice
from edgekit.contracts.topics import Device, Topic
from edgekit.errors import EdgekitError, MessageError, first_line

logger = logging.getLogger(__name__)

MAX_NOTICE_BYTES = 4096
"""A notice is some hundred bytes."""
REMEMBERED = 1000
"""Ids of the latest notices; the broker repeats within a session, not a thousand notices later."""

OUTCOMES = ("taken", "double", "expired", "unknown", "refused", "failed")
"""What becomes of notices: labels of ``notices_total``."""

Handler = Callable[[CommandNotice], None]


class Notices:
    """Takes in what comes on ``cmd/+/+``.

    Args:
        device: Who we are.
        clock: Tells whether a notice has expired, once it is synced.
        handlers: By command; called once a notice, and quick: what takes long runs elsewhere.

    Attributes:
        counts: By outcome, see :data:`OUTCOMES`.
    """

    def __init__(self, device: Device, clock: Clock, handlers: Mapping[str, Handler]) -> None:
        self._device, self._clock = device, clock
        self._handlers = dict(handlers)
        self._seen: OrderedDict[str, None] = OrderedDict()
        self.counts: Counter[str] = Counter()

    def take_in(self, topic: Topic, payload: bytes) -> str:
        """Take in one message; returns its outcome and never fails."""
        try:
            outcome = self._outcome(topic, payload)
        except MessageError as error:
            logger.warning("a notice on %s is refused: %s", show(str(topic)), error.message)
            outcome = "refused"
        self.counts[outcome] += 1
        return outcome

    def _outcome(self, topic: Topic, payload: bytes) -> str:
        if len(payload) > MAX_NOTICE_BYTES:
            raise MessageError(f"it has {len(payload)} bytes, more than {MAX_NOTICE_BYTES}")
        notice = CommandNotice.from_bytes(payload)
        if topic.device != self._device:
            raise MessageError("it is for another device")
        if (topic.type, topic.id) != (notice.command, notice.id):
            raise MessageError("its topic and its payload differ")
        if notice.id in self._seen:
            self._seen.move_to_end(notice.id)
            return "double"
        # A clock that nobody has set cannot tell; the broker drops what expires in its queue.
        if self._clock.is_synced() and notice.expires_ms <= self._clock.time_ms():
            return "expired"
        handler = self._handlers.get(notice.command)
        if handler is None:
            return "unknown"
        self._remember(notice.id)
        return self._call(handler, notice)

    def _call(self, handler: Handler, notice: CommandNotice) -> str:
        try:
            handler(notice)
        except EdgekitError as error:
            logger.warning("notice %s %s: %s", notice.command, notice.id, first_line(error))
            return "failed"
        except Exception:  # another part's fault must not end the telemetry
            logger.exception("notice %s %s", notice.command, notice.id)
            return "failed"
        logger.info("notice %s %s is taken", notice.command, notice.id)
        return "taken"

    def _remember(self, notice: str) -> None:
        self._seen[notice] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
