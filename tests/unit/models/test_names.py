"""What a model's name alone says: its repository, or why no build takes it; nothing is fetched."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edgekit.cli.main import main
from edgekit.errors import UnsupportedModelError
from edgekit.models.names import near_names, published_model, refuse_sparse_name
from edgekit.models.published import PUBLISHED
from edgekit.pipeline.options import named_model
from edgekit.pipeline.request import BuildRequest

NAMES = [model.hub_id for model in PUBLISHED]
SPARSE = [
    "deepseek-ai/DeepSeek-V3",
    "deepseek-ai/DeepSeek-V3-0324",
    "deepseek-ai/DeepSeek-V3.1-Terminus",
    "deepseek-ai/DeepSeek-V2-Lite",
    "deepseek-ai/DeepSeek-V2-Lite-Chat",
    "deepseek-ai/DeepSeek-V2.5-1210",
    "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct",
    "deepseek-ai/DeepSeek-R1",
    "deepseek-ai/DeepSeek-R1-Zero",
    "deepseek-ai/DeepSeek-R1-0528",
    "deepseek-ai/DeepSeek-Prover-V2-671B",
    "deepseek-ai/DeepSeek-Math-V2",
    "deepseek-ai/deepseek-moe-16b-chat",
    "deepseek-moe-16b",
    "deepseek-r1",
]


@pytest.mark.parametrize("hub_id", NAMES)
def test_a_published_name_is_its_hub_id(hub_id: str) -> None:
    """With the owner, without it, and without DeepSeek- as well; none of them is refused."""
    base = hub_id.removeprefix("deepseek-ai/")
    for name in (hub_id, base, base.partition("-")[2]):
        model = published_model(name)
        assert model is not None
        assert (model.hub_id, named_model(name)) == (hub_id, hub_id)


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_models_are_refused_by_name(name: str) -> None:
    """The refusal names the model, says what it is and what to use instead."""
    with pytest.raises(UnsupportedModelError) as caught:
        refuse_sparse_name(name)
    assert caught.value.message.startswith(f"{name} is a mixture of experts")
    assert "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B" in caught.value.remedy


@pytest.mark.parametrize("name", ["someone/DeepSeek-V3", "v2", "deepseek-v20", "my-deepseek-v3"])
def test_other_names_say_nothing(name: str) -> None:
    """Of another owner's model, or one that is only named alike, nothing is claimed."""
    refuse_sparse_name(name)
    assert named_model(name) == name


@pytest.mark.parametrize("command", ["plan", "build"])
@pytest.mark.parametrize(
    "name", ["deepseek-ai/DeepSeek-V3", "DeepSeek-R1-Distill-Qwen-32B", "deepseek-coder-33b-base"]
)
def test_commands_refuse_by_name_and_ask_nobody(
    command: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 5 before the hub's client is even imported."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SystemExit) as caught:
        main([command, name, "--target", "orin", "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert (caught.value.code, error["kind"]) == (5, "UnsupportedModelError")
    assert error["remedy"]


def test_a_folder_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder here that is named as a model is taken as the folder it is."""
    monkeypatch.chdir(tmp_path)
    for name in ("DeepSeek-V3", "DeepSeek-R1-Distill-Qwen-7B"):
        Path(name).mkdir()
        assert named_model(name) == name


def test_build_takes_a_bare_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is that of the hub id: source, recipe and name of the bundle."""
    asked: list[BuildRequest] = []

    def fake(request: BuildRequest, progress: object) -> None:
        del progress
        asked.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr("edgekit.pipeline.build.build", fake)
    for name in ("DeepSeek-R1-Distill-Qwen-1.5B", "R1-Distill-Qwen-1.5B", NAMES[0]):
        with pytest.raises(SystemExit, match="130"):
            main(["build", name, "--target", "orin"])
    assert {request.model for request in asked} == {NAMES[0]}
    assert {request.recipe.name for request in asked} == {
        "DeepSeek-R1-Distill-Qwen-1.5B.w4a16-g64.orin"
    }
    assert {str(request.out) for request in asked} == {"DeepSeek-R1-Distill-Qwen-1.5B.orin.bundle"}


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("R1-Distill-Qwen-7", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
        ("deepseek-r1-distill-llama-8b", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
        ("deepseek-ai/deepseek-coder-6.7b", "deepseek-ai/deepseek-coder-6.7b-base"),
        ("Qwen/Qwen3-8B", ""),
        ("./nowhere", ""),
        ("tiny", ""),
    ],
)
def test_the_nearest_name_is_suggested(name: str, near: str) -> None:
    """Only a name like one of the published models' has a suggestion."""
    assert near_names(name) == (f"Did you mean {near}? " if near else "")
