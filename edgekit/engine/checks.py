"""What every session asks of a step before it runs one; see ``InferenceSession`` for the errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.contracts import engine_io
from edgekit.contracts.manifest import Manifest
from edgekit.errors import FETCH_AGAIN, BundleError, ContextOverflowError, EngineError
from edgekit.graph.weights import ROPE_COS, ROPE_SIN
from edgekit.models.config import ModelConfig

_PAST = (engine_io.past_key, engine_io.past_value)


def check_tables(manifest: Manifest, config: ModelConfig) -> None:
    """Refuse a manifest whose rotary tables are not as long as its context: rows would be missing.

    Raises:
        BundleError: They are not, or are not there.
    """
    shape = (manifest.limits["max_context"], config.head_dim // 2)
    shapes = {entry.name: entry.shape for entry in manifest.tensors}
    for name in (ROPE_COS, ROPE_SIN):
        if shapes.get(name) != shape:
            raise BundleError(f"manifest.json has no {name} of {list(shape)}, as its limits say")


def check_layout(session: Any, graph: str, config: ModelConfig) -> None:
    """Refuse a graph whose caches and logits have other sizes than the architecture says.

    Args:
        session: The ONNX Runtime session.
        graph: What to call the graph in errors.
        config: The architecture, by which caches and buffers are made.

    Raises:
        EngineError: A size is another, or the graph has another number of layers.
    """
    shapes = {value.name: list(value.shape) for value in session.get_inputs()}
    layers = sum(name.startswith(engine_io.PAST_KEY) for name in shapes)
    heads, dim = config.num_key_value_heads, config.head_dim
    found = [shapes.get(f(i), []) for i in range(layers) for f in _PAST]
    same = all(len(shape) == 4 and (shape[1], shape[3]) == (heads, dim) for shape in found)
    if not same or layers != config.num_hidden_layers:
        raise EngineError(
            f"{graph} has not the caches of {config.num_hidden_layers} layers with {heads} heads "
            f"of {dim}, as the manifest says",
            FETCH_AGAIN,
        )
    width = {value.name: value.shape for value in session.get_outputs()}.get(engine_io.LOGITS)
    if not width or width[-1] != config.vocab_size:
        raise EngineError(
            f"{graph} has not logits of {config.vocab_size} tokens, as the manifest says",
            FETCH_AGAIN,
        )


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


def broken_rows(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return which rows of logits [..., V] are not finite."""
    # A row's sum is finite only if all of it is, and is had without a mask of its size.
    with np.errstate(invalid="ignore", over="ignore"):
        result: npt.NDArray[np.bool_] = ~np.isfinite(logits.sum(axis=-1))
    return result


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


def check_copy(source: int, target: int, count: int, lengths: Sequence[int]) -> None:
    """Refuse to copy between slots what is not there.

    Args:
        source: The slot that is copied from.
        target: The other one.
        count: Positions, from the first on.
        lengths: What each slot holds.
    """
    for slot in (source, target):
        check_slot(slot, len(lengths))
    if source == target or not 0 < count <= lengths[source]:
        raise EngineError(
            f"slot {source} of {lengths[source]} tokens has no {count} for slot {target}",
        )
