"""A model in place: its service, and the requests that it has."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import time
from typing import TYPE_CHECKING

from device.agent.background import beside

if TYPE_CHECKING:  # NumPy comes with them
    from starlette.types import ASGIApp

    from device.api.metrics import Metrics
    from device.api.service import Service
    from device.api.settings import Settings
    from edgekit.bundle.reader import Bundle
    from edgekit.engine.load import LoadedModel


class Hosted:
    """One loaded model; used in one event loop.

    Args:
        service: It.
        app: What answers requests to it.

    Attributes:
        open: Requests that it has.
    """

    def __init__(self, service: Service, app: ASGIApp) -> None:
        self.service, self.app = service, app
        self.open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def name(self) -> str:
        """The model's name."""
        return self.service.name

    @property
    def bundle(self) -> Bundle:
        """Where it came from."""
        return self.service.model.bundle

    def take(self) -> None:
        """Count a request in."""
        self.open += 1
        self._idle.clear()

    def give_back(self) -> None:
        """Count a request out."""
        self.open -= 1
        if not self.open:
            self._idle.set()

    def accept_name_of(self, other: Hosted, for_s: float) -> None:
        """Accept another model's name, and those that it accepts, for some time.

        Args:
            other: The one whose place it takes.
            for_s: Seconds.
        """
        now_s = time.monotonic()
        old = {name: until for name, until in other.service.aliases.items() if until > now_s}
        self.service.aliases = {**old, other.name: now_s + for_s}
        self.service.aliases.pop(self.name, None)

    async def drain(self, drain_s: float) -> int:
        """Wait until it has no requests, then free it; returns how many were cut off.

        Args:
            drain_s: Seconds that they have.
        """
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), drain_s)
        cut = self.open
        await beside(lambda: self.service.stop(0.0), "drain")
        return cut

    def fault(self, stall_s: float) -> str:
        """Return what is wrong with its engine; empty if nothing is.

        Args:
            stall_s: A step that takes longer hangs.
        """
        engine = self.service.engine
        if engine.fault is not None:
            return f"the engine of {self.name} died: {type(engine.fault).__name__}"
        if engine.step_s > stall_s:
            return f"a step of the engine of {self.name} has run for {engine.step_s:.0f} s"
        return ""


def host(model: LoadedModel, settings: Settings, metrics: Metrics) -> Hosted:
    """Return a loaded model that can be asked."""
    from device.api.app import make_app  # noqa: PLC0415 - NumPy comes with them
    from device.api.service import Service  # noqa: PLC0415

    service = Service(model, model.own_sampling, settings, metrics)
    return Hosted(service, make_app(service))


def give_memory_back() -> None:
    """Return to the system what a freed model has left in this process' heap."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
