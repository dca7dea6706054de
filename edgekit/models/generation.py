"""How a checkpoint wants its tokens chosen: the sampling keys of ``generation_config.json``.

Read when a checkpoint is opened, so that a value nothing can be sampled with fails the build and
not the first question on a device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.errors import CheckpointError

MAX_TEMPERATURE = 2.0
MAX_TOP_K = 2**24


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling defaults.

    Attributes:
        temperature: Divides the logits; 0 is greedy.
        top_p: Probability the kept tokens sum to; 1 keeps all.
        top_k: Number of tokens kept; 0 keeps all.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0


def generation_defaults(data: Mapping[str, Any]) -> GenerationDefaults:
    """Return the defaults of a parsed ``generation_config.json``; null means not set.

    ``do_sample`` false is greedy whatever the other keys say. ``top_k`` -1, as some servers write
    it, keeps every token, as 0 does.

    Raises:
        CheckpointError: A value has another type, or is outside its range.
    """
    sampled = data.get("do_sample")
    if sampled is not None and not isinstance(sampled, bool):
        raise _wrong("do_sample", "true or false", sampled)
    temperature = _number(data, "temperature", 1.0)
    if not 0 <= temperature <= MAX_TEMPERATURE:
        raise _wrong("temperature", f"from 0 to {MAX_TEMPERATURE:g}", temperature)
    top_p = _number(data, "top_p", 1.0)
    if not 0 < top_p <= 1:
        raise _wrong("top_p", "more than 0 and at most 1", top_p)
    top_k = data.get("top_k")
    if top_k is None or top_k == -1:
        top_k = 0
    if type(top_k) is not int or not 0 <= top_k <= MAX_TOP_K:
        raise _wrong("top_k", "a number of tokens", top_k)
    return GenerationDefaults(temperature, top_p, top_k) if sampled else GenerationDefaults()


def _number(data: Mapping[str, Any], key: str, default: float) -> float:
    value = data.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(key, "a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    return number


def _wrong(key: str, wanted: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"generation_config.json: {key} is {value!r:.60}, it must be {wanted}", "Correct the file"
    )
