"""What the tests of bad input share: a command that must fail, and a build to spoil."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.cli.main import main
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS


def fails(capsys: pytest.CaptureFixture[str], code: int, message: str, *arguments: object) -> str:
    """Run the command line; hold it to one line of error with this message and exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if "error:" in line]
    assert caught.value.code == code, error
    assert len(lines) == 1, error
    assert message in " ".join(error.split()), error
    assert "Traceback" not in error
    return error


def request(checkpoint: Path, out: Path) -> BuildRequest:
    recipe = load_recipe("w4a16-g64")
    return BuildRequest(model=str(checkpoint), target=TARGETS["orin"], recipe=recipe, out=out)
