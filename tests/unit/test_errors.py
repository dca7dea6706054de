"""Errors: one line, and a remedy, whatever caused them."""

from __future__ import annotations

import inspect

import pytest

from edgekit import errors
from edgekit.errors import BundleError, DigestMismatchError, first_line


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("", "RuntimeError"),
        (" \n\t\n", "RuntimeError"),
        ("\n[ONNXRuntimeError] : 1 : FAIL\nat 0x0", "[ONNXRuntimeError] : 1 : FAIL"),
    ],
)
def test_first_line_of_what_another_program_says(said: str, line: str) -> None:
    """An exception without a message is told by its type, not by another exception."""
    assert first_line(RuntimeError(said)) == line


def test_damaged_bundles_have_a_remedy() -> None:
    """A BundleError says what to do even where nothing was said of it."""
    assert str(BundleError("x is damaged")) == "x is damaged. Fetch or build the bundle again"
    named = DigestMismatchError("manifest.json", "aa", "bb", named_by="manifest.sha256")
    assert "its digest is bb, manifest.sha256 says aa. Fetch" in str(named)


def test_an_error_is_one_line_whatever_it_quotes() -> None:
    """Line ends and terminal codes of a name never reach the terminal."""
    error = BundleError("a\n\x1b[31mb\x00", "do\tit")
    assert str(error) == "a ?[31mb?. do it"
    assert (error.message, error.remedy, error.args) == ("a ?[31mb?", "do it", (error.message,))


def test_every_family_has_an_exit_code_of_its_own() -> None:
    """Families differ by exit code; what is derived from one has its family's."""
    found = [x for _, x in inspect.getmembers(errors, inspect.isclass) if hasattr(x, "exit_code")]
    assert len(found) > 15
    assert all(kind.exit_code not in {0, 2, 130} for kind in found)
