"""The bundle: what it is made of, how large it gets, and that all of it is redacted."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from private_lines import CLIENT, HARMLESS, IMSI, KEY, LINES, PROMPT, SECRETS

from device.api.log import JsonLog
from device.diagnostics.bundle import MAX_PART_BYTES, Part, pack
from device.diagnostics.sources import (
    KMSG,
    facts_of,
    file_tail,
    journal_tail,
    kernel_tail,
    versions,
)
from device.diagnostics.tail import LogTail
from edgekit.errors import MissingExtraError, StorageError

ROOT = Path(__file__).parents[3]


def unpacked(bundle: bytes) -> dict[str, bytes]:
    """Return the files of a bundle, held to its manifest."""
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(bundle))) as tar:
        files = {one.name: (tar.extractfile(one) or io.BytesIO()).read() for one in tar}
    manifest = json.loads(files["manifest.json"])
    for name, told in manifest["files"].items():
        assert told["bytes"] == len(files[name])
        assert told["sha256"] == hashlib.sha256(files[name]).hexdigest()
    assert set(files) == {"manifest.json", *manifest["files"]}
    return files


def failing(error: Exception) -> Callable[[], Any]:
    def read() -> Any:
        raise error

    return read


EVENT = json.dumps({"event": "request", "client": CLIENT, "prompt": PROMPT, "status": 200})


def test_everything_in_it_is_redacted() -> None:
    """Whatever kind a part is, and whatever it holds: no part has a way around."""
    bundle = pack(
        [
            Part("log.jsonl", "events", lambda: [EVENT, *LINES]),
            Part("kernel.log", "lines", lambda: [*LINES, *HARMLESS]),
            Part("facts.json", "facts", lambda: {str(n): line for n, line in enumerate(LINES)}),
            Part("absent.log", "lines", failing(OSError(13, f"denied to {CLIENT}"))),
            Part("broken.log", "lines", failing(StorageError(f"no {IMSI}"))),
        ],
        1_764_000_000_000,
    )
    files = unpacked(bundle)
    whole = b"".join(files.values()).decode()
    assert not [secret for secret in SECRETS if secret in whole]
    assert all(line in whole for line in HARMLESS)
    manifest = json.loads(files["manifest.json"])
    assert manifest["absent"] == {"absent.log": "denied to [address]", "broken.log": "no [number]"}
    assert manifest["taken_out"]["modem"] > 20
    assert manifest["time_ms"] == 1_764_000_000_000
    assert json.loads(files["log.jsonl"].splitlines()[0])["client"] == "client-1"


def test_it_stays_small() -> None:
    """Of long parts the end is kept, and of facts that are too many the number of bytes."""
    lines = [f"line {n} " + "word " * 40 for n in range(3000)]
    files = unpacked(
        pack(
            [
                Part("long.log", "lines", lambda: lines),
                Part("long.json", "facts", lambda: {f"k{n}": "word " * 9 for n in range(12_000)}),
            ],
            0,
        )
    )
    assert MAX_PART_BYTES - 300 < len(files["long.log"]) <= MAX_PART_BYTES
    assert files["long.log"].splitlines()[-1].startswith(b"line 2999 ")
    assert "left_out" in json.loads(files["long.json"])
    with pytest.raises(ValueError, match="at most 16"):
        pack([Part(str(n), "lines", list) for n in range(17)], 0)


def test_the_same_parts_make_the_same_bytes() -> None:
    """Nothing of the machine stands in the archive: no user, no time, no folder."""
    parts = [Part("a.log", "lines", lambda: ["a"])]
    assert pack(parts, 5) == pack(parts, 5)
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(pack(parts, 5)))) as tar:
        assert {(one.mtime, one.uid, one.uname, one.mode) for one in tar} == {(0, 0, "", 0o600)}


def test_a_device_without_zstd_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named."""
    monkeypatch.setitem(sys.modules, "backports", None)
    monkeypatch.setitem(sys.modules, "compression", None)
    with pytest.raises(MissingExtraError, match="diagnostic bundle"):
        pack([], 0)


def test_the_log_is_kept_in_memory_within_bounds() -> None:
    """The last lines, the oldest go; our own loggers' records are events, others' are not kept."""
    tail = LogTail(2000)
    log = JsonLog("off", lambda: None, tail.add)
    log.event("unseen")
    assert tail.lines() == []
    for n in range(100):
        tail.add(f"line {n} " + "x" * 50)
    assert sum(map(len, tail.lines())) <= 2000
    assert tail.lines()[-1].startswith("line 99 ")
    ours, theirs = logging.getLogger("device.x"), logging.getLogger("httpx")
    for logger in (ours, theirs):
        logger.addHandler(tail)
        try:
            logger.warning("alarm %s", "disk")
        finally:
            logger.removeHandler(tail)
    (event,) = [json.loads(line) for line in tail.lines() if line.startswith("{")]
    assert (event["logger"], event["message"], event["level"]) == (
        "device.x",
        "alarm disk",
        "warning",
    )


def test_a_log_hands_each_line_on(tmp_path: Path) -> None:
    """What stands in the file stands in the tail."""
    tail = LogTail()
    log = JsonLog(str(tmp_path / "log"), lambda: None, tail.add)
    log.event("started", port=1)
    log.close()
    assert (tmp_path / "log").read_text().splitlines() == tail.lines()


def test_the_end_of_a_file_is_whole_lines(tmp_path: Path) -> None:
    """However large it is, only its end is read."""
    path = tmp_path / "log"
    path.write_text("".join(f"line {n}\n" for n in range(1000)))
    assert list(file_tail(path, 30)) == ["line 997", "line 998", "line 999"]
    assert len(list(file_tail(path))) == 1000
    with pytest.raises(OSError, match="No such file"):
        list(file_tail(tmp_path / "none"))


def test_the_kernels_records_are_read(tmp_path: Path) -> None:
    """As /dev/kmsg gives them: key and value pairs, and what is none, are left out."""
    path = tmp_path / "kmsg"
    path.write_text(
        "6,339,5140900,-;NET: Registered PF_INET\n SUBSYSTEM=acpi\n DEVICE=+acpi:PNP0A03:00\n"
        "30,340,12345678901,c,caller=T1;systemd[1]: a; b\nnonsense\n"
    )
    assert kernel_tail(path) == [
        "[    5.140900] NET: Registered PF_INET",
        "[12345.678901] systemd[1]: a; b",
    ]
    with pytest.raises(OSError, match="No such file"):
        kernel_tail(tmp_path / "none")


def test_this_kernels_messages_are_read_or_refused() -> None:
    """The real device ends by itself: reading it waits for no further message."""
    if os.access(KMSG, os.R_OK):
        assert all(line.startswith("[") for line in kernel_tail())
    else:
        with pytest.raises(OSError, match="kmsg"):
            kernel_tail()


def test_the_journal_is_asked_for_the_agents_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a journal that is missing or refuses is told."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StorageError, match="no journalctl"):
        list(journal_tail())
    command = tmp_path / "journalctl"
    command.write_text('#!/bin/sh\necho "$@"\n')
    command.chmod(0o755)
    (line,) = journal_tail(7)
    assert line == "--unit edgekit-agent.service --lines 7 --output cat --no-pager"
    command.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(StorageError, match="journalctl fails"):
        list(journal_tail())


def test_versions_are_told_and_taken_for_no_address() -> None:
    """TensorRT's have four numbers, as an address has."""
    from device.diagnostics.redact import Redactor
    from device.diagnostics.sources import _spelled

    found = versions()
    assert found["python"].startswith("3.")
    assert found["httpx"]
    assert Redactor().value(found) == found
    assert Redactor().line(_spelled("10.3.0.30")) == "10.3.0 build 30"


@dataclass(frozen=True)
class Some:
    """A configuration."""

    path: Path
    names: tuple[str, ...]
    inner: Any = None


def test_a_configuration_is_facts() -> None:
    """Dataclasses, paths and tuples in JSON's types."""
    told = facts_of(Some(Path("/a"), ("b",), Some(Path("/c"), (), {"d": frozenset({1})})))
    assert told == {
        "path": "/a",
        "names": ["b"],
        "inner": {"path": "/c", "names": [], "inner": {"d": [1]}},
    }


@pytest.fixture
def agent_file(tmp_path: Path) -> Path:
    log = tmp_path / "agent.log"
    log.write_text(EVENT + "\n" + f"Traceback: prompt {PROMPT}\n")
    path = tmp_path / "agent.toml"
    path.write_text(f'[serve]\nlog = "{log}"\napi_keys = "/etc/edgekit/{KEY}"\n')
    return path


def test_the_command_writes_a_bundle(agent_file: Path, tmp_path: Path) -> None:
    """``python -m device diagnostics`` in a process of its own, without an agent."""
    out = tmp_path / "out.tar.zst"
    done = subprocess.run(
        [sys.executable, "-m", "device", "diagnostics", "--config", agent_file, "--out", out],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    files = unpacked(out.read_bytes())
    assert {"versions.json", "config.json", "log.jsonl", "remote.json"} <= set(files)
    assert "only the running agent" in json.loads(files["manifest.json"])["absent"]["readings.json"]
    whole = b"".join(files.values()).decode()
    assert not [secret for secret in SECRETS if secret in whole]
    assert json.loads(files["config.json"])["port"] == 8000
