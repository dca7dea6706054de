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
from edgekit.errors import BuildInterrupted, BundleError, StorageError


def add(writer: BundleWriter, name: str, data: bytes) -> TensorEntry:
    return writer.add_tensor(name, "dense", "int8", (len(data),), [data[:2], data[2:]])


def finish(writer: BundleWriter, *entries: TensorEntry) -> Path:
    for path, data in (("g.onnx", b"graph"), ("golden.json", b"{}")):
        writer.add_file(path, data)
    whole = dataclasses.replace(manifest(), tensors=entries, files=writer.files)
    return writer.finish(whole)


def test_equal_content_is_stored_once(tmp_path: Path) -> None:
    """Two tensors of the same bytes share a blob, and the bundle verifies."""
    with BundleWriter(tmp_path / "b") as writer:
        one, two = add(writer, "one", b"same"), add(writer, "two", b"same")
        path = finish(writer, one, two)
    assert one.sha256 == two.sha256
    assert len(list(path.glob("blobs/*/*"))) == 1
    report = verify_digests(open_bundle(path))
    assert (report.files, report.blobs) == (2, 1)
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


def bundle_of(out: Path, data: bytes) -> Path:
    with BundleWriter(out, overwrite=True) as writer:
        writer.add_file("g.onnx", b"graph")
        return finish(writer, add(writer, "t", data))


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_came_to_stand_at_the_output_meanwhile_is_kept(
    tmp_path: Path, *, overwrite: bool
) -> None:
    """A folder made at the output while a build runs is not deleted, and its work resumes."""
    message = "is not a bundle and is not replaced" if overwrite else "exists already"

    def collide() -> None:
        with BundleWriter(tmp_path / "b", overwrite=overwrite) as writer:
            entry = add(writer, "t", b"abcd")
            writer.note("t", Noted((entry,)))
            (tmp_path / "b").mkdir()
            (tmp_path / "b" / "thesis.txt").write_text("precious")
            finish(writer, entry)

    with pytest.raises(StorageError, match=message):
        collide()
    assert (tmp_path / "b" / "thesis.txt").read_text() == "precious"
    (tmp_path / "b").rename(tmp_path / "mine")
    with BundleWriter(tmp_path / "b") as writer:
        assert writer.resume("t") is not None


@pytest.mark.parametrize("place", ["notes.txt", "tokenizer/mine.json", "blobs/ab/thesis"])
def test_foreign_file_in_an_old_bundle_is_not_lost(tmp_path: Path, place: str) -> None:
    """Overwriting refuses a bundle that holds a file its manifest does not list."""
    path = bundle_of(tmp_path / "b", b"first")
    (path / place).parent.mkdir(parents=True, exist_ok=True)
    (path / place).write_text("precious")
    with pytest.raises(StorageError, match=f"holds {place}, which is none of its bundle's files"):
        BundleWriter(path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    assert (path / place).read_text() == "precious"


def test_damaged_bundle_can_be_overwritten(tmp_path: Path) -> None:
    """A bundle whose manifest cannot be read is replaced, unless something foreign is in it."""
    path = bundle_of(tmp_path / "b", b"first")
    (path / "manifest.json").write_text("{")
    (path / "notes.txt").write_text("precious")
    with pytest.raises(StorageError, match=r"holds notes\.txt"):
        BundleWriter(path, overwrite=True)
    (path / "notes.txt").unlink()
    bundle_of(path, b"second")
    verify_digests(open_bundle(path))


def test_link_to_a_bundle_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    """Overwriting a link replaces the link; a link that leads nowhere is in the way."""
    target = bundle_of(tmp_path / "target", b"first")
    (tmp_path / "b").symlink_to(target)
    bundle_of(tmp_path / "b", b"second")
    verify_digests(open_bundle(target))
    assert not (tmp_path / "b").is_symlink()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="exists already"):
        BundleWriter(tmp_path / "dangling")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "dangling", "target"]


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (StorageError("disk full"), True),
        (KeyboardInterrupt(), True),
        (BundleError("wrong"), False),
        (ZeroDivisionError(), False),
    ],
)
def test_work_is_kept_only_where_repeating_can_help(
    tmp_path: Path, error: BaseException, *, kept: bool
) -> None:
    """A full disk and an interruption keep the work folder; every other error removes it."""

    def fail(name: str, *, note: bool) -> None:
        with BundleWriter(tmp_path / name) as writer:
            entry = add(writer, "t", b"abcd")
            if note:
                writer.note("t", Noted((entry,)))
            raise error

    for name, note in (("noted", True), ("bare", False)):
        with pytest.raises(type(error)):
            fail(name, note=note)
    # Without a note there is nothing to take up.
    assert [p.name for p in tmp_path.iterdir()] == ([".noted.partial"] if kept else [])


def test_interruption_says_whether_the_build_resumes(tmp_path: Path) -> None:
    """An interrupted build with finished blobs says so by its type; one without does not."""

    def interrupt(*, note: bool) -> None:
        with BundleWriter(tmp_path / "b") as writer:
            if note:
                writer.note("t", Noted((add(writer, "t", b"abcd"),)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        interrupt(note=False)
    assert not isinstance(caught.value, BuildInterrupted)
    with pytest.raises(BuildInterrupted):
        interrupt(note=True)
    with pytest.raises(BuildInterrupted):  # noted by the earlier try
        interrupt(note=False)


def test_stored_bytes_are_those_of_the_blobs(tmp_path: Path) -> None:
    """The blobs of earlier tries count, the journal and files do not."""
    with BundleWriter(tmp_path / "b") as writer:
        assert writer.stored_bytes == 0
        writer.note("t", Noted((add(writer, "t", b"abcd"),)))
    with BundleWriter(tmp_path / "b") as writer:
        writer.add_file("g.onnx", b"graph")
        add(writer, "u", b"efghij")
        assert writer.stored_bytes == 10


def test_name_that_is_too_long_is_named(tmp_path: Path) -> None:
    """An output whose name the file system refuses is a storage error, not a traceback."""
    with pytest.raises(StorageError, match=r"too long\. Choose a shorter --out"):
        BundleWriter(tmp_path / ("b" * 300))


def test_an_unreadable_bundle_is_named(tmp_path: Path) -> None:
    """A locked folder, manifest or blob is one line that names it, on opening or verifying."""
    with BundleWriter(tmp_path / "locked" / "b") as writer:
        entry = add(writer, "t", b"abcd")
        path = reachable(finish(writer, entry))
    bundle = open_bundle(path)
    blob = bundle.path / blob_location(entry.sha256)
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
