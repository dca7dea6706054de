"""Engines on disk: built once for a key of all that they depend on, never loaded damaged.

A key is one pair of files, ``<key>.engine`` and ``<key>.json`` (the sidecar: the key's parts, the
engine's sha256 and length, what was built). The sidecar is renamed into place last, so what has
one is whole; whoever asks for an engine reads all of it first. Processes take turns by a lock file
a key (flock(2), which the system lets go of when a process dies), and hold a shared lock on the
engine they use, so that none is evicted from under them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.bundle.digests import file_digest
from edgekit.bundle.storage import storage_errors, sync_folder, write_atomic
from edgekit.contracts.canonical import canonical_bytes, parse_document
from edgekit.errors import BundleError, EngineError

LIMIT_BYTES = 64_000_000_000
"""What a cache may take: a dozen engines of 8 B parameters in four bits."""
OPTION = "--cache"
_ENGINE, _SIDECAR, _LOCK, _BUILDING = ".engine", ".json", ".lock", ".building"

Make = Callable[[Path], Mapping[str, Any]]
"""Writes an engine to the path it is given; returns what the sidecar is to say of it."""


@dataclass(frozen=True, slots=True)
class EngineKey:
    """All that an engine depends on.

    Attributes:
        graph_sha256: Of the graph's file.
        weights_sha256: Of the names and digests of all stored tensors.
        plan: The engine plan's JSON form.
        module: Python module of the builder.
        version: Its version.
        sm: Compute capability built for.
        l4t: Release of the machine's L4T; empty where there is none.
    """

    graph_sha256: str
    weights_sha256: str
    plan: Mapping[str, Any]
    module: str
    version: str
    sm: str
    l4t: str

    def digest(self) -> str:
        """Return what the engine's files are named by: sha256 of the canonical JSON form."""
        return hashlib.sha256(canonical_bytes(asdict(self))).hexdigest()

    def same_but_for_plan(self, other: EngineKey) -> bool:
        """Whether another key differs by plan or L4T alone: its engine computes the same here."""
        return replace(self, plan=other.plan, l4t=other.l4t) == other

    @property
    def timings(self) -> str:
        """Name of the file of timings that builds of one builder for one GPU share."""
        return f"{self.module}-{self.version}-sm{self.sm}.timings"


@dataclass(slots=True)
class CachedEngine:
    """An engine that was checked and is held: it is not evicted until :meth:`release`.

    Attributes:
        path: Its file.
        facts: What its sidecar says was built.
        size_bytes: Its length.
        built: Whether it was built just now.
        damage: Why one that was there had to be built again; empty if none had to.
        evicted: Keys of engines that made room.
        key: What it was built for, an ``EngineKey``'s fields as the sidecar has them.
        warning: Why it stands in for another engine; empty if it does not.
    """

    path: Path
    facts: Mapping[str, Any]
    size_bytes: int
    built: bool
    damage: str
    evicted: tuple[str, ...]
    key: Mapping[str, Any]
    _handle: int
    warning: str = ""

    def release(self) -> None:
        """Let others evict it; more than once is harmless."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class EngineCache:
    """A folder of engines.

    Args:
        folder: Made when something is built.
        limit_bytes: Engines that were not used for longest are evicted above this, never one in
            use; what is in use may take more.
    """

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder = folder
        self._limit_bytes = limit_bytes

    def timings(self, key: EngineKey) -> Path:
        """Return where a builder keeps its timings for the next build."""
        return self.folder / key.timings

    def obtain(self, key: EngineKey, make: Make) -> CachedEngine:
        """Return a key's engine, built by ``make`` where it is missing or damaged.

        Another process that builds the same is waited for. A build that fails leaves nothing, and
        evicts nothing: engines that ran go on running.

        Raises:
            StorageError: The cache cannot be read or written.
            EdgekitError: What ``make`` raises.
        """
        name = key.digest()
        with storage_errors(self.folder, option=OPTION):
            self.folder.mkdir(parents=True, exist_ok=True)
        with self._turn(name):
            # Only the lock's holder writes it: what is there was left by one that died.
            self._remove(name, _BUILDING)
            damage = self._damage(name)
            built = damage is not None
            if built:
                self._remove(name, _SIDECAR, _ENGINE)
                self._build(name, key, make)
            engine = self._held(name)
        engine.built, engine.damage = built, damage or ""
        engine.evicted = self._evict() if built else ()
        return engine

    def stand_in(self, key: EngineKey) -> CachedEngine | None:
        """Return a whole engine that computes what a key's would, the one used last; None for none.

        It is of the same graph, weights, builder and GPU: another plan, or another release of L4T.
        """
        for other in self.relatives(key):
            if not other.same_but_for_plan(key):
                continue
            name = other.digest()
            with self._turn(name):
                if self._damage(name) is None:
                    return self._held(name)
        return None

    def relatives(self, key: EngineKey) -> list[EngineKey]:
        """Return the keys of a graph's and its weights' other engines, the one used last first."""
        found = []
        with storage_errors(self.folder, option=OPTION):
            for path in self.folder.glob(f"*{_SIDECAR}"):
                # A damaged sidecar, or one just evicted, is no engine's; `obtain` reports damage.
                with contextlib.suppress(BundleError, FileNotFoundError, TypeError):
                    other = EngineKey(**_read_sidecar(path)["key"])
                    same = (other.graph_sha256, other.weights_sha256)
                    if other != key and same == (key.graph_sha256, key.weights_sha256):
                        used = path.with_suffix(_ENGINE).stat().st_mtime_ns
                        found.append((used, other))
        return [other for _, other in sorted(found, key=lambda pair: pair[0], reverse=True)]

    def _held(self, name: str) -> CachedEngine:
        """Hold an engine that was checked."""
        sidecar = _read_sidecar(self._file(name, _SIDECAR))
        return CachedEngine(
            path=self._file(name, _ENGINE),
            facts=sidecar["facts"],
            size_bytes=sidecar["size_bytes"],
            built=False,
            damage="",
            evicted=(),
            key=sidecar["key"],
            _handle=self._hold(name),
        )

    def _build(self, name: str, key: EngineKey, make: Make) -> None:
        """Let ``make`` write the engine, then put it and its sidecar in place."""
        part = self._file(name, _BUILDING)
        try:
            facts = make(part)
            with storage_errors(part, option=OPTION):
                with part.open("rb") as file:
                    os.fsync(file.fileno())
                sha256, size_bytes = file_digest(part)
                _refuse_empty(size_bytes)
                part.replace(self._file(name, _ENGINE))
                sync_folder(self.folder)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sidecar = {"key": asdict(key), "sha256": sha256, "size_bytes": size_bytes}
        text = json.dumps({**sidecar, "facts": dict(facts)}, indent=2, sort_keys=True)
        write_atomic(self._file(name, _SIDECAR), f"{text}\n".encode())

    def _damage(self, name: str) -> str | None:
        """Return what is wrong with an engine; empty if it was never there, None if nothing is."""
        engine, sidecar = self._file(name, _ENGINE), self._file(name, _SIDECAR)
        with storage_errors(engine, option=OPTION):
            if not sidecar.exists():
                return ""  # never built, or its build was cut off before its last rename
            try:
                said = _read_sidecar(sidecar)
                size_bytes = engine.stat().st_size
            except BundleError as error:
                return f"the sidecar of engine {name[:12]} is damaged: {error.message}"
            except FileNotFoundError:
                return f"engine {name[:12]} is gone, its sidecar is there"
            if size_bytes != said["size_bytes"]:
                return f"engine {name[:12]} has {size_bytes} bytes of {said['size_bytes']}"
            if file_digest(engine)[0] != said["sha256"]:
                return f"engine {name[:12]} is damaged: its digest is not its sidecar's"
        return None

    def _hold(self, name: str) -> int:
        """Open an engine under a shared lock, and mark it as used now."""
        engine = self._file(name, _ENGINE)
        with storage_errors(engine, option=OPTION):
            handle = os.open(engine, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(handle, fcntl.LOCK_SH)
            os.utime(engine)
        return handle

    def _evict(self) -> tuple[str, ...]:
        """Remove engines not used for longest until the limit is kept; returns their keys."""
        with storage_errors(self.folder, option=OPTION):
            found = [(path, path.stat()) for path in self.folder.glob(f"*{_ENGINE}")]
        total_bytes = sum(stat.st_size for _, stat in found)
        evicted = []
        for path, stat in sorted(found, key=lambda item: item[1].st_mtime_ns):
            if total_bytes <= self._limit_bytes:
                break
            if self._evict_one(path):
                total_bytes -= stat.st_size
                evicted.append(path.stem)
        return tuple(evicted)

    def _evict_one(self, engine: Path) -> bool:
        """Remove an engine that nobody uses or builds; returns whether it was one."""
        try:
            with self._turn(engine.stem, wait=False), engine.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._remove(engine.stem, _SIDECAR, _ENGINE)
        except (BlockingIOError, FileNotFoundError):
            return False
        return True

    @contextlib.contextmanager
    def _turn(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """Hold a key's lock.

        Raises:
            BlockingIOError: Another process has it, and ``wait`` is off.
        """
        path = self._file(name, _LOCK)
        with storage_errors(path, option=OPTION):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield
        finally:
            os.close(handle)

    def _remove(self, name: str, *suffixes: str) -> None:
        for suffix in suffixes:
            path = self._file(name, suffix)
            with storage_errors(path, option=OPTION):
                path.unlink(missing_ok=True)

    def _file(self, name: str, suffix: str) -> Path:
        return self.folder / f"{name}{suffix}"


def default_folder() -> Path:
    """Return where engines are kept unless the user says: ``EDGEKIT_ENGINES``, or the XDG cache."""
    chosen = os.environ.get("EDGEKIT_ENGINES")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgekit" / "engines"


def _refuse_empty(size_bytes: int) -> None:
    if size_bytes == 0:
        raise EngineError("the builder wrote an empty engine")


def _read_sidecar(path: Path) -> dict[str, Any]:
    """Return a sidecar's fields.

    Raises:
        BundleError: It is no sidecar.
    """
    said = parse_document(path.read_bytes(), path.name)
    kinds = {"sha256": str, "size_bytes": int, "key": dict, "facts": dict}
    for field, kind in kinds.items():
        if not isinstance(said.get(field), kind):
            raise BundleError(f"{path.name} has no {field}")
    return said
