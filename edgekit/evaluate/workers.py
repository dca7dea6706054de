"""Threads for NumPy work that splits by rows, with BLAS held to one thread meanwhile.

BLAS's own threads wait for each other by spinning: on a busy machine the small products of
attention then take ten times as long as on one thread. So the callers' threads do the
splitting. The thread count of the OpenBLAS that NumPy's wheels carry is set through its C API;
another BLAS keeps its own (set ``OMP_NUM_THREADS=1`` or its equivalent).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, final

import numpy as np

T = TypeVar("T")

_OPENBLAS_PREFIXES = ("scipy_openblas", "openblas")  # NumPy 2's wheels, NumPy 1.26's


@final
class Workers:
    """A pool of threads, alive inside ``with``; may be entered again while entered.

    Outside ``with``, or with one thread, work runs in the caller's thread.

    Args:
        threads: How many.
    """

    def __init__(self, threads: int) -> None:
        self.threads = max(1, threads)
        self._depth = 0
        self._blas_threads: int | None = None
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Workers:
        self._depth += 1
        if self._depth == 1:
            self._blas_threads = set_blas_threads(1)
            if self.threads > 1:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="edgekit-numpy")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None
            if self._blas_threads is not None:
                set_blas_threads(self._blas_threads)

    def map(self, function: Callable[[int], T], count: int) -> list[T]:
        """Return ``[function(0), ..., function(count - 1)]``, run on the threads.

        Overflow and invalid values warn in no thread: callers look at their results.
        """

        def quiet(index: int) -> T:
            with np.errstate(over="ignore", invalid="ignore"):  # does not reach other threads
                return function(index)

        if self._pool is None or count <= 1:
            return [quiet(i) for i in range(count)]
        return list(self._pool.map(quiet, range(count)))

    def rows(self, function: Callable[[slice], None], total: int, height: int = 0) -> None:
        """Call ``function`` over slices that cover ``range(total)``.

        Args:
            function: Must touch only the rows of its slice.
            total: Number of rows.
            height: Rows of a slice; 0 gives each thread one slice.
        """
        if total == 0:
            return
        step = height or -(-total // self.threads)
        self.map(lambda i: function(slice(i * step, min((i + 1) * step, total))), -(-total // step))


def set_blas_threads(count: int) -> int | None:
    """Set the threads of NumPy's own OpenBLAS; return what it had, None for another BLAS."""
    functions = _openblas()
    if functions is None:
        return None
    get, put = functions
    before = int(get())
    put(count)
    return before


@lru_cache(maxsize=1)
def _openblas() -> tuple[Any, Any] | None:
    """Return the get and set functions of the library NumPy has loaded already."""
    folder = Path(np.__file__).parent.parent / "numpy.libs"
    for path in sorted(folder.glob("*openblas*")):
        library = ctypes.CDLL(str(path))
        for prefix in _OPENBLAS_PREFIXES:
            for suffix in ("64_", ""):
                get = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
                put = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
                if get is not None and put is not None:
                    return get, put
    return None
