"""ONNX Runtime behind the session protocol: CPU and CUDA by the same code.

Caches are bound as input and output alike, so updates are in place; a decode step's inputs and
logits live in buffers that are allocated and bound once per shape. On CUDA the logits of a step
that samplers read stay there: candidates are selected on the device (``ort_select``), where the
graph allows it by the model's own run, and a row is fetched only when a sampler asks for it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekit.contracts import engine_io
from edgekit.engine.candidates import Row
from edgekit.engine.checks import (
    broken_rows,
    check_copy,
    check_distinct,
    check_layout,
    check_room,
    check_slot,
    check_tokens,
    not_finite,
)
from edgekit.engine.half import to_float32
from edgekit.engine.ort_cache import TIERS_TO_A_DOUBLING, KeyValueCache, tier_for
from edgekit.engine.ort_open import Provider, installed_version, open_ort
from edgekit.engine.ort_options import EXTERNAL_FOLDER
from edgekit.engine.ort_select import (
    Select,
    Selector,
    broken,
    candidates_of,
    choose_select,
    joined_layout,
)
from edgekit.engine.ort_step import Step
from edgekit.engine.select_graph import SelectLayout, join_selection
from edgekit.errors import FETCH_AGAIN, EngineError
from edgekit.models.config import ModelConfig

Float32Array = npt.NDArray[np.float32]
LOGITS_CHUNK_BYTES = 64 * 1024 * 1024
"""Logits of a prefill chunk are at most this large when all of them are wanted."""


class OrtSession:
    """One graph loaded in ONNX Runtime.

    Args:
        graph: The ONNX file, its blobs beside it.
        config: Architecture of the model.
        max_context: Tokens a slot can hold.
        max_sequences: Cache slots.
        activation_dtype: Type of the graph's activations and caches.
        provider: ``cpu`` or ``cuda``.
        threads: Intra-op threads; None is the number of usable cores. ONNX Runtime left to
            itself ran on one.
        prefill_chunk: Tokens of a prefill step.
        cuda_graph: Capture decode steps as CUDA graphs; None does so on CUDA, where they take a
            tenth to a half off a step (docs/benchmarks.md).
        exact: Run the graph as it is written, without ONNX Runtime's optimizations.
        select: Where candidates are found; None is :func:`ort_select.choose_select`. On a CPU the
            logits are in main memory already, and 0.3 ms is the most that a sampled token of a
            152k vocabulary would save.
        derived: Weights that the graph reads and no file holds, of the ``ort`` dialect; None for
            graphs of another one.
        settings: Further session configuration entries of ONNX Runtime.

    Attributes:
        rows_fetched: Whole rows that samplers asked for because candidates did not do.

    Raises:
        EngineError: ONNX Runtime has no such provider, or refuses the graph.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(
        self,
        graph: Path,
        *,
        config: ModelConfig,
        max_context: int,
        max_sequences: int = 1,
        activation_dtype: Literal["float16", "float32"] = "float32",
        provider: Provider = "cpu",
        threads: int | None = None,
        prefill_chunk: int = 512,
        cuda_graph: bool | None = None,
        exact: bool = False,
        select: Select | None = None,
        derived: Mapping[str, npt.NDArray[Any]] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self.rows_fetched = self._runs = 0
        self._max_context = max_context
        self._max_sequences = max_sequences
        self._dtype = np.dtype(activation_dtype)
        self._device = provider
        self._chunk = prefill_chunk
        self._cuda_graph = provider == "cuda" and cuda_graph is not False
        joinable = derived is not None
        chosen = select or choose_select(provider, installed_version(provider), joinable=joinable)
        self._joined = joined_layout(chosen, config.vocab_size)
        self._session = open_joined(
            graph,
            self._joined,
            provider=provider,
            threads=threads,
            cuda_graph=self._cuda_graph,
            exact=exact,
            derived=derived,
            settings=settings,
        )
        if engine_io.present_key(0) not in {x.name for x in self._session.get_outputs()}:
            raise EngineError(
                f"{graph.name} is neither of the standard nor of the ort dialect",
                "Run another graph with --dialect, or build the bundle again",
            )
        check_layout(self._session, graph.name, config)
        self._lengths = [0] * max_sequences
        self._tiers = TIERS_TO_A_DOUBLING[provider]
        largest = tier_for(max_context, max_context, self._tiers)
        self._cache = KeyValueCache(
            self._session,
            config.num_hidden_layers,
            (max_sequences, config.num_key_value_heads, largest, config.head_dim),
            self._dtype,
            provider,
            capacity=tier_for(1, max_context, self._tiers),
        )
        self._steps: dict[tuple[int, int, int], Step] = {}
        self._selector = None if chosen == "whole" else self._make_selector(threads)

    def _make_selector(self, threads: int | None) -> Selector:
        opened = functools.partial(
            open_ort, provider=self._device, threads=threads, cuda_graph=self._cuda_graph
        )
        return Selector(
            self.vocab_size, self._dtype, self._device, opened, cuda_graph=self._cuda_graph
        )

    @property
    def max_context(self) -> int:
        """Tokens a slot can hold."""
        return self._max_context

    @property
    def max_sequences(self) -> int:
        """Slots that can be decoded at once."""
        return self._max_sequences

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self.config.vocab_size

    def prefill(
        self, slot: int, tokens: Sequence[int], start: int = 0, *, all_logits: bool = False
    ) -> Float32Array:
        """Run tokens at positions ``start`` onward in a slot; see ``InferenceSession``."""
        self._check([slot], [start], len(tokens))
        check_tokens(tokens, self.vocab_size)
        self._lengths[slot] = start
        total = start + len(tokens)
        parts = []
        size = min(self._chunk, self._all_logits_chunk()) if all_logits else self._chunk
        for begin in range(0, len(tokens), size):
            chunk = tokens[begin : begin + size]
            done = start + begin + len(chunk)
            # On a CPU moving rows is cheap and attention is not: widen chunk by chunk.
            self._reserve(done if self._device == "cpu" else total, shrink=begin == 0)
            wanted = len(chunk) if all_logits else 1
            logits = self._prefill_chunk(slot, chunk, start + begin, wanted)
            if all_logits or done == total:
                parts.append(logits)
            self._lengths[slot] = done
        result = np.concatenate(parts)
        self._require_finite(result, [slot], np.zeros(len(result), np.int64))
        return result if all_logits else np.asarray(result[0])

    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]
    ) -> Float32Array:
        """Run one token in each of ``slots``; see ``InferenceSession``."""
        step, rows = self._run_decode(slots, tokens, positions)
        logits = to_float32(step.logits()[:, 0])
        logits = logits if rows == list(range(len(logits))) else logits[rows]
        self._require_finite(logits, slots, np.arange(len(slots)))
        return logits

    def decode_candidates(
        self,
        slots: Sequence[int],
        tokens: Sequence[int],
        positions: Sequence[int],
        temperatures: Sequence[float],
    ) -> Sequence[Row]:
        """Run one token in each of ``slots``; see ``SelectsCandidates``."""
        if self._selector is None:
            return list(self.decode(slots, tokens, positions))
        step, rows = self._run_decode(slots, tokens, positions, temperatures)
        selected, layout = step.select(self._selector, sums=any(temperatures))
        if len(rows) < step.batch or rows != sorted(rows):
            selected = selected[rows]  # what idle rows hold may be anything
        bad = broken(selected)
        if bad:
            self._refuse([slots[index] for index in bad])
        fetchers = [functools.partial(self._fetch, step, row, self._runs) for row in rows]
        return candidates_of(selected, layout, fetchers)

    def copy_prefix(self, source: int, target: int, count: int) -> bool:
        """Give a slot what another holds; see ``CopiesPrefixes``."""
        check_copy(source, target, count, self._lengths)
        if self._device != "cpu":  # rows would move through main memory
            return False
        self._cache.copy(source, target, count)
        self._lengths[target] = count
        return True

    def release(self, slot: int) -> None:
        """Forget what a slot holds; see ``InferenceSession``."""
        self._check([slot], [0], 0)
        self._lengths[slot] = 0
        self._reserve(0, shrink=True)

    def close(self) -> None:
        """Free the engine and its caches; the session is of no use after it."""
        self._steps.clear()
        for name in ("_session", "_cache", "_selector"):
            self.__dict__.pop(name, None)

    def _run_decode(
        self,
        slots: Sequence[int],
        tokens: Sequence[int],
        positions: Sequence[int],
        temperatures: Sequence[float] = (),
    ) -> tuple[Step, list[int]]:
        """Run a decode step; returns it and the rows in it of ``slots``."""
        check_distinct(slots)
        self._check(slots, positions, 1)
        check_tokens(tokens, self.vocab_size)
        self._reserve(max(positions) + 1)
        first, batch = self._block(slots)
        step = self._decode_step(first, batch)
        inputs, heat = step.inputs, step.temperatures
        inputs.set_idle(self._lengths[first : first + batch])
        rows = [slot - first for slot in slots]
        for row, token, position in zip(rows, tokens, positions, strict=True):
            inputs.set_row(row, token, position)
        for row, temperature in zip(rows, temperatures, strict=False):  # none for whole rows
            heat[row, 0] = temperature or 1
        self._runs += 1
        step.run(self._session)
        for slot, position in zip(slots, positions, strict=True):
            self._lengths[slot] = position + 1
        return step, rows

    def _fetch(self, step: Step, row: int, run: int) -> Float32Array:
        """Return a whole row of decode step ``run`` that a sampler needs, and count it.

        Raises:
            EngineError: Its logits have been overwritten.
        """
        if run != self._runs:
            raise EngineError("a row of logits was asked for after the session's next step")
        self.rows_fetched += 1
        return step.row(self._session, row)

    def _prefill_chunk(
        self, slot: int, tokens: Sequence[int], start: int, wanted: int
    ) -> Float32Array:
        key = (slot, 1, len(tokens), wanted)
        step = Step(self._session, self._cache, self.config, key, self._device, graph_id=None)
        step.inputs.set_tokens(tokens, start)
        step.run(self._session)
        return to_float32(step.logits()[0])

    def _decode_step(self, first: int, batch: int) -> Step:
        """Return the bound buffers of a decode shape; they are kept, and so is its CUDA graph."""
        key = (first, batch, self._cache.capacity)
        step = self._steps.get(key)
        if step is None:
            graph_id = len(self._steps) + 1 if self._cuda_graph else None
            shape = (first, batch, 1, 1)
            step = Step(
                self._session,
                self._cache,
                self.config,
                shape,
                self._device,
                graph_id=graph_id,
                joined=self._joined,
            )
            self._steps[key] = step
        return step

    def _block(self, slots: Sequence[int]) -> tuple[int, int]:
        """Return the first slot and the number of the smallest block that has all of ``slots``.

        Blocks are powers of two that lie at multiples of themselves: few shapes, each of which is
        bound, and captured, once.
        """
        size = 1
        while min(slots) // size != max(slots) // size:
            size *= 2
        first = min(slots) // size * size
        return first, min(size, self._max_sequences - first)

    def _all_logits_chunk(self) -> int:
        return max(1, LOGITS_CHUNK_BYTES // (self._dtype.itemsize * self.vocab_size))

    def _reserve(self, rows: int, *, shrink: bool = False) -> None:
        """Put the caches in the tier that holds ``rows`` rows and what every slot holds."""
        held = max(rows, *self._lengths)
        wanted = tier_for(held, self._max_context, self._tiers)
        if wanted > self._cache.capacity or shrink:
            self._cache.resize(wanted, self._lengths)
            if not self._cuda_graph:  # shapes of other tiers would pile up buffers for logits
                self._steps.clear()

    def _check(self, slots: Sequence[int], starts: Sequence[int], tokens: int) -> None:
        for slot, start in zip(slots, starts, strict=True):
            check_slot(slot, self._max_sequences)
            check_room(slot, start, tokens, held=self._lengths[slot], max_context=self._max_context)

    def _require_finite(
        self, logits: Float32Array, slots: Sequence[int], owner: npt.NDArray[np.int64]
    ) -> None:
        """Zero the slots whose logits are not finite, and say so."""
        bad = np.flatnonzero(broken_rows(logits))
        if len(bad):
            self._refuse([slots[owner[row]] for row in bad.tolist()])

    def _refuse(self, slots: Sequence[int]) -> None:
        """Zero slots whose logits are not finite, and say so."""
        bad = sorted(set(slots))
        self._cache.zero(bad)
        for slot in bad:
            self._lengths[slot] = 0
        raise not_finite(bad[0], self._dtype.name)


def open_joined(graph: Path, joined: SelectLayout | None, **options: Any) -> Any:
    """Load a graph, with the selection that joins it; see ``open_ort`` for the rest.

    Its weights stay in their files: only the graph itself is read and passed on.

    Raises:
        EngineError: As of ``open_ort``; or the file cannot be read.
    """
    if joined is None:
        return open_ort(graph, **options)
    try:
        model = graph.read_bytes()
    except OSError as error:
        raise EngineError(f"cannot read {graph}: {error.strerror}", FETCH_AGAIN) from error
    settings = {**(options.pop("settings") or {}), EXTERNAL_FOLDER: str(graph.parent)}
    source = join_selection(model, joined)
    return open_ort(source, title=graph.name, settings=settings, **options)
