"""The thread that owns the engine, and what others may ask of it.

Everything that touches the engine happens here, between two of its steps: whoever submits waits for
at most one. If a step fails in a way that nobody foresaw the loop ends and says so; what supervises
the process then starts another.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from device.runtime.faults import EngineStoppedError
from device.runtime.request import Request
from device.runtime.scheduler import Load, Scheduler
from edgekit.errors import EngineError

Work = Callable[[], None]


class EngineLoop:
    """Runs a scheduler in a thread of its own.

    Args:
        scheduler: Nobody else may touch it from now on.
        clock: Seconds from any start, never going back.

    Attributes:
        fault: What ended the loop; None while it is well.
    """

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float] = time.monotonic) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._step_began_s: float | None = None
        self._inbox: deque[Work] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._open: set[Request] = set()
        self.fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are served."""
        return self._thread.is_alive()

    @property
    def load(self) -> Load:
        """See ``Scheduler.load``."""
        return self._scheduler.load

    @property
    def step_s(self) -> float:
        """For how long the present step has run; 0 while there is nothing to do.

        A step that does not end is the sign of an engine that hangs: what watches over the process
        goes by this.
        """
        began_s = self._step_began_s
        return 0.0 if began_s is None else self._clock() - began_s

    def submit(self, request: Request) -> Future[None]:
        """Hand a request over; the future is done once it was taken or refused.

        Its sinks are called in the engine's thread, which waits for them: they must be quick.

        The future's exception may be what ``Scheduler.submit`` raises, or EngineStoppedError.
        """
        taken: Future[None] = Future()

        def work() -> None:
            if not taken.set_running_or_notify_cancel():
                return
            if self.fault is not None:
                taken.set_exception(self._stopped())
                return
            try:
                self._scheduler.submit(request)
            except EngineError as error:
                taken.set_exception(error)
            else:
                self._open.add(request)
                taken.set_result(None)

        if not self._post(work):
            taken.set_exception(self._stopped())
        return taken

    def cancel(self, request: Request) -> None:
        """End a request soon; no other notices. One that has ended is let be.

        While the loop is being stopped, too: who has left is not waited for.
        """
        self._post(lambda: self._scheduler.cancel(request), to_the_last=True)

    def stop(self, drain_s: float = 0.0) -> None:
        """Take no more requests, let those that were taken end, and end the thread.

        Args:
            drain_s: Seconds after which those that are left are cancelled.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(drain_s)
        if self._thread.is_alive():
            with self._wake:
                self._inbox.append(self._cancel_all)
                self._wake.notify()
            self._thread.join()

    def _post(self, work: Work, *, to_the_last: bool = False) -> bool:
        """Let the thread do something before its next step; False if it takes nothing more."""
        with self._wake:
            if (self._stopping and not to_the_last) or self.fault is not None:
                return False
            self._inbox.append(work)
            self._wake.notify()
        return True

    def _run(self) -> None:
        busy = False
        try:
            while True:
                with self._wake:
                    self._step_began_s = None
                    while not (busy or self._inbox or self._stopping):
                        self._wake.wait()
                    if self._stopping and not (busy or self._inbox):
                        return
                    waiting, self._inbox = self._inbox, deque()
                self._step_began_s = self._clock()
                for work in waiting:
                    work()
                busy = self._scheduler.step()
                self._open = {request for request in self._open if request.reason is None}
        except BaseException as error:
            self._give_up(error)
            raise

    def _cancel_all(self) -> None:
        for request in self._open:
            self._scheduler.cancel(request)

    def _give_up(self, fault: BaseException) -> None:
        """Tell everyone who waits that nothing will come."""
        with self._wake:
            self.fault, left = fault, list(self._inbox)
            self._inbox.clear()
        error = self._stopped()
        for request in list(self._open):
            with contextlib.suppress(Exception):  # one broken sink must not silence the others
                request.finish("failed", error)
        for work in left:  # those that were not taken yet learn it now
            with contextlib.suppress(Exception):
                work()

    def _stopped(self) -> EngineStoppedError:
        fault = self.fault
        if fault is None:
            return EngineStoppedError("the engine is being stopped", "Ask again in a moment")
        return EngineStoppedError(
            f"the engine stopped: {type(fault).__name__}: {fault}", "It has to be started again"
        )
