"""The model of the moment: loads it, and puts another in its place without failing a request.

A request holds a lease on the model that answers it, from its whole body to the last byte of its
answer; a model is freed when its last lease is given back. Two ways to change models:

- *beside*: the new one is loaded while the old one serves, takes every request from then on, and
  the old one ends what it has. Memory must hold both.
- *in turn*: new requests wait while the old one ends what it has and is freed, and the new one is
  loaded. If that fails the old one is loaded again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from device.agent.background import beside
from device.agent.hosted import Hosted, give_memory_back, host
from device.agent.options import LoadOptions
from device.api.errors import ApiError
from device.api.log import JsonLog
from device.api.metrics import Metrics
from device.api.settings import Settings
from device.runtime.faults import DeadlinePassedError, EngineStoppedError, QueueFullError
from edgekit.errors import EdgekitError

if TYPE_CHECKING:  # NumPy comes with them
    from device.agent.memory import Estimate
    from edgekit.bundle.reader import Bundle
    from edgekit.engine.load import LoadedModel

State = Literal["no model", "loading", "serving", "swapping", "stopping"]
Outcome = Literal["loaded", "beside", "in_turn", "unchanged", "failed"]
NO_MODEL = "no_model"
"""Code of the error that a request gets then."""
NO_MODEL_RETRY_S = 10
"""What a client is told to wait for a model."""


class Models:
    """Holds the model of the moment; used in one event loop.

    Args:
        path: The bundle, or a link to it; need not exist.
        options: How bundles are loaded.
        settings: How the server behaves.
        metrics: Where it is counted.
        log: Where it is told.

    Attributes:
        current: The model that takes requests; None without one.
        retiring: The one that ends what it has.
    """

    def __init__(
        self,
        path: Path,
        options: LoadOptions,
        settings: Settings,
        metrics: Metrics,
        log: JsonLog,
    ) -> None:
        self.path = path
        self._state: State = "no model"
        self._stopping = False
        self.current: Hosted | None = None
        self.retiring: Hosted | None = None
        self.settings, self.metrics = settings, metrics
        self._options, self._log = options, log
        self._swap, self._stop = asyncio.Lock(), asyncio.Lock()
        self._open = asyncio.Event()
        self._open.set()
        self._waiting = 0

    @property
    def state(self) -> State:
        """What it is doing."""
        return "stopping" if self._stopping else self._state

    @property
    def is_ready(self) -> bool:
        """Whether a request would be served at once."""
        return self.state == "serving" and self.current is not None and not self.fault()

    def fault(self) -> str:
        """Return what is wrong with an engine; empty if nothing is."""
        held = [hosted for hosted in (self.current, self.retiring) if hosted is not None]
        faults = (hosted.fault(self.settings.stall_s) for hosted in held)
        return next(filter(None, faults), "")

    @property
    def has_died(self) -> bool:
        """Whether an engine ended by a fault: nothing but another process helps."""
        held = (self.current, self.retiring)
        return any(h is not None and h.service.engine.fault is not None for h in held)

    def describe(self) -> dict[str, Any]:
        """Return what ``/readyz`` tells."""
        current, retiring = self.current, self.retiring
        return {
            "status": "ready" if self.is_ready else "not ready",
            "state": self.state,
            "model": None if current is None else current.name,
            "digest": None if current is None else current.bundle.digest,
            "draining": None if retiring is None else retiring.name,
            "error": self.fault() or None,
        }

    def adopt(self, model: LoadedModel) -> None:
        """Put the first model in place, loaded already."""
        self._place(host(model, self.settings, self.metrics))

    @contextlib.asynccontextmanager
    async def lease(self, deadline_s: float) -> AsyncIterator[Hosted]:
        """Yield the model of the moment, which stays until the lease is given back.

        Args:
            deadline_s: How long to wait for one that is being put in place, of ``time.monotonic``.

        Raises:
            ApiError: There is no model.
            EngineStoppedError: There is none any more.
            QueueFullError: As many wait for it as may.
            DeadlinePassedError: It was not there in time.
        """
        if not self._open.is_set():
            await self._wait(deadline_s)
        hosted = self.current
        if hosted is None and self._stopping:
            raise EngineStoppedError("the server is being stopped", "Ask again in a moment")
        if hosted is None:
            what = "a model is being loaded" if self.state == "loading" else "no model is installed"
            raise ApiError(503, what, code=NO_MODEL, retry_s=NO_MODEL_RETRY_S)
        hosted.take()
        try:
            yield hosted
        finally:
            hosted.give_back()

    async def swap(self, path: Path | None = None) -> Outcome:
        """Put the bundle at a path in place; returns once the old model is gone.

        Nothing is raised: a bundle that does not load leaves the old one serving, is logged and
        counted.

        Args:
            path: Where it is; None looks again where the link of the configuration leads.
        """
        async with self._swap:
            old = self.current
            self._state = "loading" if old is None else "swapping"
            try:
                outcome = await self._replace(old, self.path if path is None else path)
            except Exception as error:  # noqa: BLE001 - whatever a bundle does, the old one serves
                outcome = self._failed(error)
            finally:
                self._open.set()
                self._state = "no model" if self.current is None else "serving"
        if outcome != "unchanged":
            self.metrics.swaps.labels(outcome).inc()
        return outcome

    def end(self) -> None:
        """Be ready for no more requests: the server is about to stop."""
        self._stopping = True

    async def stop(self, drain_s: float | None = None) -> None:
        """Take nothing more, let what runs end in its time, and free the engines.

        Args:
            drain_s: Seconds that it has, after which it is told that it is cut off; None is what
                the settings say.
        """
        self.end()
        async with self._stop:  # who comes second waits for the first
            held = [hosted for hosted in (self.current, self.retiring) if hosted is not None]
            self.current = self.retiring = None
            for hosted in held:
                await hosted.drain(self.settings.drain_s if drain_s is None else drain_s)

    async def _wait(self, deadline_s: float) -> None:
        if self._waiting >= self.settings.queue_limit:
            raise QueueFullError(
                f"{self._waiting} requests wait for another model already", "Ask again in a moment"
            )
        self._waiting += 1
        try:
            await asyncio.wait_for(self._open.wait(), deadline_s - time.monotonic())
        except asyncio.TimeoutError as error:
            raise DeadlinePassedError("the request was not answered in its time") from error
        finally:
            self._waiting -= 1

    async def _replace(self, old: Hosted | None, path: Path) -> Outcome:
        """Put a bundle in the place of a model.

        Raises:
            Exception: It does not load; the old model serves.
        """
        from device.agent.loading import open_resolved  # noqa: PLC0415 - NumPy comes with it

        bundle = await beside(lambda: open_resolved(path), "open")
        if old is not None and (bundle.path, bundle.digest) == (old.bundle.path, old.bundle.digest):
            self._log.event("model_unchanged", model=old.name, digest=bundle.digest)
            return "unchanged"
        if old is None:
            self._place(await self._load(bundle))
            return "loaded"
        estimate = await beside(lambda: self._estimate(bundle), "estimate")
        self._log.event(
            "model_swap",
            model=bundle.manifest.name,
            digest=bundle.digest,
            way="beside" if estimate.fits else "in_turn",
            why=estimate.describe(),
        )
        if not estimate.fits:
            await self._in_turn(old, bundle)
            return "in_turn"
        new = await self._load(bundle)
        self._place(new, old)
        await self._retire(old)
        return "beside"

    async def _in_turn(self, old: Hosted, bundle: Bundle) -> None:
        """Free a model, then load another; or the first again if that fails.

        Raises:
            Exception: The other does not load; the first serves again.
        """
        from edgekit.bundle.verify import check_digests  # noqa: PLC0415 - NumPy comes with it

        # While the old one can still stay.
        await beside(lambda: self._require_room(bundle, old.bundle), "estimate")
        if self._options.digests:
            await beside(lambda: check_digests(bundle, threads=1), "digests")
        self._open.clear()
        own = old.bundle
        await self._retire(old)
        try:
            self._place(await self._load(bundle, digests=False), old)
        except Exception:
            self._log.event("model_restore", model=own.manifest.name, digest=own.digest)
            self._place(await self._load(own, digests=False, memory_check=False))
            raise

    async def _load(
        self, bundle: Bundle, *, digests: bool = True, memory_check: bool = True
    ) -> Hosted:
        from device.agent.loading import load_model  # noqa: PLC0415 - NumPy comes with it

        began_s = time.monotonic()
        own = self._options
        options = replace(
            own,
            digests=own.digests and digests,
            memory_check=own.memory_check and memory_check,
        )
        model = await beside(lambda: load_model(bundle, options), "load")
        for warning in model.warnings:
            self._log.event("model_warning", model=bundle.manifest.name, warning=warning)
        seconds = round(time.monotonic() - began_s, 3)
        self._log.event(
            "model_loaded", model=bundle.manifest.name, digest=bundle.digest, seconds=seconds
        )
        return host(model, self.settings, self.metrics)

    def _place(self, new: Hosted, old: Hosted | None = None) -> None:
        """Let a model take every request from now on."""
        if old is not None:
            new.accept_name_of(old, self.settings.drain_s)
        self.current, self._state = new, "serving"

    async def _retire(self, old: Hosted) -> None:
        """Let a model end what it has, and free it."""
        if self.current is old:
            self.current = None
        self.retiring = old  # where the agent ends meanwhile it is ``stop`` that frees it
        cut = await old.drain(self.settings.drain_s)
        self.retiring = None
        self._log.event("model_freed", model=old.name, digest=old.bundle.digest, cut_off=cut)
        await beside(give_memory_back, "free")

    def _require_room(self, bundle: Bundle, old: Bundle) -> None:
        """Refuse a bundle that will not fit even once the old model has gone.

        Raises:
            NoMemoryError: It will not.
        """
        from device.agent.loading import shares_memory  # noqa: PLC0415 - NumPy comes with them
        from device.agent.memory import needed_bytes, require_room  # noqa: PLC0415

        options, provider = self._options, self._options.provider
        if options.memory_check and shares_memory(provider):
            given_back = needed_bytes(old, options.slots(old), provider)
            require_room(bundle, options.slots(bundle), provider, given_back)

    def _estimate(self, bundle: Bundle) -> Estimate:
        from device.agent.loading import shares_memory  # noqa: PLC0415 - NumPy comes with them
        from device.agent.memory import Estimate, needed_bytes, read_memory  # noqa: PLC0415

        options = self._options
        return Estimate(
            needed_bytes(bundle, options.slots(bundle), options.provider),
            read_memory().free_bytes,
            own_memory=shares_memory(options.provider),
        )

    def _failed(self, error: Exception) -> Outcome:
        serving = None if self.current is None else self.current.name
        said = str(error) if isinstance(error, EdgekitError) else type(error).__name__
        self._log.event(
            "model_failed", error=type(error).__name__, message=said, still_serving=serving
        )
        return "failed"
