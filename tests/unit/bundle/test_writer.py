"""The writer: content stored once, resumed when whole, renamed into place only when complete."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from privileges import reachable, unprivileged
from test_contracts import manifest

from edgekit.bundle.layout import blob_location
from edgekit.bundle.reader import is_bundle, open_bundle
from edgekit.bundle.verify import verify_digests
from edgekit.bundle.writer import BundleWriter, Noted
from edgekit.contracts.manifest import TensorEntry
from edgekit.errors import BundleError, StorageError


def add(writer: BundleWriter, name: str, data: bytes) -> TensorEntry:
    return writer.add_tensor(name, "dense", "int8", (len(data),), [data[:2], data[2:]])


def finish(writer: BundleWriter, *entries: TensorEntry) -> Path:
    whole = dataclasses.replace(manifest(), tensors=entries, files=writer.files)
    return writer.finish(whole)


def test_equal_content_is_stored_once(tmp_path: Path) -> None:
    """Two tensors of the same bytes share a blob, and the bundle verifies."""
    with BundleWriter(tmp_path / "b") as writer:
        one, two = add(writer, "one", b"same"), add(writer, "two", b"same")
        writer.add_file("g.onnx", b"graph")
        path = finish(writer, one, two)
    assert one.sha256 == two.sha256
    assert len(list(path.glob("blobs/*/*"))) == 1
    report = verify_digests(open_bundle(path))
    assert (report.files, report.blobs) == (1, 1)
    assert not list(tmp_path.glob(".*"))


def test_noted_blobs_are_resumed_only_when_whole(tmp_path: Path) -> None:
    """A noted blob is taken up by the next try; a damaged or lost one is not."""
    with BundleWriter(tmp_path / "b") as writer:
        entries = [add(writer, name, name.encode() * 3) for name in ("kept", "bent", "lost")]
        for entry in entries:
            writer.note(entry.name, Noted((entry,), {"error": 0.5}))
    blobs = [tmp_path / ".b.partial" / blob_location(entry.sha256) for entry in entries]
    blobs[1].write_bytes(b"x" * entries[1].size_bytes)
    blobs[2].unlink()
    with BundleWriter(tmp_path / "b") as writer:
        assert writer.resume("kept") == Noted((entries[0],), {"error": 0.5})
        assert writer.resume("bent") is None
        assert writer.resume("lost") is None
        assert writer.resume("never") is None


def test_torn_journal_line_is_ignored(tmp_path: Path) -> None:
    """A line cut short by a crash is passed over; what stands before and after it counts."""
    with BundleWriter(tmp_path / "b") as writer:
        writer.note("whole", Noted((add(writer, "t", b"abcd"),)))
    journal = tmp_path / ".b.partial" / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"key": "torn", "entr')
    with BundleWriter(tmp_path / "b") as writer:
        assert writer.resume("whole") is not None
        assert writer.resume("torn") is None
        writer.note("after", Noted((add(writer, "t", b"abcd"),)))
    with BundleWriter(tmp_path / "b") as writer:
        assert writer.resume("whole") is not None
        assert writer.resume("after") is not None


def test_incomplete_bundle_is_not_finished(tmp_path: Path) -> None:
    """A manifest that names a blob nobody wrote is refused, and nothing appears."""
    with BundleWriter(tmp_path / "b") as writer:
        entry = add(writer, "t", b"abcd")
        missing = dataclasses.replace(entry, name="u", sha256="0" * 64)
        with pytest.raises(BundleError, match="which its manifest lists"):
            finish(writer, entry, missing)
    assert not (tmp_path / "b").exists()


def test_strays_of_earlier_tries_are_removed(tmp_path: Path) -> None:
    """What an earlier try wrote and this one does not list is not in the bundle."""
    with BundleWriter(tmp_path / "b") as writer:
        add(writer, "old", b"old bytes")
    with BundleWriter(tmp_path / "b") as writer:
        path = finish(writer, add(writer, "new", b"new bytes"))
    verify_digests(open_bundle(path))


def test_two_builds_of_one_bundle_exclude_each_other(tmp_path: Path) -> None:
    """A second build of the same output is refused while the first runs."""
    with BundleWriter(tmp_path / "b"), pytest.raises(StorageError, match="another build"):
        BundleWriter(tmp_path / "b")


def test_overwriting_replaces_the_bundle(tmp_path: Path) -> None:
    """With overwrite the old bundle is replaced; without, it is kept."""
    for text in (b"first", b"second"):
        with BundleWriter(tmp_path / "b", overwrite=True) as writer:
            finish(writer, add(writer, "t", text))
    bundle = open_bundle(tmp_path / "b")
    assert bundle.read_tensor(bundle.tensor("t"), check=True).tobytes() == b"second"
    with pytest.raises(StorageError, match="exists already"):
        BundleWriter(tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_links_in_a_bundle_are_refused(tmp_path: Path) -> None:
    """A blob that is a symbolic link is not accepted: ONNX would refuse it later."""
    with BundleWriter(tmp_path / "b") as writer:
        entry = add(writer, "t", b"abcd")
        path = finish(writer, entry)
    blob = path / blob_location(entry.sha256)
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is missing"):
        open_bundle(path)


def test_an_unreadable_bundle_is_named(tmp_path: Path) -> None:
    """A locked folder, manifest or blob is one line that names it, on opening or verifying."""
    with BundleWriter(tmp_path / "locked" / "b") as writer:
        entry = add(writer, "t", b"abcd")
        path = reachable(finish(writer, entry))
    bundle = open_bundle(path)
    blob = bundle.blob_path(entry)
    with locked(blob):
        open_bundle(path)
        with pytest.raises(BundleError, match=f"cannot read {blob}: Permission denied") as caught:
            verify_digests(bundle)
        assert caught.value.remedy == "Change its owner or mode"
        with pytest.raises(BundleError, match=r"cannot read .*: Permission denied"):
            bundle.read_tensor(entry)
    with locked(path / "manifest.json"), pytest.raises(BundleError, match=r"manifest\.json: Perm"):
        open_bundle(path)
    with locked(path / "blobs"), pytest.raises(BundleError, match=r"cannot read .*: Permission"):
        open_bundle(path)
    with locked(path.parent), pytest.raises(BundleError, match=r"cannot read .*: Permission"):
        is_bundle(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Take all permissions from a file or folder, for a user whom that stops."""
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with unprivileged():
            yield
    finally:
        path.chmod(mode)


def test_a_path_too_long_is_no_bundle() -> None:
    """What the system takes for no path at all is an error of one short line."""
    with pytest.raises(BundleError, match=r"\.\.\. is no path: File name too long"):
        open_bundle(Path("x" * 5000))
