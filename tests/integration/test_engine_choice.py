"""``edgekit engine choose``: real engines on the CPU, TensorRT's fake GPU and Edge-LLM's API."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from factories import EXAMPLE
from fake_edgellm import make_environment
from fake_tensorrt import FakeCuda
from tensorrt_cases import FakeMachine

from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.choice.candidates import Candidate, Candidates, find_candidates
from edgekit.choice.kept import Choice, load_choice, save_choice
from edgekit.choice.trial import Trial, Tried, ranked
from edgekit.choice.workload import Workload
from edgekit.cli.main import main
from edgekit.errors import EngineError
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS

SCHEMA = Path(__file__).parents[2] / "docs/schemas/choice.schema.json"
WORK = Workload((96,), 48, 60.0)
CPU = ["onnxruntime-cpu/ort", "onnxruntime-cpu/standard"]
FAKE_ORIN = """
import sys
sys.path[:0] = sys.argv[1:]
import pytest
from fake_tensorrt import FakeCuda
from tensorrt_cases import FakeMachine
from edgekit.choice import worker
FakeMachine(pytest.MonkeyPatch(), FakeCuda())
worker.main()
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The trained example as Edge-LLM takes it."""
    request = BuildRequest(
        model=str(EXAMPLE),
        target=TARGETS["orin"],
        recipe=load_recipe("w4a16-g128"),
        out=tmp_path_factory.mktemp("choice") / "bundle",
        max_context=512,
        compile_check=False,
    )
    return open_bundle(build(request).path)


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEKIT_ENGINES", str(tmp_path / "engines"))
    return tmp_path / "engines"


def edgekit(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 0
    return capsys.readouterr().out


def choose(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    arguments = ("engine", "choose", *arguments, "--rounds", "1", "--json")
    report: dict[str, Any] = json.loads(edgekit(capsys, *arguments))
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    return report


def test_the_fastest_that_passes_is_kept_and_run(
    bundle: Bundle, engines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both graphs run for real, pass and are timed; `run --provider auto` takes the choice."""
    report = choose(capsys, bundle.path)
    tried = report["candidates"]
    assert sorted(one["name"] for one in tried) == CPU
    assert all(one["gate"]["passed"] and one["load_s"] > 0 for one in tried)
    assert tried[0]["seconds"] <= tried[1]["seconds"]
    assert report["chosen"] == tried[0]["name"]
    assert set(report["left_out"]) == {"tensorrt", "edgellm", "onnxruntime-cuda"}
    assert Path(report["kept"]).parent == engines / "choices"
    choice = load_choice(engines, bundle)
    assert (choice.name, choice.provider, choice.faster) == (report["chosen"], "cpu", None)
    said = edgekit(capsys, "run", bundle.path, "What is 58 + 67?", "--provider", "auto", "--json")
    assert "125" in said


def test_a_table_marks_the_choice_and_says_why_others_are_out(
    bundle: Bundle,
    engines: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A row an engine, one of them chosen; the reasons stand below, whatever the width."""
    del engines
    monkeypatch.setenv("COLUMNS", "60")
    shown = edgekit(capsys, "engine", "choose", bundle.path, "--rounds", "1")
    assert sum("chosen" in line for line in shown.splitlines()) == 1
    assert "edgellm left out: no environment with it was named" in " ".join(shown.split())


def test_without_a_choice_auto_says_which_command_makes_it(
    bundle: Bundle, engines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is measured by the way; a damaged or an outdated choice is refused, too."""

    def refused() -> str:
        with pytest.raises(SystemExit) as caught:
            main(["run", str(bundle.path), "hello", "--provider", "auto"])
        assert caught.value.code == 11
        return " ".join(capsys.readouterr().err.split())

    assert f"edgekit engine choose {bundle.path}" in refused()
    path = save_choice(engines, bundle, Choice("x", "cpu", "ort", None, None), {"board": "other"})
    assert "board was other, is" in refused()
    path.write_bytes(path.read_bytes()[:-9])
    assert "cannot be read" in refused()
    wrong: dict[str, Any] = {
        "basis": {},
        "dialect": None,
        "faster": None,
        "name": "x",
        "provider": "tpu",
    }
    path.write_text(json.dumps({**wrong, "threads": None}))
    assert "provider" in refused()


def test_tensorrt_is_tried_where_it_runs(
    bundle: Bundle, engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a fake Orin its engine is built, passes the gate and is ranked beside the others."""
    FakeMachine(monkeypatch, FakeCuda())
    from edgekit.trt import device_build

    found = find_candidates(bundle, None)
    assert device_build.find_machine().runs_engines
    assert [one.name for one in found.found] == ["tensorrt", *CPU]
    paths = [str(Path(__file__).parents[1]), *sys.path]
    command, work = (sys.executable, "-c", FAKE_ORIN, *paths), Workload((24,), 8, 300.0)
    trial = Trial(bundle, work, 2, 1, engines / "own", command=command)
    tried = {one.candidate.name: one for one in trial.run(found)}
    assert not any(one.failure for one in tried.values()), tried
    assert tried["tensorrt"].gate is not None
    assert tried["tensorrt"].gate["passed"]
    assert list((engines / "own").glob("*.engine"))


def test_edgellm_is_held_to_what_a_session_says_of_its_tokens(
    bundle: Bundle, tmp_path: Path, engines: Path
) -> None:
    """A right engine passes the gate the other way round; the checkpoint is made once."""
    python = make_environment(tmp_path / "env", bundle.path)
    found = find_candidates(bundle, python)
    assert "edgellm" in [one.name for one in found.found]
    some = Candidates((Candidate("onnxruntime", "cpu", "ort"), Candidate("edgellm", None)), {})
    for _ in range(2):
        tried = Trial(bundle, WORK, 2, 1, engines, python).run(some)
        (own,) = [one for one in tried if one.candidate.name == "edgellm"]
        assert own.failure == ""
        assert own.gate is not None
        assert own.gate["tokens"] == 4 * 32
        assert own.gate["max_abs_difference_nats"] < 0.1  # one step's kernels, and a prefill's
        assert own.rates[0].decode_tokens_per_s > 0
    assert len(list((engines / "edgellm").glob("*-gptq"))) == 1


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"FAKE_ERROR": "0.4"}, "fails the gate: .*mean_abs_difference_nats"),
        ({"FAKE_SYSTEM": "Be brief. "}, "another template or tokenizer"),
        ({"FAKE_CRASH": "1"}, "RuntimeError: no kernel image is available.*docs/edgellm.md"),
    ],
)
def test_a_wrong_edgellm_is_not_chosen(
    bundle: Bundle, tmp_path: Path, engines: Path, settings: dict[str, str], why: str
) -> None:
    """Wrong log-probabilities, another prompt and a crash each have their reason."""
    python = make_environment(tmp_path / "env", bundle.path, **settings)
    some = Candidates((Candidate("onnxruntime", "cpu", "ort"), Candidate("edgellm", None)), {})
    tried = Trial(bundle, WORK, 2, 1, engines, python).run(some)
    assert [one.candidate.name for one in tried] == ["onnxruntime-cpu/ort", "edgellm"]
    assert tried[1].seconds is None
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(tried[1].failure)


def test_an_engine_that_answers_wrong_is_out_however_fast(bundle: Bundle, engines: Path) -> None:
    """The gate is the bundle's: with another's golden sequences every engine fails."""
    liar = """
import json, sys
json.load(sys.stdin)
gate = {"failures": ["top1_agreement is 0.5, the limit 0.97"]}
print(json.dumps({"result": {"gate": gate, "load_s": 1.0, "rates": [], "resident_bytes": 1}}))
"""
    trial = Trial(bundle, WORK, 2, 2, engines, command=(sys.executable, "-c", liar))
    tried = trial.run(Candidates((Candidate("onnxruntime", "cpu", "ort"),), {}))
    assert "fails the gate: top1_agreement" in tried[0].failure
    with pytest.raises(EngineError, match="no engine passed: onnxruntime-cpu/ort: fails the gate"):
        ranked(tried)


def test_a_candidate_that_dies_is_named_and_the_others_go_on(bundle: Bundle, engines: Path) -> None:
    """A crash or a kill is that candidate's failure."""
    worker = """
import json, os, sys
request = json.load(sys.stdin)
if request["dialect"] == "ort":
    os.kill(os.getpid(), 9)
rates = [{"context_tokens": 96, "prefill_tokens_per_s": 480.0, "decode_tokens_per_s": 24.0}]
gate = {"failures": []}
print(json.dumps({"result": {"gate": gate, "load_s": 1.0, "rates": rates, "resident_bytes": 1,
                             "taken_bytes": 2}}))
"""
    trial = Trial(bundle, WORK, 2, 2, engines, command=(sys.executable, "-c", worker))
    both = tuple(Candidate("onnxruntime", "cpu", dialect) for dialect in ("ort", "standard"))
    own, dead = trial.run(Candidates(both, {}))
    assert (own.candidate.dialect, own.seconds) == ("standard", 48 / 480 + 48 / 24)
    assert "was killed: most likely memory ran out" in dead.failure


def test_what_has_its_own_server_is_told_not_run() -> None:
    """Edge-LLM may be the fastest; edgekit then runs its own best, and says so."""
    fast = Tried(Candidate("edgellm", None), seconds=1.0)
    own = Tried(Candidate("tensorrt", "tensorrt"), seconds=2.0)
    assert ranked([fast, own]) == (own, fast)
    assert ranked([own, replace(fast, seconds=3.0)]) == (own, None)


def test_nothing_to_try_is_an_error_with_every_reason(bundle: Bundle, engines: Path) -> None:
    """Where no engine runs the bundle at all, each says why."""
    trial = Trial(bundle, WORK, 2, 1, engines)
    with pytest.raises(EngineError, match="nothing here runs the bundle: a: x; b: y"):
        trial.run(Candidates((), {"a": "x", "b": "y"}))


def test_a_bundle_that_was_not_checked_has_no_gate(bundle: Bundle, engines: Path) -> None:
    """With --no-check the golden sequences are another model's: nothing is measured."""
    golden = {**bundle.manifest.golden, "scored_by": "checkpoint"}
    unchecked = replace(bundle, manifest=replace(bundle.manifest, golden=golden))
    with pytest.raises(EngineError, match=r"built with --no-check.*again without --no-check"):
        Trial(unchecked, WORK, 2, 1, engines).run(find_candidates(unchecked, None))


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody waits for measurements that cannot be kept."""
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as caught:
        main(["engine", "choose", str(bundle.path), "--cache", str(tmp_path / "file")])
    assert caught.value.code == 13
    said = capsys.readouterr().err
    assert "Choose another --cache" in said
    assert "round" not in said
