"""TensorRT behind the session protocol: prefill and decode profiles, caches in place, CUDA graphs.

All memory is taken when the session opens: caches of every slot, and for each decode shape its
inputs (one block, one copy a step), its logits and, after its first step, a CUDA graph. A decode
step copies a few kilobytes there, launches the graph and copies the logits back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.bundle.reader import Bundle
from edgekit.contracts import engine_io
from edgekit.contracts.engine_plan import EnginePlan
from edgekit.engine.checks import (
    broken_rows,
    check_copy,
    check_distinct,
    check_room,
    check_slot,
    check_tokens,
    not_finite,
)
from edgekit.engine.half import to_float32
from edgekit.engine.tensorrt_step import DeviceCache, EngineStep
from edgekit.errors import EngineError
from edgekit.models.config import ModelConfig
from edgekit.progress import SILENT, Progress
from edgekit.trt.cuda import CudaRuntime, load_cuda
from edgekit.trt.device_build import engine_plan, find_machine, obtain_engine
from edgekit.trt.engine_cache import EngineCache, default_folder
from edgekit.trt.module import gpu_sm
from edgekit.trt.runtime import Context, Runtime

Float32Array = npt.NDArray[np.float32]


class TensorRTSession:
    """One engine loaded in TensorRT.

    Args:
        runtime: The engine on its device; closed with the session.
        plan: What it was built by.
        config: Architecture of the model.
        max_sequences: Cache slots, at most what the plan's largest decode profile has.
        cuda_graph: Capture decode steps.
        release: Called when the session is closed.
        warnings: What the user is to know of the engine, a sentence each.

    Raises:
        EngineError: The engine has no such profile, is of another dialect, or memory ran out.
    """

    def __init__(
        self,
        runtime: Runtime,
        plan: EnginePlan,
        *,
        config: ModelConfig,
        max_sequences: int = 1,
        cuda_graph: bool = True,
        release: Callable[[], None] = lambda: None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.config, self.warnings = config, warnings
        self._runtime, self._plan, self._release = runtime, plan, release
        self._max_sequences, self._cuda_graph = max_sequences, cuda_graph
        dtypes = runtime.tensors()
        if not {engine_io.present_key(0), engine_io.new_key(0)} & set(dtypes):
            raise EngineError(f"the engine of {plan.graph} is neither of standard nor of trt103")
        in_place = engine_io.present_key(0) in dtypes
        require_sequences(plan, max_sequences)
        self._batches = {p.batch: i for i, p in enumerate(plan.profiles) if p.max_tokens == 1}
        (self._prefill_at,) = (i for i, p in enumerate(plan.profiles) if p.max_tokens > 1)
        self._dtype = np.dtype(dtypes[engine_io.past_key(0)])
        slots = self._bucket(max_sequences)
        shape = (slots, config.num_key_value_heads, plan.cache_capacity, config.head_dim)
        self._cache = DeviceCache(
            runtime, config.num_hidden_layers, shape, self._dtype, in_place=in_place
        )
        self._lengths = np.zeros(slots, np.int64)
        self._contexts: dict[int, Context] = {}
        profile = plan.profiles[self._prefill_at]
        largest = (1, profile.max_tokens, profile.max_wanted)
        self._prefill_step = self._step(self._prefill_at, 0, largest)
        self._steps: dict[tuple[int, int], EngineStep] = {}

    @property
    def max_context(self) -> int:
        """Tokens a slot can hold."""
        return self._plan.cache_capacity

    @property
    def max_sequences(self) -> int:
        """Slots that can be decoded at once."""
        return self._max_sequences

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self.config.vocab_size

    @property
    def captured(self) -> int:
        """Decode shapes that run as CUDA graphs by now."""
        return sum(step.captured for step in self._steps.values())

    def prefill(
        self, slot: int, tokens: Sequence[int], start: int = 0, *, all_logits: bool = False
    ) -> Float32Array:
        """Run tokens at positions ``start`` onward in a slot; see ``InferenceSession``."""
        self._check([slot], [start], len(tokens))
        check_tokens(tokens, self.vocab_size)
        self._lengths[slot] = start
        profile = self._plan.profiles[self._prefill_at]
        size = profile.max_wanted if all_logits else profile.max_tokens
        parts = []
        for begin in range(0, len(tokens), size):
            chunk = tokens[begin : begin + size]
            step = self._prefill_step
            step.reshape(slot, len(chunk), len(chunk) if all_logits else 1)
            step.inputs.set_tokens(chunk, start + begin)
            logits = step.run([(0, start + begin)])[0]
            if all_logits or begin + len(chunk) == len(tokens):
                parts.append(to_float32(logits))
            self._lengths[slot] = start + begin + len(chunk)
        result = np.concatenate(parts)
        self._require_finite(result, [slot] * len(result))
        return result if all_logits else np.asarray(result[0])

    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]
    ) -> Float32Array:
        """Run one token in each of ``slots``; see ``InferenceSession``."""
        check_distinct(slots)
        self._check(slots, positions, 1)
        check_tokens(tokens, self.vocab_size)
        steps = list(zip(slots, tokens, positions, strict=True))
        if len(slots) == 1 or self._full_beside(slots):
            # An idle slot that is full has no row to write to: nobody is idle in a batch of one.
            logits = np.concatenate([self._decode(row[0], 1, [row]) for row in steps])
        else:
            logits = self._decode(0, self._bucket(max(slots) + 1), steps)
        self._lengths[list(slots)] = np.asarray(positions) + 1
        self._require_finite(logits, slots)
        return logits

    def copy_prefix(self, source: int, target: int, count: int) -> bool:
        """Give a slot what another holds; see ``CopiesPrefixes``."""
        check_copy(source, target, count, self._lengths[: self._max_sequences].tolist())
        self._cache.copy(source, target, count)
        self._lengths[target] = count
        return True

    def release(self, slot: int) -> None:
        """Forget what a slot holds; see ``InferenceSession``."""
        check_slot(slot, self._max_sequences)
        self._lengths[slot] = 0

    def close(self) -> None:
        """Free the engine and its caches; the session is of no use after it."""
        if self.__dict__.pop("_cache", None) is None:
            return
        self._steps.clear()
        self._contexts.clear()
        del self._prefill_step
        self._runtime.close()
        self._release()

    def _decode(self, first: int, batch: int, rows: Sequence[tuple[int, int, int]]) -> Float32Array:
        """Run (slot, token, position) rows among ``batch`` slots from ``first``."""
        step = self._steps.get((first, batch))
        if step is None:
            step = self._step(self._batches[batch], first, (batch, 1, 1))
            self._steps[first, batch] = step
        step.inputs.set_idle(self._lengths[first : first + batch])
        for slot, token, position in rows:
            step.inputs.set_row(slot - first, token, position)
        filled = [(slot - first, position) for slot, _, position in rows]
        logits = step.run(filled, capture=self._cuda_graph)
        return to_float32(logits[[slot - first for slot, _, _ in rows], 0])

    def _step(self, profile: int, first: int, shape: tuple[int, int, int]) -> EngineStep:
        if profile not in self._contexts:
            self._contexts[profile] = self._runtime.context(profile)
        context = self._contexts[profile]
        return EngineStep(self._runtime, context, self._cache, first, shape, self.vocab_size)

    def _full_beside(self, slots: Sequence[int]) -> bool:
        """Whether the batch that covers ``slots`` has a full slot that is not among them."""
        covered = self._lengths[: self._bucket(max(slots) + 1)]
        full = set(np.flatnonzero(covered >= self._plan.cache_capacity).tolist())
        return bool(full - set(slots))

    def _bucket(self, slots: int) -> int:
        """Return the smallest batch with a profile that covers the leading ``slots``."""
        return min(batch for batch in self._batches if batch >= slots)

    def _check(self, slots: Sequence[int], starts: Sequence[int], tokens: int) -> None:
        for slot, start in zip(slots, starts, strict=True):
            check_slot(slot, self._max_sequences)
            held = int(self._lengths[slot])
            check_room(slot, start, tokens, held=held, max_context=self.max_context)

    def _require_finite(self, logits: Float32Array, owners: Sequence[int]) -> None:
        """Zero the slots whose logits are not finite, and say so."""
        bad = broken_rows(logits)
        if bad.any():
            broken = sorted({owners[row] for row in np.flatnonzero(bad).tolist()})
            self._cache.zero(broken)
            self._lengths[broken] = 0
            raise not_finite(broken[0], self._dtype.name)


def open_tensorrt(
    bundle: Bundle,
    config: ModelConfig,
    *,
    max_sequences: int = 1,
    cache: Path | None = None,
    cuda_graph: bool = True,
    progress: Progress = SILENT,
    stand_in: bool = False,
) -> TensorRTSession:
    """Open a bundle's engine on this machine, found in the cache or built into it.

    The bundle's bytes are the caller's to check: an engine is looked up by their digests.

    Args:
        bundle: An opened bundle.
        config: Its architecture.
        max_sequences: Cache slots.
        cache: Folder of engines; None is ``default_folder``.
        cuda_graph: Capture decode steps.
        progress: Told about a stage ``engine``.
        stand_in: Where the engine cannot be built, take one of the same graph and weights that is
            there; the session's ``warnings`` say so.

    Raises:
        EngineError: There is no GPU, or no TensorRT of the bundle's range, or it fails.
        GraphError: TensorRT refuses the graph; names the node.
        MissingExtraError: CUDA's bindings, or onnx for a build, are not installed.
    """
    plan, machine = engine_plan(bundle.manifest), find_machine()
    # All that can be refused is refused here: a build takes minutes.
    if not machine.runs_engines:
        sm, builder = gpu_sm(), machine.builder
        raise EngineError(
            "running a TensorRT engine needs an NVIDIA GPU and its driver, and neither is found"
            if sm is None
            else f"the GPU here is of SM {sm}, for which {builder.name} {builder.version} builds "
            "no engine",
            "Run it with --provider cpu",
        )
    require_sequences(plan, max_sequences)
    cuda = load_cuda()
    engines = EngineCache(cache or default_folder())
    engine = obtain_engine(bundle, engines, machine, progress, digests=False, stand_in=stand_in)
    with contextlib.ExitStack() as undo:
        undo.callback(engine.release)
        runtime = CudaRuntime(engine.path, machine.builder, cuda)
        undo.callback(runtime.close)
        session = TensorRTSession(
            runtime,
            EnginePlan.from_dict(dict(engine.key["plan"])),
            config=config,
            max_sequences=max_sequences,
            cuda_graph=cuda_graph,
            release=engine.release,
            warnings=(engine.warning,) if engine.warning else (),
        )
        undo.pop_all()
    return session


def require_sequences(plan: EnginePlan, max_sequences: int) -> None:
    """Refuse more slots than an engine decodes at once.

    Raises:
        EngineError: They are more.
    """
    most = max(profile.batch for profile in plan.profiles if profile.max_tokens == 1)
    if max_sequences > most:
        raise EngineError(
            f"the engine decodes {most} sequences at once, not {max_sequences}",
            "Build the bundle with a larger --max-sequences",
        )
