"""A build from the hub's cache: the manifest names the commit that was fetched."""

from __future__ import annotations

from pathlib import Path

from factories import write_checkpoint

from edgekit.bundle.reader import open_bundle
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS

COMMIT = "0123456789" * 4


def test_the_manifest_names_the_commit(tmp_path: Path) -> None:
    """A snapshot of links into ../../blobs builds, with its commit as revision; a copy has none."""
    plain = write_checkpoint(tmp_path / "plain")
    cache = tmp_path / "models--deepseek-ai--tiny"
    snapshot = cache / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(plain.iterdir())):
        blob = cache / "blobs" / f"{number:040d}"
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    revisions = []
    for model in (snapshot, plain):
        out = tmp_path / f"{model.name}.bundle"
        recipe = load_recipe("w4a16-g64")
        build(BuildRequest(str(model), TARGETS["cpu"], recipe, out, check=False))
        revisions.append(open_bundle(out).manifest.model["revision"])
    assert revisions == [COMMIT, None]
