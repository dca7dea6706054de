"""Figures as options: click's ranges, less what is no number that one could count with."""

from __future__ import annotations

import math
from typing import Any

import click


class Figure(click.FloatRange):
    """A finite number in a range: click's own passes NaN, which is in no range, and infinity."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number.

        Raises:
            BadParameter: It is NaN, infinite or outside the range.
        """
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, ctx)
        return number
