"""The graph that picks the largest logits on the device, and sums up the rest.

``TopK`` of a whole vocabulary is one thread block's work in ONNX Runtime's CUDA kernel (before
microsoft/onnxruntime pull request 32404): over a millisecond. So the row is cut into groups, the k
groups with the largest maxima are taken, and the k largest of what is in them. A logit above the
k-th largest is in such a group: fewer than k groups have a maximum above it.

Only operators are used that run on CUDA in float16 and that a captured CUDA graph may replay:
``Concat`` of parts of one size, no ``GatherND`` (these copy tables from main memory as they run).

The graph is a model of its own, or joins the model whose logits it reads. Then it has no groups:
their ``ReduceMax`` has no CUDA kernel in the opsets of such models (docs/OperatorKernels.md of
ONNX Runtime: 18, where opset 23 has the operator of 20), and ``TopK`` none in opset 24.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.engine.onnx_bytes import FLOAT16, FLOAT32, SmallGraph

LOGITS, TEMPERATURES, SELECTED = "logits", "temperatures", "selected"
"""Inputs, and the output. A joined graph takes the model's own logits."""


@dataclass(frozen=True, slots=True)
class SelectLayout:
    """Sizes of a selection.

    Attributes:
        vocab_size: V.
        count: k, candidates of a row.
        width: Logits of a group, a divisor of V; 1 is without groups.
        sums: The graph has temperatures, and sums exp((logit - largest) / temperature).
    """

    vocab_size: int
    count: int
    width: int
    sums: bool

    @classmethod
    def for_vocabulary(cls, vocab_size: int, count: int, *, sums: bool) -> SelectLayout:
        """Return the layout whose two ``TopK`` have the least to search."""
        count = min(count, vocab_size)
        best = min(
            (width for width in _divisors(vocab_size) if vocab_size // width >= count),
            key=lambda width: vocab_size // width + count * width if width > 1 else vocab_size,
        )
        return cls(vocab_size, count, best, sums)

    @classmethod
    def ungrouped(cls, vocab_size: int, count: int, *, sums: bool) -> SelectLayout:
        """Return the layout of one ``TopK``: of a joined graph."""
        return cls(vocab_size, min(count, vocab_size), 1, sums)

    @property
    def parts(self) -> int:
        """Vectors [k] of a row in the output: logits, places, groups, sum, and sum of weights."""
        return 4 + self.sums

    def tokens(
        self, places: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Return the tokens at ``places`` of the chosen ``groups`` (all [N, k])."""
        if self.width == 1:
            return places
        chosen = np.take_along_axis(groups, places // self.width, axis=1)
        return chosen * self.width + places % self.width


def select_graph(layout: SelectLayout, dtype: npt.DTypeLike) -> bytes:
    """Return the model: logits [B, 1, V] (and temperatures [B, 1]) to selected [B, parts * k].

    The output is float32, which holds tokens below 2**24 exactly; a sum stands k times.

    Args:
        layout: Sizes.
        dtype: Of the logits, float16 or float32.
    """
    graph = SmallGraph("select")
    half = np.dtype(dtype) == np.float16
    shape = ("batch", 1, layout.vocab_size)
    logits = graph.input(LOGITS, FLOAT16 if half else FLOAT32, shape)
    rows = graph.add("Reshape", [logits, graph.ints(-1, layout.vocab_size)], ["select/rows"])
    _select(graph, rows, layout)
    return graph.serialize()


def join_selection(model: bytes, layout: SelectLayout) -> bytes:
    """Return a serialized model that selects from the last of its logits [B, K, V], too.

    It has the input and output of :func:`select_graph` beside its own.

    Args:
        model: Of the ``ort`` dialect.
        layout: Sizes, without groups.
    """
    graph = SmallGraph("select")
    rows = graph.add("Gather", [LOGITS, graph.int_scalar(-1)], ["select/rows"], axis=1)
    _select(graph, rows, layout)
    return graph.joined_to(model)


def _select(graph: SmallGraph, rows: str, layout: SelectLayout) -> None:
    """Add what makes the output of rows [B, V]."""
    count, vocab = layout.count, layout.vocab_size
    wide = graph.add("Cast", [rows], ["select/wide"], to=FLOAT32)
    pool, groups = _pool(graph, rows, layout) if layout.width > 1 else (rows, "")
    graph.add("TopK", [pool, graph.ints(count)], ["select/top", "select/places"])
    top = graph.add("Cast", ["select/top"], ["select/top_wide"], to=FLOAT32)
    places = graph.add("Cast", ["select/places"], ["select/places_wide"], to=FLOAT32)
    parts = [top, places, groups or places, _sum(graph, wide, "sum", count)]
    if layout.sums:
        temperatures = graph.input(TEMPERATURES, FLOAT32, ("batch", 1))
        # The first of what TopK gives is the largest.
        largest = graph.add("Gather", [top, graph.ints(0)], ["select/largest"], axis=1)
        below = graph.add("Sub", [wide, largest], ["select/below"])
        scaled = graph.add("Div", [below, temperatures], ["select/scaled"])
        weights = graph.add("Exp", [scaled], ["select/weights"])
        if layout.width > 1:  # a sum in two stages rounds less, however a provider does one
            shape = graph.ints(-1, vocab // layout.width, layout.width)
            cut = graph.add("Reshape", [weights, shape], ["select/weights_cut"])
            two = graph.ints(2)
            weights = graph.add("ReduceSum", [cut, two], ["select/subtotals"], keepdims=0)
        parts.append(_sum(graph, weights, "total", count))
    graph.add("Concat", parts, [SELECTED], axis=1)
    graph.output(SELECTED, FLOAT32, ("batch", layout.parts * count))


def _pool(graph: SmallGraph, rows: str, layout: SelectLayout) -> tuple[str, str]:
    """Return the logits of the k groups with the largest maxima [B, k * W], and which they are."""
    count, width, groups = layout.count, layout.width, layout.vocab_size // layout.width
    grouped = graph.add("Reshape", [rows, graph.ints(-1, groups, width)], ["select/grouped"])
    maxima = graph.add("ReduceMax", [grouped], ["select/maxima"], axes=(2,), keepdims=0)
    found = "select/found"
    graph.add("TopK", [maxima, graph.ints(count)], ["select/top_maxima", found])
    # With NaN among the maxima CUDA's kernel leaves places unwritten: they must not be followed.
    limits = [graph.int_scalar(0), graph.int_scalar(groups - 1)]
    chosen = graph.add("Clip", [found, *limits], ["select/chosen"])
    column = graph.add("Reshape", [chosen, graph.ints(-1, count, 1)], ["select/column"])
    spread = graph.add("Expand", [column, graph.ints(1, 1, width)], ["select/spread"])
    gathered = graph.add("GatherElements", [grouped, spread], ["select/gathered"], axis=1)
    pool = graph.add("Reshape", [gathered, graph.ints(-1, count * width)], ["select/pool"])
    return pool, graph.add("Cast", [chosen], ["select/chosen_wide"], to=FLOAT32)


def _sum(graph: SmallGraph, values: str, name: str, count: int) -> str:
    """Return the rows' sums, each ``count`` times: all parts must have one size."""
    made = graph.add("ReduceSum", [values, graph.ints(1)], [f"select/{name}"], keepdims=1)
    return graph.add("Expand", [made, graph.ints(1, count)], [f"select/{name}_spread"])


def _divisors(number: int) -> list[int]:
    small = [value for value in range(1, math.isqrt(number) + 1) if number % value == 0]
    return sorted({*small, *(number // value for value in small)})
