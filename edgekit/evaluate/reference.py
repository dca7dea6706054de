"""The unquantized model in float32 NumPy: what every quantized model is measured against.

It runs layer by layer over all given sequences at once and reads every weight in strips, so a
7B checkpoint is a reference in about 1 GiB. It has no key/value cache and does not generate.
The arithmetic follows ``transformers``' eager float32 path (Qwen2, Llama, Qwen3), to which an
integration test holds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.checkpoint.lazy import Float32Array
from edgekit.errors import CheckpointError
from edgekit.evaluate.scores import ScoreAccumulator, TokenScores
from edgekit.evaluate.weight_strips import STRIP_BYTES, TensorSource, WeightStrips
from edgekit.evaluate.workers import Workers
from edgekit.graph.float16_range import LayerMaxima, NormRange
from edgekit.models.config import Linear, ModelConfig, layer_linears, lm_head
from edgekit.models.rope import cos_sin_tables
from edgekit.progress import SILENT, Progress
from edgekit.units import MIB

Tokens = npt.NDArray[np.int64]
ACTIVATION_BYTES = 384 * MIB
"""Bytes of one block's activations; more tokens run as several blocks, re-reading the layer."""
SCORE_BYTES = 4 * MIB
"""Bytes of one thread's attention scores at a time: small enough to stay in its cache."""
LOGIT_BYTES = 128 * MIB
"""Bytes of float32 logits :meth:`ReferenceModel.scores` holds at a time."""
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """What the LM head reads, for several sequences.

    Attributes:
        windows: Per sequence float32 [S, hidden_size], after the final norm.
        maxima: One entry per layer.
        embedding_amax: Largest |embedding| of the tokens seen.
        final_norm: Range of the final norm.
    """

    windows: tuple[Float32Array, ...]
    maxima: tuple[LayerMaxima, ...]
    embedding_amax: float
    final_norm: NormRange

    @property
    def residual_amax(self) -> float:
        """Largest |residual| anywhere, the embedding included."""
        return max([self.embedding_amax, *(layer.residual for layer in self.maxima)])


class ReferenceModel:
    """A dense decoder in float32.

    Args:
        config: The architecture.
        tensors: Opens a weight by its checkpoint key.
        threads: Threads of all the arithmetic; with more than one, another reads ahead.
        strip_bytes: Float32 bytes of a strip of weights; two are alive at once.
        activation_bytes: Bound on one block's activations. A block holds whole sequences, at
            least one, so a very long sequence may exceed it.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: TensorSource,
        *,
        threads: int = 2,
        strip_bytes: int = STRIP_BYTES,
        activation_bytes: int = ACTIVATION_BYTES,
    ) -> None:
        self.config = config
        self.threads = threads
        self._workers = Workers(threads)
        self._weights = WeightStrips(tensors, self._workers, strip_bytes=strip_bytes)
        self._block_tokens = max(1, activation_bytes // _activation_bytes_per_token(config))

    def hidden_states(
        self, windows: Sequence[Tokens], *, progress: Progress = SILENT
    ) -> HiddenStates:
        """Run all layers over independent sequences.

        Args:
            windows: Token ids, int64 [S] each; positions start at 0 in each.
            progress: Advanced by a layer's stored bytes after each layer; the caller starts
                and finishes the stage.

        Raises:
            CheckpointError: A weight is missing, misshapen or not finite, a token id is
                outside the vocabulary, or activations overflow float32.
        """
        with self._workers, np.errstate(over="ignore", invalid="ignore"):
            return self._run(windows, progress)

    def logits(self, windows: Sequence[Tokens]) -> tuple[Float32Array, ...]:
        """Return whole logits, float32 [S, vocab_size] a sequence: for small vocabularies.

        4 bytes * tokens * vocab_size are held; :meth:`scores` holds no logits.
        """
        with self._workers, np.errstate(over="ignore", invalid="ignore"):
            states = self._run(windows, SILENT).windows
            return tuple(self._weights.linear(lm_head(self.config), state) for state in states)

    def logit_strips(self, states: Float32Array) -> Iterator[tuple[int, Float32Array]]:
        """Yield ``(first_token_id, float32 [P, rows])`` over the vocabulary, in order.

        Args:
            states: Float32 [P, hidden_size], from :meth:`hidden_states`.
        """
        head = lm_head(self.config)
        shape = (head.out_features, head.in_features)
        for start, strip in self._weights.matrix(head.weight_key, shape):
            logits = np.empty((states.shape[0], strip.shape[0]), np.float32)
            with self._workers:
                self._weights.multiply(states, strip, logits)
            yield start, logits

    def scores(
        self, states: Sequence[Float32Array], wanted: Sequence[Tokens], *, top_k: int = 1
    ) -> tuple[TokenScores, ...]:
        """Return log-probabilities of ``wanted`` tokens and the best tokens.

        Args:
            states: Per sequence float32 [S, hidden_size], from :meth:`hidden_states`.
            wanted: Per sequence int64 [S]; -1 wants none (log-probability NaN).
            top_k: Best tokens to keep.
        """
        bounds = sequence_bounds(states)
        done: list[TokenScores] = []
        for edges in sequence_blocks(bounds, self.logit_rows(LOGIT_BYTES)):
            part = slice(len(done), len(done) + len(edges) - 1)
            accumulator = ScoreAccumulator(np.concatenate(wanted[part]), top_k=top_k)
            with self._workers:
                for start, logits in self.logit_strips(np.concatenate(states[part])):
                    accumulator.update_all(start, logits, self._workers)
            done.extend(accumulator.result().split(edges[1:-1] - edges[0]))
        return tuple(done)

    def logit_rows(self, size_bytes: int) -> int:
        """Return how many positions' strips of :meth:`logit_strips` fit in ``size_bytes``."""
        width = min(self.config.vocab_size, self._weights.rows_per_strip(self.config.hidden_size))
        return max(1, size_bytes // (4 * width))

    def _run(self, windows: Sequence[Tokens], progress: Progress) -> HiddenStates:
        config = self.config
        bounds = sequence_bounds(windows)
        ids = np.concatenate([*windows, np.empty(0, np.int64)]).astype(np.int64)
        residual = self._weights.gather(
            "model.embed_tokens.weight", (config.vocab_size, config.hidden_size), ids
        )
        embedding_amax = _amax(residual)
        longest = int(np.diff(bounds).max(initial=0))
        rope = cos_sin_tables(config.rope, config.head_dim, np.arange(longest))
        maxima = []
        for layer in range(config.num_hidden_layers):
            seen = LayerMaxima()
            for edges in sequence_blocks(bounds, self._block_tokens):
                seen = self._layer(layer, residual[edges[0] : edges[-1]], edges, rope, seen)
            maxima.append(seen)
            names = [linear.weight_key for linear in layer_linears(config, layer)]
            progress.advance(self._weights.stored_bytes(names), f"layer {layer}")
        states, norm = self._norm("model.norm", residual, out=residual)
        parts = tuple(states[a:b] for a, b in pairwise(bounds))
        return HiddenStates(parts, tuple(maxima), embedding_amax, norm)

    def _layer(
        self,
        layer: int,
        residual: Float32Array,
        edges: npt.NDArray[np.int64],
        rope: tuple[Float32Array, Float32Array],
        seen: LayerMaxima,
    ) -> LayerMaxima:
        """Run one layer in place over the block ``residual`` [T, hidden_size]."""
        seen = self._attention_block(layer, residual, edges, rope, seen)
        seen = self._mlp_block(layer, residual, seen)
        largest = _amax(residual)
        if not largest**2 * self.config.hidden_size < _FLOAT32_MAX:  # also when it is NaN
            raise CheckpointError(
                f"the activations of layer {layer} overflow float32 ({largest:.3g})",
                "The weights are damaged, or not of the architecture config.json names",
            )
        return seen.merge(residual=largest)

    def _attention_block(
        self,
        layer: int,
        residual: Float32Array,
        edges: npt.NDArray[np.int64],
        rope: tuple[Float32Array, Float32Array],
        seen: LayerMaxima,
    ) -> LayerMaxima:
        prefix = f"model.layers.{layer}"
        q, k, v, o, *_ = layer_linears(self.config, layer)
        x, norm = self._norm(f"{prefix}.input_layernorm", residual)
        seen = seen.merge(input_norm=norm.output, input_norm_weight=norm.weight)
        (queries, q_amax), (keys, k_amax), (values, v_amax) = (
            self._project(linear, x) for linear in (q, k, v)
        )
        queries, keys = self._heads(prefix, "q", queries), self._heads(prefix, "k", keys)
        values = self._heads(prefix, "v", values)
        seen = seen.merge(query_projection=q_amax, key_projection=k_amax, value=v_amax)
        seen = seen.merge(query=_amax(queries), key=_amax(keys))
        score, attended = self._attend(queries, keys, values, edges - edges[0], rope)
        seen = seen.merge(attention_score=score, attended_score=attended)
        added, added_amax = self._project(o, queries.reshape(residual.shape[0], -1))
        residual += added
        return seen.merge(residual=max(added_amax, _amax(residual)))

    def _mlp_block(self, layer: int, residual: Float32Array, seen: LayerMaxima) -> LayerMaxima:
        gate, up, down = layer_linears(self.config, layer)[4:]
        x, norm = self._norm(f"model.layers.{layer}.post_attention_layernorm", residual)
        seen = seen.merge(post_attention_norm=norm.output, post_attention_norm_weight=norm.weight)
        product, gate_amax, up_amax = self._gated_product(gate, up, x)
        added, added_amax = self._project(down, product, out=x)
        residual += added
        seen = seen.merge(gate=gate_amax, up=up_amax, mlp_product=_amax(product))
        return seen.merge(residual=added_amax)

    def _norm(
        self, name: str, x: Float32Array, out: Float32Array | None = None
    ) -> tuple[Float32Array, NormRange]:
        """Return x normalized, and the range of that."""
        weight = self._weights.vector(f"{name}.weight", x.shape[-1])
        normed = _rms_norm(x, weight, self.config.rms_norm_eps, out)
        return normed, NormRange(_amax(normed), _amax(weight))

    def _project(
        self, linear: Linear, x: Float32Array, out: Float32Array | None = None
    ) -> tuple[Float32Array, float]:
        """Return a linear's output and the largest absolute value before and after its bias."""
        out = self._weights.product(linear, x, out)
        largest = _amax(out)
        if linear.bias:
            out += self._weights.vector(f"{linear.name}.bias", linear.out_features)
            largest = max(largest, _amax(out))
        return out, largest

    def _heads(self, prefix: str, kind: str, projected: Float32Array) -> Float32Array:
        """Return q, k or v as [T, heads, head_dim], normed when the family norms q and k."""
        heads = projected.reshape(projected.shape[0], -1, self.config.head_dim)
        if self.config.qk_norm and kind in "qk":
            weight = self._weights.vector(f"{prefix}.self_attn.{kind}_norm.weight", heads.shape[2])
            _rms_norm(heads, weight, self.config.rms_norm_eps, out=heads)
        return heads

    def _attend(
        self,
        queries: Float32Array,
        keys: Float32Array,
        values: Float32Array,
        edges: npt.NDArray[np.int64],
        rope: tuple[Float32Array, Float32Array],
    ) -> tuple[float, float]:
        """Attend within each sequence; the result replaces ``queries``, [T, heads, head_dim].

        Returns:
            The largest |score| computed, and the largest of each query's largest.
        """

        def attend(window: int) -> tuple[float, float]:
            part = slice(int(edges[window]), int(edges[window + 1]))
            _rotate(queries[part], rope)
            _rotate(keys[part], rope)
            return _causal_attention(queries[part], keys[part], values[part])

        seen = [(0.0, 0.0), *self._workers.map(attend, len(edges) - 1)]
        return max(score for score, _ in seen), max(attended for _, attended in seen)

    def _gated_product(
        self, gate: Linear, up: Linear, x: Float32Array
    ) -> tuple[Float32Array, float, float]:
        """Return ``silu(gate) * up``, [T, intermediate_size], and the largest |gate| and |up|."""
        product, gate_amax = self._project(gate, x)
        self._workers.rows(lambda rows: _silu(product[rows]), product.shape[0])
        shape = (up.out_features, up.in_features)
        bias = self._weights.vector(f"{up.name}.bias", shape[0]) if up.bias else None
        up_amax = 0.0
        for start, strip in self._weights.matrix(up.weight_key, shape):
            part = slice(start, start + strip.shape[0])
            values = np.empty((x.shape[0], strip.shape[0]), np.float32)
            self._weights.multiply(x, strip, values)
            up_amax = max(up_amax, _amax(values))
            if bias is not None:
                values += bias[part]
                up_amax = max(up_amax, _amax(values))
            product[:, part] *= values
        return product, gate_amax, up_amax


def _activation_bytes_per_token(config: ModelConfig) -> int:
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    width = 2 * config.intermediate_size + 2 * heads * config.head_dim + 3 * config.hidden_size
    return 4 * width


def sequence_bounds(sequences: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """Return where each sequence starts when they stand end to end, and where the last ends."""
    return np.concatenate([[0], np.cumsum([len(x) for x in sequences], dtype=np.int64)])


def sequence_blocks(bounds: npt.NDArray[np.int64], tokens: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield runs of sequence edges whose tokens number at most ``tokens`` (or one sequence)."""
    first = 0
    for i in range(1, len(bounds)):
        if i == len(bounds) - 1 or bounds[i + 1] - bounds[first] > tokens:
            yield bounds[first : i + 1]
            first = i


def _amax(x: Float32Array) -> float:
    return float(max(x.max(), -x.min())) if x.size else 0.0


def _rms_norm(
    x: Float32Array, weight: Float32Array, eps: float, out: Float32Array | None = None
) -> Float32Array:
    """Return ``x / sqrt(mean(x**2) + eps) * weight`` over the last axis."""
    mean = np.einsum("...d,...d->...", x, x)[..., None] / np.float32(x.shape[-1])
    scaled: Float32Array = np.multiply(x, 1 / np.sqrt(mean + np.float32(eps)), out=out)
    scaled *= weight
    return scaled


def _rotate(x: Float32Array, rope: tuple[Float32Array, Float32Array]) -> None:
    """Rotate [S, heads, head_dim] in place; halves are paired (NeoX order, as transformers)."""
    cos, sin = (table[: x.shape[0], None, :] for table in rope)
    half = x.shape[2] // 2
    first, second = x[..., :half], x[..., half:]
    turned = first * cos - second * sin
    second *= cos
    second += first * sin
    first[...] = turned


def _causal_attention(
    queries: Float32Array, keys: Float32Array, values: Float32Array
) -> tuple[float, float]:
    """Replace ``queries`` by attention's result.

    Args:
        queries: Float32 [S, heads, head_dim], rotated.
        keys: Float32 [S, kv_heads, head_dim], rotated.
        values: Float32 [S, kv_heads, head_dim].

    Returns:
        The largest |score| computed, and the largest of each query's largest.
    """
    length, heads, dim = queries.shape
    groups = keys.shape[1]
    by_head = np.ascontiguousarray(keys.transpose(1, 2, 0))  # [kv_heads, head_dim, S]
    by_value = np.ascontiguousarray(values.transpose(1, 0, 2))  # [kv_heads, S, head_dim]
    step = max(1, min(256, SCORE_BYTES // (4 * heads * max(1, length))))
    largest, attended, scale = 0.0, 0.0, np.float32(dim**-0.5)
    for start in range(0, length, step):
        stop = min(start + step, length)
        block = queries[start:stop].reshape(stop - start, groups, heads // groups, dim)
        scaled: Float32Array = np.multiply(block.transpose(1, 2, 0, 3), scale)
        scores: Float32Array = scaled.reshape(groups, -1, dim) @ by_head[:, :, :stop]
        largest = max(largest, _amax(scores))
        by_row = scores.reshape(heads, stop - start, stop)
        future = np.triu(np.ones((stop - start, stop - start), bool), 1)
        by_row[:, :, start:][:, future] = -np.inf
        peaks = scores.max(axis=-1, keepdims=True)
        attended = max(attended, _amax(peaks))
        scores -= peaks
        np.exp(scores, out=scores)
        total = scores.sum(axis=-1, keepdims=True)
        result = (scores @ by_value[:, :stop]) / total
        by_query = result.reshape(groups, heads // groups, stop - start, dim)
        queries[start:stop] = by_query.transpose(2, 0, 1, 3).reshape(stop - start, heads, dim)
    return largest, attended


def _silu(x: Float32Array) -> None:
    """Replace x by ``x / (1 + exp(-x))``; exp overflows to infinity where the result is -0."""
    for row in range(0, x.shape[0], 64):  # 64 rows of most models stay in a core's cache
        part = x[row : row + 64]
        sigmoid = np.exp(-part)
        sigmoid += 1
        part /= sigmoid
