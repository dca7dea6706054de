"""What a bundle is made of: the log's end, versions, configuration, the kernel's messages.

Everything is read here as it is; ``device.diagnostics.bundle`` redacts it. Nothing but the agent's
own files, the kernel's and a fixed command is read.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final

from edgekit import __version__
from edgekit.errors import StorageError, first_line

MAX_TAIL_BYTES: Final = 2 << 20
"""Read of a log's end."""
KERNEL_LINES: Final = 1000
KMSG: Final = Path("/dev/kmsg")
RELEASE: Final = Path("/etc/nv_tegra_release")
UNIT: Final = "edgekit-agent.service"
_RECORD_BYTES: Final = 8192
"""Larger than any record (the kernel's CONSOLE_EXT_LOG_MAX, include/linux/printk.h)."""
_JOURNAL_S: Final = 10.0
_PACKAGES: Final = (
    "cryptography",
    "httpx",
    "llguidance",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "paho-mqtt",
    "starlette",
    "tensorrt",
    "uvicorn",
)


def versions() -> dict[str, str]:
    """Return what runs here."""
    found = {
        "edgekit": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "l4t": _l4t(),
    }
    found |= {name: _installed(name) for name in _PACKAGES}
    return {name: _spelled(text) for name, text in found.items() if text}


def facts_of(value: Any) -> Any:
    """Return a configuration's dataclass in JSON's types."""
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: facts_of(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): facts_of(item) for name, item in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [facts_of(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def file_tail(path: Path, limit_bytes: int = MAX_TAIL_BYTES) -> Iterator[str]:
    """Yield the last whole lines of a file.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - limit_bytes))
        data = file.read(limit_bytes)
    lines = data.decode("utf-8", "replace").splitlines()
    yield from lines[1:] if size > limit_bytes else lines


def journal_tail(lines: int = 5000) -> Iterator[str]:
    """Yield the last lines that the agent's unit wrote into the journal.

    Raises:
        StorageError: There is no journal, or this user may not read it.
    """
    remedy = "Ask as root, or as a member of the group systemd-journal"
    command = shutil.which("journalctl")
    if command is None:
        raise StorageError("there is no journalctl", "Let the agent log into a file")
    asked = [command, "--unit", UNIT, "--lines", str(lines), "--output", "cat", "--no-pager"]
    try:
        done = subprocess.run(asked, capture_output=True, check=True, timeout=_JOURNAL_S)
    except subprocess.SubprocessError as error:
        raise StorageError(f"journalctl fails: {first_line(error)}", remedy) from error
    except OSError as error:
        raise StorageError(f"journalctl cannot be run: {error.strerror or error}") from error
    yield from done.stdout.decode("utf-8", "replace").splitlines()


def kernel_tail(path: Path = KMSG) -> list[str]:
    """Return the kernel's last messages, as ``dmesg`` shows them.

    Raises:
        OSError: This process may not read them (ProtectKernelLogs of the agent's unit).
    """
    kept: deque[str] = deque(maxlen=KERNEL_LINES)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                record = os.read(handle, _RECORD_BYTES)
            except BlockingIOError:  # all are read
                break
            except OSError as error:
                if error.errno != errno.EPIPE:  # overwritten meanwhile: the next read goes on
                    raise
                continue
            if not record:  # an ordinary file's end, in tests
                break
            kept.extend(_kernel_lines(record.decode("utf-8", "replace")))
    finally:
        os.close(handle)
    return list(kept)


def _kernel_lines(records: str) -> Iterator[str]:
    """Yield messages of records ``PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;MESSAGE``.

    Lines that begin with a space are a record's key and value pairs (Documentation/ABI/testing/
    dev-kmsg); they are left out.
    """
    for line in records.splitlines():
        head, found, message = line.partition(";")
        stamp = head.split(",")
        if line.startswith(" ") or not found or len(stamp) < 3 or not stamp[2].isdecimal():
            continue
        seconds, microseconds = divmod(int(stamp[2]), 1_000_000)
        yield f"[{seconds:5d}.{microseconds:06d}] {message}"


def _installed(package: str) -> str:
    """Return a package's version, empty where it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return ""


def _l4t() -> str:
    """Return the release of L4T, empty where there is none."""
    try:
        return RELEASE.read_text(encoding="utf-8", errors="replace")[:200].partition("\n")[0]
    except OSError:
        return ""


def _spelled(version: str) -> str:
    """Return a version that is not taken for an address: TensorRT's have four numbers."""
    parts = version.split(".")
    return f"{'.'.join(parts[:3])} build {'.'.join(parts[3:])}" if len(parts) > 3 else version
