"""Golden sequences as data: what a model must say, token by token; standard library only.

The JSON form, ``golden.json`` of a bundle (log-probabilities in nats, rounded to 1e-4):

| key | meaning |
|---|---|
| ``schema_version`` | 1 |
| ``sequences`` | one object a sequence: |
| ``.token_ids`` | n ids, prompt and continuation, fed as they are |
| ``.log_probability_nats`` | n - 1: entry i is of ``token_ids[i + 1]`` after the ids up to i |
| ``.top1_ids`` | n: the likeliest token after the ids up to i |
| ``.top1_margin_nats`` | n: by how much it leads the second |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.errors import BundleError

SCHEMA_VERSION = 1
STORED_WEIGHTS = "stored weights"
"""Who scored the sequences of a bundle that its build has checked (``golden.scored_by``)."""


@dataclass(frozen=True, slots=True)
class GoldenSequence:
    """One sequence of n >= 2 tokens; the module says what entry i means.

    Attributes:
        token_ids: n ids.
        log_probability_nats: n - 1 values.
        top1_ids: n ids.
        top1_margin_nats: n values, at least 0.
    """

    token_ids: tuple[int, ...]
    log_probability_nats: tuple[float, ...]
    top1_ids: tuple[int, ...]
    top1_margin_nats: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {name: list(getattr(self, name)) for name in self.__slots__}

    @classmethod
    def from_dict(cls, data: Any, where: str = "golden sequence") -> GoldenSequence:
        """Read the JSON form.

        Raises:
            BundleError: It has another form.
        """
        if not isinstance(data, Mapping):
            raise _bad(f"{where} is not a JSON object")
        tokens = _ids(data, "token_ids", where)
        count = len(tokens)
        if count < 2:
            raise _bad(f"{where} has {count} tokens, at least 2 are needed")
        sequence = cls(
            token_ids=tokens,
            log_probability_nats=_numbers(data, "log_probability_nats", where),
            top1_ids=_ids(data, "top1_ids", where),
            top1_margin_nats=_numbers(data, "top1_margin_nats", where),
        )
        for name, wanted in (
            ("log_probability_nats", count - 1),
            ("top1_ids", count),
            ("top1_margin_nats", count),
        ):
            if len(getattr(sequence, name)) != wanted:
                raise _bad(
                    f"{where}: {name} has {len(getattr(sequence, name))} entries, not {wanted}"
                )
        return sequence


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """The golden sequences of a model."""

    sequences: tuple[GoldenSequence, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(len(sequence.token_ids) for sequence in self.sequences)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        sequences = [sequence.to_dict() for sequence in self.sequences]
        return {"schema_version": SCHEMA_VERSION, "sequences": sequences}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GoldenSet:
        """Read the JSON form.

        Raises:
            BundleError: Another version or form.
        """
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"the golden sequences have schema_version {version!r}, this edgekit reads "
                f"{SCHEMA_VERSION}",
                "Upgrade edgekit",
            )
        rows = data.get("sequences")
        if not isinstance(rows, list) or not rows:
            raise _bad("the list of golden sequences is missing or empty")
        named = ((row, f"golden sequence {index}") for index, row in enumerate(rows))
        return cls(tuple(GoldenSequence.from_dict(row, where) for row, where in named))


def _bad(message: str) -> BundleError:
    return BundleError(message)


def _ids(data: Mapping[str, Any], key: str, where: str) -> tuple[int, ...]:
    value = data.get(key)
    if not isinstance(value, list) or any(type(item) is not int or item < 0 for item in value):
        raise _bad(f"{where}: {key} is not a list of token ids")
    return tuple(value)


def _numbers(data: Mapping[str, Any], key: str, where: str) -> tuple[float, ...]:
    value = data.get(key)
    if not isinstance(value, list) or any(type(item) not in {int, float} for item in value):
        raise _bad(f"{where}: {key} is not a list of numbers")
    return tuple(float(item) for item in value)
