"""Options of a build: none is ignored, and names and contexts are what the user means."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from privileges import reachable, unprivileged

from edgekit.cli.commands.build import default_out
from edgekit.errors import CheckpointError, RecipeError, UnsupportedModelError
from edgekit.pipeline.options import choose_context, is_local, model_name, refuse_idle_options
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS


def request(model: str = "owner/name", recipe: str = "w4a16-g64", **more: Any) -> BuildRequest:
    return BuildRequest(
        model=model, target=TARGETS["cpu"], recipe=load_recipe(recipe), out=Path("b"), **more
    )


def test_idle_options_are_refused(tmp_path: Path) -> None:
    """Calibration data nobody reads and a revision of a folder are errors that name the remedy."""
    data = tmp_path / "none.jsonl"
    with pytest.raises(RecipeError, match=r"uses no calibration data.*w4a16-gptq-g64"):
        refuse_idle_options(request(calibration=data))
    with pytest.raises(CheckpointError, match=r"--revision abc .* is a folder\. Leave --revision"):
        refuse_idle_options(request(str(tmp_path), revision="abc"))
    refuse_idle_options(request(recipe="w4a16-gptq-g64", calibration=data))
    refuse_idle_options(request(revision="abc"))


def test_model_is_named_as_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way to write a folder's path gives the folder's own name; a link keeps its own."""
    folder = tmp_path / "DeepSeek"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    for way in (".", "./", "sub/..", "../DeepSeek", "../DeepSeek/", str(folder), "~"):
        assert model_name(way) == "DeepSeek", way
    assert model_name("../link") == "link"
    assert model_name("deepseek-ai/DeepSeek-R1") == "DeepSeek-R1"
    assert model_name("/") == "model"


def test_a_model_in_a_locked_folder_is_named(tmp_path: Path) -> None:
    """A folder that cannot be looked into is an error that names it, whoever asks first."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o700 if os.geteuid() == 0 else 0)
    reachable(locked)
    with unprivileged():
        for look in (is_local, model_name, lambda model: default_out(model, "cpu")):
            with pytest.raises(CheckpointError, match=r"cannot read .*/m: Permission denied"):
                look(str(locked / "m"))
    locked.chmod(0o700)


@pytest.mark.parametrize(
    ("asked", "limit", "context"),
    [(None, 131072, 4096), (None, 2048, 2048), (2048, 2048, 2048), (32, 2048, 32), (None, 32, 32)],
)
def test_context_is_the_recipes_within_the_models(
    asked: int | None, limit: int, context: int
) -> None:
    """A recipe's context is cut to the model's; one that is asked for is taken as it is."""
    assert choose_context(request(max_context=asked), limit) == context


@pytest.mark.parametrize(
    ("asked", "limit", "message"),
    [
        (10**15, 2048, "--max-context 1000000000000000 is more than the model holds: 2048 tokens"),
        (2049, 2048, "Use --max-context 2048 or less"),
        (31, 2048, "--max-context is 31 tokens, a bundle needs 32"),
        (None, 2, "the model's context is 2 tokens, a bundle needs 32"),
    ],
)
def test_impossible_context_is_refused(asked: int | None, limit: int, message: str) -> None:
    """More than the model holds and less than a golden sequence needs are refused."""
    with pytest.raises(UnsupportedModelError) as caught:
        choose_context(request(max_context=asked), limit)
    assert message in str(caught.value)
