"""What the documents promise: JSON by its schema; commands, exit codes, recipe fields named."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from factories import EXAMPLE

import edgekit.errors as errors_module
from edgekit import recipe
from edgekit.cli.main import COMMANDS, main
from edgekit.errors import EdgekitError
from edgekit.power import Clock, Jetson

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"


def schema(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((ROOT / "docs/schemas" / f"{name}.schema.json").read_text())
    return data


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documents") / "b"


def output(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments), "--json"])
    text = capsys.readouterr().out
    assert caught.value.code == 0, text
    data: dict[str, Any] = json.loads(text)
    return data


def test_json_is_as_documented(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command's JSON and the manifest are valid by their published schemas."""
    rows, text = DATA / "reasoning_dev.jsonl", DATA / "shakespeare_dev.txt"
    runs: dict[str, tuple[object, ...]] = {
        "build": ("build", EXAMPLE, "--target", "orin", "--out", bundle),
        "verify": ("verify", bundle),
        "run": ("run", bundle, "What is 5 + 4?", "--temperature", 0),
        "eval": ("eval", bundle, "--data", rows, "--limit", 4, "--text", text,
                 "--text-tokens", 256, "--reference", EXAMPLE),
        "diff": ("diff", bundle, bundle),
        "plan": ("plan", EXAMPLE, "--all-targets"),
        "recipes": ("recipes",),
        "doctor": ("doctor",),
        "inspect": ("inspect", bundle),
    }  # fmt: skip
    for name, arguments in runs.items():
        jsonschema.validate(output(capsys, *arguments), schema(name))
    jsonschema.validate(output(capsys, "inspect", EXAMPLE), schema("inspect"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    jsonschema.validate(manifest, schema("manifest"))


def test_run_warns_on_a_throttled_jetson(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a Jetson that is slowed down the speed comes with why, in JSON and on stderr, once."""
    floating = Clock(306.0, 612.0, 306.0)
    slow = Jetson("AGX", "30W", 2, 0, floating, (floating,), "schedutil", None, (), 0)
    monkeypatch.setattr("edgekit.cli.commands.run.read_machine", lambda: slow)
    run = ("run", bundle, "What is 5 + 4?", "--temperature", 0, "--max-tokens", 2)
    report = output(capsys, *run)
    jsonschema.validate(report, schema("run"))
    assert report["machine"]["power_mode"] == "30W"
    assert [warning[:22] for warning in report["warnings"]] == [
        "the power mode is 30W,",
        "clocks are not pinned ",
    ]
    with pytest.raises(SystemExit):
        main([*map(str, run)])
    shown = capsys.readouterr().err
    assert shown.count("warning the power mode is 30W, not MAXN") == 1
    assert shown.count("warning clocks are not pinned (gpu, cpu)") == 1


def test_errors_are_as_documented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failing command's JSON is valid by its schema too."""
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path), "--json"])
    jsonschema.validate(json.loads(capsys.readouterr().out), schema("error"))


def test_every_command_is_documented() -> None:
    """docs/cli.md and the README name every command."""
    cli, readme = (ROOT / "docs/cli.md").read_text(), (ROOT / "README.md").read_text()
    for name in COMMANDS:
        assert f"| `{name}" in cli
        assert f"edgekit {name}" in readme


def test_every_exit_code_is_documented() -> None:
    """docs/cli.md has a row for every error family's exit code."""
    cli = (ROOT / "docs/cli.md").read_text()
    for kind in vars(errors_module).values():
        if isinstance(kind, type) and issubclass(kind, EdgekitError):
            assert f"| {kind.exit_code} |" in cli


def test_every_recipe_field_is_documented() -> None:
    """recipes/README.md names every field of every table."""
    text = (ROOT / "recipes" / "README.md").read_text()
    for kind in vars(recipe).values():
        if is_dataclass(kind) and kind.__module__ == recipe.__name__:
            for item in fields(kind):
                assert f"`{item.name}`" in text, item.name


def test_documents_link_to_what_exists() -> None:
    """Relative links in the documents lead somewhere."""
    import re

    for document in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)", document.read_text()):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document}: {link}"
