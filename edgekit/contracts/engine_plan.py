"""How a TensorRT engine is built from a bundle's graph: the plan that the manifest carries.

The host's compile check and the device's builder read the same plan, so that what was checked is
what is built. One engine serves every profile; the cache's capacity is static in it, since
TensorRT writes into a cache in place only where its length is. Attention's mask is as wide as the
cache in every profile: a narrower one would be broadcast or refused, not padded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgekit.contracts import engine_io
from edgekit.contracts.fields import check_fields, check_rows
from edgekit.contracts.versions import check_range
from edgekit.errors import BundleError

DECODE_BATCHES = (1, 2, 4, 8)
PREFILL_WANTED = 32
"""Positions of one prefill whose logits may be wanted: those of a golden sequence."""
WORKSPACE_BYTES = 1 << 30
"""Scratch memory one engine may use; a prefill's scores of 28 heads over 4096 keys take 235 MB."""
MAX_PROFILES = 32

_PLAN = {
    **dict.fromkeys(("graph", "tensorrt"), "text"),
    **dict.fromkeys(("cache_capacity", "workspace_bytes"), "positive"),
    **dict.fromkeys(("strongly_typed", "decomposable_attention", "timing_cache"), "flag"),
    "profiles": "list",
}
_PROFILE = {"name": "text", "batch": "positive", "max_tokens": "positive", "max_wanted": "positive"}

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """One optimization profile.

    Attributes:
        name: ``decode-<batch>`` or ``prefill``.
        batch: Sequences, static.
        max_tokens: New tokens a sequence; from 1, tuned for the largest number.
        max_wanted: Positions whose logits are wanted; from 1, tuned for 1.
    """

    name: str
    batch: int
    max_tokens: int
    max_wanted: int


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """One engine.

    Attributes:
        graph: Name of the graph in the manifest.
        tensorrt: Versions it may be built and run with (PEP 440 range).
        cache_capacity: Tokens a cache holds, static.
        profiles: In the engine's order.
        strongly_typed: Types are the graph's, never the builder's choice.
        decomposable_attention: Whether attention may be built of primitives from the start; where
            it is not, that is tried only when the builder has no fused kernel.
        workspace_bytes: Limit of scratch memory.
        timing_cache: Whether the device keeps the builder's timings for the next build.
    """

    graph: str
    tensorrt: str
    cache_capacity: int
    profiles: tuple[Profile, ...]
    strongly_typed: bool = True
    decomposable_attention: bool = False
    workspace_bytes: int = WORKSPACE_BYTES
    timing_cache: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that stands in a manifest's ``engine_plans``."""
        return {**asdict(self), "profiles": [asdict(profile) for profile in self.profiles]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EnginePlan:
        """Read what :meth:`to_dict` wrote; unknown fields pass.

        Raises:
            BundleError: A field is missing or wrong, or a profile does not fit the cache.
        """
        check_plan(values, "engine plan")
        profiles = tuple(
            Profile(**{key: row[key] for key in _PROFILE}) for row in values["profiles"]
        )
        return cls(**{**{key: values[key] for key in _PLAN}, "profiles": profiles})


def check_plan(values: Any, where: str) -> None:
    """Check the JSON form of a plan.

    Raises:
        BundleError: A field is missing or wrong, or a profile does not fit the cache.
    """
    check_fields(values, _PLAN, where)
    check_range(values["tensorrt"], f"{where}: 'tensorrt'")
    check_rows(values["profiles"], _PROFILE, f"{where}: profiles", MAX_PROFILES)
    if not values["profiles"]:
        raise BundleError(f"{where} has no profile", "Fetch or build the bundle again")
    for row in values["profiles"]:
        if not row["max_wanted"] <= row["max_tokens"] <= values["cache_capacity"]:
            raise BundleError(
                f"{where}: profile {row['name']} has {row['max_wanted']} wanted of "
                f"{row['max_tokens']} tokens in a cache of {values['cache_capacity']}",
                "Fetch or build the bundle again",
            )


def plan_engine(
    graph: str, tensorrt: str, *, max_context: int, max_sequences: int, chunk_tokens: int
) -> EnginePlan:
    """Return the plan of a graph: decoding in batches, and prefilling one sequence in chunks.

    Args:
        graph: Its name.
        tensorrt: Version range of the target.
        max_context: Tokens a sequence can hold.
        max_sequences: Sequences decoded at once; the last batch has them all.
        chunk_tokens: New tokens of one prefill, at most; no more than the cache holds are planned.
    """
    batches = sorted({*(b for b in DECODE_BATCHES if b < max_sequences), max_sequences})
    tokens = min(chunk_tokens, max_context)
    decode = [Profile(f"decode-{batch}", batch, 1, 1) for batch in batches]
    prefill = Profile("prefill", 1, tokens, min(PREFILL_WANTED, tokens))
    return EnginePlan(graph, tensorrt, max_context, (*decode, prefill))


def input_shapes(
    plan: EnginePlan, profile: Profile, name: str, dims: Shape
) -> tuple[Shape, Shape, Shape]:
    """Return the smallest, the tuned and the largest shape of a graph input.

    Args:
        plan: The engine's plan.
        profile: One of its profiles.
        name: The input (``contracts.engine_io``).
        dims: Its shape in the graph; of a cache [B, Hkv, C, D] the heads and their size are read.

    Raises:
        BundleError: It is no input of an edgekit graph.
    """
    batch, tokens, wanted = profile.batch, profile.max_tokens, profile.max_wanted
    capacity = plan.cache_capacity
    if name in {engine_io.INPUT_IDS, engine_io.POSITION_IDS}:
        return (batch, 1), (batch, tokens), (batch, tokens)
    if name == engine_io.ATTENTION_MASK:
        largest = (batch, 1, tokens, capacity)
        return (batch, 1, 1, capacity), largest, largest
    if name == engine_io.LOGITS_INDEX:
        return (batch, 1, 1), (batch, 1, 1), (batch, wanted, 1)
    if name == engine_io.WRITE_INDEX:
        shape: Shape = (batch,)
    elif name.startswith(("past_key_", "past_value_")) and len(dims) == 4:
        shape = (batch, dims[1], capacity, dims[3])
    else:
        raise BundleError(f"graph {plan.graph} has an input {name}, which no profile knows")
    return shape, shape, shape
