"""Digests: every file is hashed, in parallel, and damage or a lost file stops it by name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from test_writer import add, finish

from edgekit.bundle.digests import hash_files
from edgekit.bundle.layout import blob_location
from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.bundle.verify import check_digests, verify_digests
from edgekit.bundle.writer import BundleWriter
from edgekit.errors import BundleError, DigestMismatchError


class Recorder:
    """A ``Progress`` that remembers."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int, str]] = []
        self.done = 0

    def start(self, stage: str, total: int, unit: str = "bytes") -> None:
        self.stages.append((stage, total, unit))

    def advance(self, done: int, item: str = "") -> None:
        assert item
        self.done += done

    def finish(self, summary: str = "") -> None:
        assert summary


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    with BundleWriter(tmp_path / "b") as writer:
        entries = [add(writer, f"t{i}", bytes([i]) * (i + 1) * 100) for i in range(20)]
        writer.add_file("g.onnx", b"graph")
        return open_bundle(finish(writer, *entries))


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_every_byte_passes_whatever_the_threads(bundle: Bundle, threads: int) -> None:
    """The report and the progress count each file and blob once."""
    progress = Recorder()
    report = check_digests(bundle, threads=threads, progress=progress)
    files = bundle.manifest.files
    size = sum((i + 1) * 100 for i in range(20)) + sum(file.size_bytes for file in files)
    assert (report.files, report.blobs, report.checked_bytes) == (len(files), 20, size)
    assert progress.stages == [("digests", size, "bytes")]
    assert progress.done == size


def test_large_files_are_hashed_in_pieces(tmp_path: Path) -> None:
    """A file of several reads, and one of none, get the digests hashlib gives."""
    contents = {"large": bytes(range(256)) * 20_000, "empty": b""}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    got = list(hash_files({name: tmp_path / name for name in contents}, threads=2))
    assert got == [(name, hashlib.sha256(data).hexdigest()) for name, data in contents.items()]


def test_leaving_early_stops_the_rest(tmp_path: Path) -> None:
    """After the first wrong digest the remaining files are not read to their end."""
    paths = {f"{i:03d}": tmp_path / f"{i:03d}" for i in range(100)}
    for path in paths.values():
        path.write_bytes(bytes(3 << 20))
    progress = Recorder()
    hashing = hash_files(paths, threads=1, progress=progress)
    next(hashing)
    hashing.close()  # type: ignore[attr-defined] # a generator
    assert progress.done < 50 * (3 << 20)


def test_a_blob_that_cannot_be_read_is_named(bundle: Bundle) -> None:
    """A file that vanished since the bundle was opened is an error of the bundle, by name."""
    blob = blob_location(bundle.tensor("t3").sha256)
    (bundle.path / blob).unlink()
    with pytest.raises(BundleError, match=f"cannot read .*{blob}: No such file"):
        check_digests(bundle)


def test_strays_matter_to_verify_only(bundle: Bundle) -> None:
    """What the manifest does not list is never loaded: only ``verify`` refuses it."""
    (bundle.path / "notes.txt").write_text("mine")
    check_digests(bundle)
    with pytest.raises(BundleError, match=r"notes\.txt is in the bundle"):
        verify_digests(bundle)


def test_damage_is_found_by_both(bundle: Bundle) -> None:
    """A changed byte of the same size is found."""
    (bundle.path / "g.onnx").write_bytes(b"grapH")
    for check in (check_digests, verify_digests):
        with pytest.raises(DigestMismatchError, match=r"g\.onnx is damaged"):
            check(bundle)
