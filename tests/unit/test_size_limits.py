"""The size limits of CONTRIBUTING.md: a reader takes a function in at once, and finds a file's end.

A function's signature and docstring are not counted: they make it longer to read by making it
easier. Functions inside it are.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("edgekit", "device", "ota", "tests", "scripts")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40


def function_lines(source: str) -> Iterator[tuple[str, int]]:
    """Yield every function's name and the lines of its body."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node) is not None
            body = node.body[1:] if documented else node.body
            first = node.body[0].end_lineno if documented else body[0].lineno - 1
            last = body[-1].end_lineno if body else first
            assert first is not None
            assert last is not None
            yield node.name, last - first


def sources() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def test_functions_are_short() -> None:
    """No function's body has more than 40 lines."""
    long = [
        f"{path.relative_to(ROOT)}: {name} has {lines} lines"
        for path in sources()
        for name, lines in function_lines(path.read_text(encoding="utf-8"))
        if lines > MAX_FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def test_files_are_short() -> None:
    """No file has more than 400 lines."""
    counts = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert len(counts) > 200
    long = [f"{p.relative_to(ROOT)} has {n} lines" for p, n in counts.items() if n > MAX_FILE_LINES]
    assert not long, "\n".join(long)


def test_what_counts_as_a_functions_lines() -> None:
    """Signature and docstring do not count; comments, blank lines and functions inside do."""
    body = "    # why\n    def inner(\n    ) -> None:\n        return\n\n    return inner\n"
    head = 'def outer(\n    a,\n):\n    """Say.\n\n    More.\n    """\n'
    assert dict(function_lines(head + body)) == {"outer": 6, "inner": 1}
    assert dict(function_lines('async def only():\n    """Say."""\n')) == {"only": 0}
