"""What every session asks of a step before it runs one; see ``InferenceSession`` for the errors."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.errors import ContextOverflowError, EngineError


def check_slot(slot: int, max_sequences: int) -> None:
    """Refuse a slot that is not there.

    Raises:
        EngineError: It is not.
    """
    if not 0 <= slot < max_sequences:
        raise EngineError(f"there is no slot {slot}; the session has {max_sequences}")


def check_distinct(slots: Sequence[int]) -> None:
    """Refuse a decode step of no slot, or of one twice.

    Raises:
        EngineError: It is one.
    """
    if len(set(slots)) != len(slots) or not slots:
        raise EngineError(f"slots {list(slots)} are empty or repeat")


def check_room(slot: int, start: int, count: int, *, held: int, max_context: int) -> None:
    """Refuse tokens that leave a gap in a slot, or do not fit it.

    Args:
        slot: Named in the error.
        start: Position of the first.
        count: How many.
        held: Tokens the slot holds.
        max_context: Tokens it can hold.

    Raises:
        ContextOverflowError: They do not fit.
        EngineError: ``start`` is past what the slot holds.
    """
    if not 0 <= start <= held:
        raise EngineError(f"slot {slot} holds {held} tokens, not {start}")
    if start + count > max_context:
        raise ContextOverflowError(
            f"{start + count} tokens do not fit a context of {max_context}",
            "Shorten the prompt, or build the bundle with a larger --max-context",
        )


def not_finite(slot: int, activation_dtype: str) -> EngineError:
    """Return the error of a step whose logits are NaN or infinite.

    Args:
        slot: Whose logits they are.
        activation_dtype: What the graph computes in, ``float16`` or ``float32``.
    """
    remedy = (
        "the model overflows float16: build it with --target cpu, which computes in float32"
        if activation_dtype == "float16"
        else "the weights it was built from are at fault: try their checkpoint in another program"
    )
    return EngineError(
        f"the model gave NaN or infinite logits in slot {slot}",
        f"Verify the bundle; if it is whole, {remedy}",
    )


def check_tokens(tokens: Sequence[int], vocab_size: int) -> None:
    """Refuse a step without tokens, or with one that the model does not have.

    Raises:
        EngineError: It is one.
    """
    if not tokens:
        raise EngineError("there are no tokens to run")
    lowest, highest = min(tokens), max(tokens)
    if lowest < 0 or highest >= vocab_size:
        raise EngineError(
            f"token {lowest if lowest < 0 else highest} is not in the vocabulary of {vocab_size}",
            "Use the tokenizer that belongs to the model",
        )
