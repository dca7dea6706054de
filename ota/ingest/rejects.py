"""Which rejects are kept: a device that sends nonsense fills neither the log nor the table."""

from __future__ import annotations

from collections import OrderedDict

from ota.store.items import Reject

KEPT_A_MINUTE = 10
_MINUTE_MS = 60_000
_MAX_DEVICES = 10_000


class RejectLimit:
    """Lets some rejects of each device pass; the counters have them all."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def keeps(self, reject: Reject) -> bool:
        """Whether a reject is kept."""
        levels = reject.topic.split("/", 4)
        whose = "/".join(levels[1:4])
        minute = reject.received_ms // _MINUTE_MS
        then, count = self._kept.pop(whose, (minute, 0))
        count = count + 1 if then == minute else 1
        self._kept[whose] = (minute, count)
        if len(self._kept) > _MAX_DEVICES:
            self._kept.popitem(last=False)
        return count <= KEPT_A_MINUTE
