"""Run a command and measure it: wall and CPU seconds, peak anonymous and resident memory.

Anonymous memory (``RssAnon``) is what a process really needs; resident memory also counts pages
of mapped files that the kernel may drop, so a program that maps a 15 GB checkpoint looks large
without being so. Both are summed over the process and all its descendants, every 20 ms; a peak
shorter than that may be missed. Linux only.

    python tests/bench/measure.py --json out.json -- python -m edgekit build ...
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SAMPLE_S = 0.02
MIB = 1024 * 1024


class BenchError(RuntimeError):
    """A benchmark cannot go on; the message says what failed and where to look."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run of a command took.

    Attributes:
        returncode: Exit status; negative is the signal that ended it.
        wall_s: Elapsed seconds.
        user_s: CPU seconds in user mode, descendants included.
        system_s: CPU seconds in the kernel, descendants included.
        peak_anonymous_bytes: Largest sum of ``RssAnon`` over the process tree.
        peak_resident_bytes: Largest sum of ``VmRSS`` over the process tree.
        samples: How many times memory was read.
        other_cores: Processors that the rest of the machine kept busy meanwhile, on average:
            well above 0 says that the times are not to be trusted.
    """

    returncode: int
    wall_s: float
    user_s: float
    system_s: float
    peak_anonymous_bytes: int
    peak_resident_bytes: int
    samples: int
    other_cores: float

    @property
    def cpu_s(self) -> float:
        """User and kernel seconds together."""
        return self.user_s + self.system_s


class _MemorySampler(threading.Thread):
    """Reads the memory of a process tree until told to stop."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True, name="memory-sampler")
        self._root = root
        self._done = threading.Event()
        self.anonymous = self.resident = self.samples = 0

    def run(self) -> None:
        while not self._done.is_set():
            pairs = [_memory(pid) for pid in _tree(self._root)]
            self.anonymous = max(self.anonymous, sum(anonymous for anonymous, _ in pairs))
            self.resident = max(self.resident, sum(resident for _, resident in pairs))
            self.samples += 1
            self._done.wait(SAMPLE_S)

    def stop(self) -> None:
        self._done.set()
        self.join()


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
) -> Usage:
    """Run ``command`` to its end and measure it.

    Args:
        command: Program and arguments.
        env: Added to this process's environment.
        cwd: Where to run it.
        log: Takes its stdout and stderr; without it they are inherited.
    """
    with contextlib.ExitStack() as stack:
        sink = None if log is None else stack.enter_context(log.open("wb"))
        busy_s = _machine_busy_s()
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            stdout=sink,
            stderr=subprocess.STDOUT if sink else None,
            start_new_session=True,
        )
        sampler = _MemorySampler(process.pid)
        sampler.start()
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            sampler.stop()
        wall_s = time.perf_counter() - start
        others_s = _machine_busy_s() - busy_s - used.ru_utime - used.ru_stime
    process.returncode = os.waitstatus_to_exitcode(status)  # reaped above, tell Popen so
    return Usage(
        returncode=process.returncode,
        wall_s=wall_s,
        user_s=used.ru_utime,
        system_s=used.ru_stime,
        peak_anonymous_bytes=sampler.anonymous,
        # The kernel's own high-water mark of the largest process catches what sampling missed.
        peak_resident_bytes=max(sampler.resident, used.ru_maxrss * 1024),
        samples=sampler.samples,
        other_cores=max(0.0, others_s) / wall_s,
    )


def run_checked(
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Usage:
    """Run ``command`` as :func:`run` does.

    Raises:
        BenchError: It failed; the message ends with the last lines it wrote.
    """
    usage = run(command, env=env, cwd=cwd, log=log)
    if usage.returncode:
        lines = log.read_text(errors="replace").splitlines()[-8:]
        tail = "\n    ".join(lines)
        raise BenchError(
            f"exit status {usage.returncode} from: {' '.join(command)}\n    {tail}\n  (all: {log})"
        )
    return usage


def wait_until_calm(cores: float, timeout_s: float) -> None:
    """Wait until the whole machine has used fewer than ``cores`` processors for 2 seconds.

    Raises:
        BenchError: It did not come to rest within ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    calm_since = time.monotonic()
    while time.monotonic() - calm_since < 2:
        busy_s, start = _machine_busy_s(), time.monotonic()
        time.sleep(0.5)
        if _machine_busy_s() - busy_s > cores * (time.monotonic() - start):
            calm_since = time.monotonic()
        if time.monotonic() > deadline:
            raise BenchError(f"others kept {cores} or more processors busy for {timeout_s:.0f} s")


def _machine_busy_s() -> float:
    """Return the CPU seconds of all processes since boot, kernel and stolen time included."""
    ticks = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = (int(tick) for tick in ticks[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _tree(root: int) -> list[int]:
    """Return ``root`` and its descendants that are alive."""
    found = [root]
    for pid in found:  # grows while it is walked
        tasks = Path(f"/proc/{pid}/task")
        with contextlib.suppress(OSError):
            for task in tasks.iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _memory(pid: int) -> tuple[int, int]:
    """Return a process's (RssAnon, VmRSS) in bytes; zeros when it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    kib = [int(fields.get(key, "0 kB").split()[0]) for key in ("RssAnon", "VmRSS")]
    return kib[0] * 1024, kib[1] * 1024


def main() -> int:
    """Measure the command after ``--`` and exit with its status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("command", nargs="+", help="what to run, after --")
    options = parser.parse_args()
    usage = run(options.command)
    if options.json:
        options.json.write_text(json.dumps(asdict(usage), indent=2) + "\n")
    print(
        f"wall {usage.wall_s:.2f} s, cpu {usage.cpu_s:.2f} s, "
        f"peak anonymous {usage.peak_anonymous_bytes / MIB:.0f} MiB, "
        f"peak resident {usage.peak_resident_bytes / MIB:.0f} MiB, "
        f"others {usage.other_cores:.2f} cores",
        file=sys.stderr,
    )
    return usage.returncode


if __name__ == "__main__":
    sys.exit(main())
