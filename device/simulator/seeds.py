"""Randomness of a simulation: the same for the same seed, whatever else is drawn."""

from __future__ import annotations

import random


def chance_of(*of: int | str) -> random.Random:
    """Return a generator of its own.

    Args:
        of: The seed, and what tells this use of it from others.
    """
    seed = of[0] if len(of) == 1 else " ".join(map(str, of))
    return random.Random(seed)  # noqa: S311 - nothing is kept secret by it
