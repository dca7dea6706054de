"""Full disks, missing permissions and names the file system refuses; nothing is left or lost."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from bad_input import fails, request
from factories import write_checkpoint
from privileges import reachable, unprivileged

from edgekit.bundle.reader import open_bundle
from edgekit.bundle.verify import verify_digests
from edgekit.errors import StorageError
from edgekit.pipeline import build as build_module
from edgekit.pipeline.build import build


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint", shards=2)


def leave_free(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    """Let every file system have only so much room."""
    values = list(os.statvfs("/"))
    values[1] = 1  # f_frsize
    values[3] = values[4] = free_bytes  # f_bfree, f_bavail
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(values))


def test_disk_too_small(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little free space is refused before a byte is written, and leaves nothing."""
    leave_free(monkeypatch, 4096)
    with pytest.raises(StorageError, match="free, the bundle needs"):
        build(request(checkpoint, tmp_path / "b"))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_resumed_build_needs_room_for_the_rest_only(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blobs that a full disk holds already are not asked for again."""

    def full(*_: object) -> None:
        raise StorageError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "write_graphs", full)
        with pytest.raises(StorageError):
            build(request(checkpoint, tmp_path / "b"))
    assert (tmp_path / ".b.partial").is_dir()
    leave_free(monkeypatch, 2_600_000)
    with pytest.raises(StorageError, match="free, the bundle needs"):
        build(request(checkpoint, tmp_path / "fresh"))
    build(request(checkpoint, tmp_path / "b"))
    verify_digests(open_bundle(tmp_path / "b"))


def test_disk_full_in_the_middle(checkpoint: Path, tmp_path: Path) -> None:
    """A write that hits a limit is a storage error; the next run resumes and succeeds."""
    script = (
        "import resource, sys; from edgekit.cli.main import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); main(sys.argv[1:])"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000
    out = tmp_path / "b"
    arguments = ["build", str(checkpoint), "--target", "orin", "--out", str(out)]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "0"}
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert result.returncode == 13, result.stderr
    assert "no space left to write" in result.stderr
    assert not out.exists()
    build(request(checkpoint, out))
    verify_digests(open_bundle(out))


@pytest.mark.parametrize("mode", [0o555, 0o700])
def test_no_permission(checkpoint: Path, tmp_path: Path, mode: int) -> None:
    """A folder that may not be written, or not even looked into, is named, with what to do."""
    if os.geteuid() != 0:
        mode &= 0o555  # the owner is locked out, too
    locked = tmp_path / "locked"
    locked.mkdir(mode=mode)
    reachable(locked)
    with unprivileged(), pytest.raises(StorageError, match="no permission to write"):
        build(request(checkpoint, locked / "b"))


def test_output_with_too_long_a_name(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that the file system refuses is a storage error."""
    fails(capsys, 13, "name too long", "build", checkpoint, "--target", "cpu",
          "--out", tmp_path / ("b" * 300))  # fmt: skip
