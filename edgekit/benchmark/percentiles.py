"""Percentiles of what requests took.

Percentiles are interpolated linearly between the two nearest values, as NumPy does by default. Of
times the p90 is what nine of ten requests stay below; of rates it is what nine of ten reach.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit.benchmark.samples import Sample

PERCENTILES = (50, 90, 99)


def summarize(values: Sequence[float], *, is_rate: bool = False) -> dict[str, float] | None:
    """Return count, mean, extremes and percentiles; None of no values.

    Args:
        values: In seconds, or a second.
        is_rate: Whether more is better.
    """
    if not values:
        return None
    found = np.asarray(values, np.float64)
    marks = {
        f"p{mark}": float(np.percentile(found, 100 - mark if is_rate else mark))
        for mark in PERCENTILES
    }
    spread = {"mean": float(found.mean()), "min": float(found.min()), "max": float(found.max())}
    return {
        "count": len(values),
        **{name: round(value, 9) for name, value in {**spread, **marks}.items()},
    }


def describe(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the figures of requests that were measured together.

    Args:
        samples: One at least; their clock is the same.
    """
    wall_s = max(one.ended_s for one in samples) - min(one.begun_s for one in samples)
    output = sum(one.output_tokens for one in samples)
    prompt = [one.prompt_tokens for one in samples]
    cached = [one.cached_tokens for one in samples]
    told = [count for count in cached if count is not None]
    return {
        "requests": len(samples),
        "wall_s": round(wall_s, 6),
        "requests_per_s": round(len(samples) / wall_s, 6),
        "output_tokens": output,
        "output_tokens_per_s": round(output / wall_s, 6),
        "prompt_tokens": {
            "min": min(prompt),
            "max": max(prompt),
            "mean": round(sum(prompt) / len(prompt), 3),
        },
        "cached_tokens": sum(told) if told else None,
        "finish_reasons": dict(Counter(one.finish_reason for one in samples)),
        "ttft_s": summarize([one.ttft_s for one in samples]),
        "tpot_s": summarize([one.tpot_s for one in samples if one.tpot_s is not None]),
        "e2e_s": summarize([one.e2e_s for one in samples]),
        "tokens_per_s": summarize([one.tokens_per_s for one in samples], is_rate=True),
    }
