"""The bytes of a day in a file, for whoever keeps to a budget of the metered link.

A day is one of UTC. A clock that jumps backwards starts none: the day that had begun goes on until
the clock is past it or the device has run for 24 hours, so that a wrong clock neither gives a
second budget nor takes all of them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from edgekit.bundle.storage import write_atomic
from edgekit.errors import StorageError

DAY_S: Final = 86400


@dataclass(frozen=True, slots=True)
class Ledger:
    """A day's bytes.

    Attributes:
        day: Since 1970-01-01 UTC.
        used: Bytes.
        age_s: Seconds that the device ran since the day was begun here.
    """

    day: int
    used: int
    age_s: float = 0.0

    def at(self, now_s: float, passed_s: float) -> Ledger:
        """Return it as of now: a new one if another day has begun.

        Args:
            now_s: Seconds since 1970, of a clock that may jump.
            passed_s: Seconds since the last call, of one that does not.
        """
        today, age_s = int(now_s // DAY_S), self.age_s + passed_s
        if today > self.day or age_s >= DAY_S:
            return Ledger(today, 0)
        return replace(self, age_s=age_s)


def read_ledger(path: Path, option: str) -> Ledger | None:
    """Return what a file holds; None if there is none.

    Args:
        path: The file.
        option: Where the path was said, for errors.

    Raises:
        StorageError: It cannot be read, or is none of a budget.
    """
    remedy = f"Remove it to begin the day at zero, or choose another {option}"
    try:
        data = json.loads(path.read_bytes())
        ledger = Ledger(data["day"], data["used"], data["age_s"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", remedy) from error
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is no file of a byte budget", remedy) from error
    whole = type(ledger.day) is int and type(ledger.used) is int and ledger.used >= 0
    if not (whole and isinstance(ledger.age_s, int | float) and math.isfinite(ledger.age_s)):
        raise StorageError(f"{path} is no file of a byte budget", remedy)
    return ledger


def write_ledger(path: Path, ledger: Ledger, option: str) -> None:
    """Replace a file, through power cuts.

    Args:
        path: The file.
        ledger: What it says from now on.
        option: Where the path was said, for errors.

    Raises:
        StorageError: It cannot be written.
    """
    data = {"day": ledger.day, "used": ledger.used, "age_s": round(ledger.age_s, 3)}
    write_atomic(path, json.dumps(data).encode() + b"\n", option=option)
