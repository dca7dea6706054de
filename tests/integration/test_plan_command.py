"""``edgekit plan``: its forms of MODEL, its JSON, its exit codes, its tables at any width."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from factories import EXAMPLE, write_checkpoint

from edgekit.cli.main import main
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "tests/data/configs"
SCHEMA = json.loads((ROOT / "docs/schemas/plan.schema.json").read_text())
Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *arguments: object, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["plan", *map(str, arguments)])
    output = capsys.readouterr()
    assert caught.value.code == code, output
    return output.out, output.err


def document(capsys: Capture, *arguments: object, code: int = 0) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(run(capsys, *arguments, "--json", code=code)[0])
    jsonschema.validate(data, SCHEMA)
    return data


def error(capsys: Capture, *arguments: object, code: int) -> str:
    body = json.loads(run(capsys, *arguments, "--json", code=code)[0])["error"]
    assert body["exit_code"] == code
    return f"{body['message']}. {body['remedy']}"


def folder(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    path.mkdir()
    shutil.copy(CONFIGS / f"{name}.json", path / "config.json")
    return path


def test_a_name_and_its_config_json_give_the_same_plan(tmp_path: Path, capsys: Capture) -> None:
    """A folder that holds only a config.json is planned; so is the published name of it."""
    name = "DeepSeek-R1-Distill-Llama-8B"
    named = document(capsys, name, "--target", "orin")
    owned = document(capsys, f"deepseek-ai/{name}", "--target", "orin")
    read = document(capsys, folder(tmp_path, name), "--target", "orin")
    assert named == owned == read
    first = named["plans"][0]["rates"][0]
    assert (first["batch"], first["context_tokens"]) == (1, 256)
    assert 36 < first["decode_tokens_per_s"] < 42
    assert named["plans"][0]["power_mode"] == "MAXN"


def test_a_bundle_is_planned_as_it_was_built(tmp_path: Path, capsys: Capture) -> None:
    """A checkpoint's plan, its build's fit and its bundle's plan have the same memory."""
    checkpoint = write_checkpoint(tmp_path / "m")
    request = BuildRequest(
        str(checkpoint), TARGETS["orin"], load_recipe("w4a16-g64"), tmp_path / "b", threads=1
    )
    fit = build(request).fit.to_dict()
    for model in (checkpoint, tmp_path / "b"):
        memory = document(capsys, model, "--target", "orin")["plans"][0]["memory"]
        assert {key: memory[key] for key in fit} == fit
    assert "a bundle is quantized already" in error(
        capsys, tmp_path / "b", "--target", "orin", "--recipe", "w8a16", code=3
    )


def test_every_target_in_a_stable_order(capsys: Capture) -> None:
    """--all-targets is one document, Orins first."""
    plans = document(capsys, "deepseek-coder-1.3b-base", "--all-targets")["plans"]
    names = ["orin", "orin-32gb", "orin-nx-16gb", "a100-80gb", "h100-80gb", "ascend-910b"]
    assert [plan["target"] for plan in plans] == names
    assert all(plan["fits"] for plan in plans)


def test_what_does_not_fit_exits_with_5_and_says_why(capsys: Capture) -> None:
    """The plan is printed in full; the reason is the build's."""
    arguments = ("DeepSeek-R1-0528-Qwen3-8B", "--target", "orin-nx-16gb", "--recipe", "float16")
    plan = document(capsys, *arguments, code=5)["plans"][0]
    assert not plan["fits"]
    assert plan["reason"].startswith("the model needs ")
    assert "after its 20 % reserve" in plan["reason"]
    assert plan["rates"]
    out, err = run(capsys, *arguments, code=5)
    assert "fits" in out
    assert plan["reason"] in " ".join(err.split())
    everywhere = document(capsys, *arguments[:1], "--all-targets", "--recipe", "float16")
    assert [p["fits"] for p in everywhere["plans"]].count(False) == 1


def test_14_b_is_refused(tmp_path: Path, capsys: Capture) -> None:
    """By name and by config.json, as a build is."""
    name = "DeepSeek-R1-Distill-Qwen-14B"
    by_name = error(capsys, name, "--target", "orin", code=5)
    assert by_name == error(capsys, folder(tmp_path, name), "--target", "orin", code=5)
    assert "14.8 B parameters; edgekit builds models under 13 B" in by_name


def test_options_change_what_they_name(capsys: Capture) -> None:
    """Power mode, rows, engine and cost."""
    base = ("DeepSeek-R1-Distill-Qwen-7B", "--target", "orin")
    full = document(capsys, *base)["plans"][0]
    slow = document(capsys, *base, "--power-mode", "30w")["plans"][0]
    assert slow["power_mode"] == "30W"
    first, slower = full["rates"][0], slow["rates"][0]
    assert slower["decode_tokens_per_s"] < first["decode_tokens_per_s"] / 2
    chosen = document(capsys, *base, "--batch", 8, "--batch", 1, "--context", 100)["plans"][0]
    assert [(r["batch"], r["context_tokens"]) for r in chosen["rates"]] == [(8, 100), (1, 100)]
    for engine in ("mlc", "llama.cpp"):
        other = document(capsys, *base, "--engine", engine)["plans"][0]
        assert other["engine"]["name"] == engine
        assert {r["batch"] for r in other["rates"]} == {1}
        assert other["rates"][0]["prefill_tokens_per_s"] is None
    cheap = document(capsys, *base, "--price-usd", 0, "--energy-usd-per-kwh", 0)["plans"][0]
    assert cheap["rates"][0]["usd_per_million_tokens"] == 0
    assert cheap["cost"]["price_usd"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "give --target T or --all-targets"),
        (("--target", "orin", "--all-targets"), 2, "give --target T or --all-targets"),
        (("--all-targets", "--power-mode", "30W"), 2, "--power-mode is one machine's"),
        (("--target", "cpu"), 2, "'cpu' is not one of"),
        (("--target", "orin", "--power-mode", "20W"), 2, "Use one of: MAXN, 50W, 30W, 15W"),
        (("--target", "orin", "--context", 9000), 2, "Add --max-context 9000"),
        (("--target", "orin", "--batch", 9), 2, "Add --max-sequences 9"),
        (("--target", "orin", "--engine", "mlc", "--batch", 2), 2, "more than one sequence"),
        (("--target", "orin", "--recipe", "w4"), 3, "there is no recipe named"),
        (("--target", "orin", "--utilization", 0), 2, "0<x<=1"),
        (("--target", "orin", "--plot", "roof.pdf"), 2, "Use .png or .html"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    capsys: Capture, arguments: tuple[object, ...], code: int, message: str
) -> None:
    """Each mistake names itself and its remedy."""
    assert message in error(capsys, "DeepSeek-R1-Distill-Qwen-7B", *arguments, code=code)


def test_a_model_that_is_none_is_named(tmp_path: Path, capsys: Capture) -> None:
    """A wrong name, an empty folder."""
    assert "is neither a folder nor a published model" in error(
        capsys, "mistral-7b", "--target", "orin", code=4
    )
    assert "has no config.json" in error(capsys, tmp_path, "--target", "orin", code=4)


@pytest.mark.parametrize("columns", [80, 50])
def test_tables_stay_within_the_terminal(
    columns: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every figure is whole at 80 and at 50 columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
    for arguments in (("--target", "orin"), ("--all-targets",)):
        out, _ = run(capsys, EXAMPLE, *arguments)
        assert all(len(line.rstrip()) <= columns for line in out.splitlines())
        assert "…" not in out
        assert "projections" in out


def test_plots_are_drawn(tmp_path: Path, capsys: Capture) -> None:
    """A PNG; a page with the drawing inside and nothing fetched; the same bytes again."""
    png, page = tmp_path / "roof.png", tmp_path / "roof.html"
    run(capsys, "DeepSeek-R1-Distill-Qwen-7B", "--all-targets", "--plot", png)
    assert png.read_bytes().startswith(b"\x89PNG")
    run(capsys, "DeepSeek-R1-Distill-Qwen-7B", "--target", "orin", "--plot", page)
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert text.count("<svg") == 1
    assert "src=" not in text
    run(capsys, "DeepSeek-R1-Distill-Qwen-7B", "--target", "orin", "--plot", page)
    assert page.read_text() == text
    assert "cannot write" in error(
        capsys, EXAMPLE, "--target", "orin", "--plot", tmp_path / "no/roof.png", code=13
    )
