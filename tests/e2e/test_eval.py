"""``edgekit eval`` and ``run`` on the command line: bad input is refused before any work."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from bad_input import fails
from factories import write_checkpoint

from edgekit.bundle.layout import blob_location
from edgekit.bundle.reader import open_bundle
from edgekit.cli.main import main
from edgekit.contracts.manifest import FileEntry
from edgekit.evaluate import text_quality
from edgekit.pipeline import evaluate
from edgekit.pipeline.build import build
from edgekit.pipeline.compared import open_reference
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS
from edgekit.text.tokenizer import Tokenizer

SCHEMA = Path(__file__).parents[2] / "docs" / "schemas" / "eval.schema.json"
BOS = 0


def make_bundle(checkpoint: Path, out: Path) -> Path:
    request = BuildRequest(
        model=str(checkpoint), target=TARGETS["cpu"], recipe=load_recipe("w4a16-g64"), out=out
    )
    return build(request).path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint ``own`` and its ``bundle``, a text and rows of data."""
    root = tmp_path_factory.mktemp("eval")
    make_bundle(write_checkpoint(root / "own"), root / "bundle")
    (root / "book.txt").write_text("one two three four five six seven eight nine ten " * 4)
    (root / "rows.jsonl").write_text('{"prompt": "1 + 1?", "reasoning": "", "answer": "2"}\n')
    return root


@pytest.fixture(scope="module")
def damaged(root: Path) -> Path:
    """The bundle with one byte of a weight's codes changed."""
    shutil.copytree(root / "bundle", root / "damaged")
    bundle = open_bundle(root / "damaged")
    codes = next(entry for entry in bundle.manifest.tensors if entry.role == "codes")
    path = bundle.path / blob_location(codes.sha256)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    return root / "damaged"


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments), "--json"])
    output = capsys.readouterr()
    assert caught.value.code == 0, output.err
    report: dict[str, Any] = json.loads(output.out)
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    return report


BAD_INPUT: list[tuple[int, str, list[str]]] = [
    (2, "give --data, --text or both", []),
    (7, "no.txt: No such file or directory. Give a readable text file", ["--text", "no.txt"]),
    (7, "latin.txt is not UTF-8 at byte 2. Convert it", ["--text", "latin.txt"]),
    (7, "the text has 0 tokens, at least 2 are needed", ["--text", "empty.txt"]),
    (7, "no.jsonl: No such file or directory", ["--data", "no.jsonl"]),
    (7, "wrong.jsonl:1 lacks 'answer'", ["--data", "wrong.jsonl"]),
    (4, "neither a folder nor a hub id", ["--text", "book.txt", "--reference", "./nothing"]),
    (4, "--reference has vocab_size 4160, the bundle's model 4096",
     ["--text", "book.txt", "--reference", "wide"]),
    (4, "--reference has model_type llama, the bundle's model qwen2",
     ["--text", "book.txt", "--reference", "other"]),
    (11, "a window of 300 tokens exceeds the context of 256. Give a smaller --window",
     ["--text", "long.txt", "--window", "300"]),
]  # fmt: skip


@pytest.mark.parametrize(("code", "message", "arguments"), BAD_INPUT)
def test_bad_input_is_refused_before_the_first_answer(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
    message: str,
    arguments: list[str],
) -> None:
    """Wrong data, text or reference is named in one line, and no prompt is answered first."""
    monkeypatch.chdir(root)
    Path("latin.txt").write_bytes(b"na\xefve")
    Path("empty.txt").write_text("")
    Path("long.txt").write_text("one two three " * 200)
    Path("wrong.jsonl").write_text('{"prompt": "1 + 1?"}\n')
    for name, options in (("wide", {"vocab": 4160}), ("other", {"family": "llama"})):
        if not Path(name).exists():
            write_checkpoint(Path(name), **options)
    if code == 2:
        with pytest.raises(SystemExit) as caught:
            main(["eval", "bundle"])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
        return
    data = [] if "--data" in arguments else ["--data", "rows.jsonl"]
    error = fails(capsys, code, message, "eval", "bundle", *data, *arguments)
    assert "✓ answer" not in error


def test_own_reference_gives_no_warning(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint that the bundle was built from is recognized by its files' digests."""
    report = run_json(
        capsys, "eval", root / "bundle", "--text", root / "book.txt", "--reference", root / "own"
    )
    assert report["warnings"] == []
    assert report["kl_divergence_nats"] > 0


def test_another_revision_is_compared_with_a_warning(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other weights and parameters of the same shapes are measured, and named."""
    other = write_checkpoint(tmp_path / "v2", seed=1, rms_norm_eps=1e-5)
    arguments = ["eval", root / "bundle", "--text", root / "book.txt", "--reference", other]
    report = run_json(capsys, *arguments)
    assert report["warnings"] == [
        f"{other} has another rms_norm_eps",
        f"{other} is not what the bundle was built from: config.json, model.safetensors differ",
    ]
    assert report["kl_divergence_nats"] > 0
    report = run_json(capsys, *arguments, "--no-digests")
    assert report["warnings"] == [f"{other} has another rms_norm_eps"]
    with pytest.raises(SystemExit):
        main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    assert "warning: " in output.err
    assert "warning" in output.out


def test_a_merged_adapter_is_named(root: Path) -> None:
    """A bundle with an adapter differs from its checkpoint by more than quantization."""
    bundle = open_bundle(root / "bundle")
    adapter = FileEntry("adapter_model.safetensors", 1, "0" * 64)
    files = (*bundle.manifest.checkpoint_files, adapter)
    merged = dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, checkpoint_files=files)
    )
    (warning,) = open_reference(merged, str(root / "own")).warnings
    assert warning == (
        f"the bundle was also built from adapter_model.safetensors, which {root / 'own'} lacks"
    )


@pytest.mark.parametrize(
    "arguments", [["run", "{}", "hello"], ["eval", "{}", "--text", "{root}/book.txt"]]
)
def test_a_damaged_bundle_is_not_loaded(
    root: Path, damaged: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """Commands that load check every digest first, unless told not to."""
    filled = [argument.format(damaged, root=root) for argument in arguments]
    bundle = open_bundle(damaged)
    blob = blob_location(next(e for e in bundle.manifest.tensors if e.role == "codes").sha256)
    fails(capsys, 10, f"{blob} is damaged", *filled)
    with pytest.raises(SystemExit) as caught:
        main([*filled, "--no-digests", *(["--max-tokens", "2"] if "run" in filled else [])])
    assert caught.value.code == 0


@pytest.mark.parametrize("base", [True, False])
def test_base_models_start_with_bos_everywhere(
    base: bool,  # noqa: FBT001 - a case
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Golden sequences, run and eval give a base model its BOS once, a chat model no second."""
    checkpoint = write_checkpoint(tmp_path / "c")
    if base:
        path = checkpoint / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        del config["chat_template"]
        path.write_text(json.dumps(config))
    bundle = make_bundle(checkpoint, tmp_path / "b")
    for sequence in open_bundle(bundle).golden()["sequences"]:
        assert sequence["token_ids"].count(BOS) == 1
        assert sequence["token_ids"][0] == BOS
    seen: list[Any] = []
    measure = text_quality.measure_session

    def spy(session: Any, sample: Any, **options: Any) -> Any:
        seen.extend(sample.windows)
        return measure(session, sample, **options)

    monkeypatch.setattr(evaluate, "measure_session", spy)
    (tmp_path / "t.txt").write_text("abc " * 40)
    run_json(capsys, "eval", bundle, "--text", tmp_path / "t.txt", "--window", 16)
    ids = np.concatenate(seen)
    assert (ids == BOS).sum() == base
    assert (ids[0] == BOS) == base
    with pytest.raises(SystemExit):
        main(["run", str(bundle), "abc abc", "--max-tokens", "1"])
    text = len(Tokenizer.from_folder(checkpoint).encode("abc abc"))
    tokens = text + (1 if base else 5)  # the template's: BOS, both roles, <think>, a newline
    assert f"{tokens} prompt tokens" in capsys.readouterr().err
