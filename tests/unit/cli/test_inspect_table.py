"""``edgekit inspect``'s table: what JSON says in its own words is said in a person's.

The JSON itself is held to its schema by the integration tests.
"""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.cli.commands.inspect import _text


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("tie_word_embeddings", True, "yes"),
        ("tie_word_embeddings", False, "no"),
        ("tensors_checked", True, "yes"),
        ("tensors_checked", False, "no: such weights are looked into once they are fetched"),
        ("graphs", {"standard.float16": "target", "ort.float32": "host"},
         "standard.float16 (target), ort.float32 (host)"),
        ("f16_exponents", {"residual": 0, "up": [0, 0]}, "none needed"),
        ("f16_exponents", {"residual": 3, "up": [0, 2], "qk": [0, 0]}, "residual 3, up [0, 2]"),
        ("parameters", 6_815_744, "6.8 M"),
        ("weights_bytes", 13_640_000, "13.64 MB (13640000)"),
        ("num_attention_heads", 12, "12"),
    ],
)  # fmt: skip
def test_values_are_shown_in_words(key: str, value: Any, shown: str) -> None:
    """No Python or JSON word stands in the table."""
    assert _text(key, value) == shown
