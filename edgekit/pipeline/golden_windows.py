"""The token sequences a bundle is judged by: short conversations in the model's own template.

They exercise reasoning, structured output, code and another language. Built in, so that every build
of a model is judged by the same tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.recipe import MIN_CONTEXT
from edgekit.text.chat_template import ChatTemplate
from edgekit.text.tokenizer import Tokenizer

MAX_TOKENS = MIN_CONTEXT
"""Tokens of one sequence: enough to judge, little enough to run a 7B reference in half a minute."""

CONVERSATIONS: tuple[tuple[str, str], ...] = (
    (
        "What is 58 + 67?",
        "8+7+0=15\n5+6+1=12\n</think>\n\n58 + 67 = 125",
    ),
    (
        "Device reports gpu temperature at 97C. Classify it.",
        "threshold for gpu_temperature_celsius is 95\n97 > 95 is true\n</think>\n\n"
        '{"metric": "gpu_temperature_celsius", "value": 97, "alarm": true}',
    ),
    (
        "Write a Python function that reverses a string.",
        "A slice with step -1 walks the string backwards.\n</think>\n\n"
        "def reverse(text: str) -> str:\n    return text[::-1]",
    ),
    (
        "Warum ist der Himmel blau?",
        "Kurzwelliges Licht wird an den Molekülen der Luft stärker gestreut.\n</think>\n\n"
        "Wegen der Rayleigh-Streuung.",
    ),
)


def golden_windows(checkpoint: Checkpoint) -> list[npt.NDArray[np.int64]]:
    """Return a checkpoint's golden sequences, as :func:`windows_of_tokenizer` does."""
    return windows_of_tokenizer(checkpoint.path)


def windows_of_tokenizer(folder: Path) -> list[npt.NDArray[np.int64]]:
    """Return the golden sequences as token ids, int64 [S] each, S <= MAX_TOKENS.

    A base model without a chat template gets the bare text after its BOS.

    Args:
        folder: Where the tokenizer's files are.
    """
    tokenizer = Tokenizer.from_folder(folder)
    template = ChatTemplate.from_folder(folder)
    windows = []
    for question, answer in CONVERSATIONS:
        if template is None:
            prompt = f"{question}\n"
        else:
            prompt = template.render([{"role": "user", "content": question}])
        ids = tokenizer.encode(prompt + answer, add_special=template is None)[:MAX_TOKENS]
        windows.append(np.array(ids, np.int64))
    return windows
