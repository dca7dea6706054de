"""The ONNX Runtime session: chunks, tiers, slots and recovery, on a real exported graph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import write_checkpoint

from edgekit.bundle.reader import open_bundle
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.engine.load import load_bundle
from edgekit.engine.ort import OrtSession
from edgekit.engine.ort_cache import tier_for
from edgekit.errors import ContextOverflowError, EngineError
from edgekit.evaluate.reference import ReferenceModel
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS

Array = np.ndarray[Any, Any]
CONTEXT = 700


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random checkpoint and its unquantized float32-activation bundle."""
    root = tmp_path_factory.mktemp("session")
    checkpoint = write_checkpoint(
        root / "checkpoint",
        family="qwen2",
        hidden=32,
        intermediate=64,
        max_position_embeddings=1024,
    )
    request = BuildRequest(
        model=str(checkpoint),
        target=TARGETS["cpu"],
        recipe=load_recipe("float16"),
        out=root / "bundle",
        max_context=CONTEXT,
        max_sequences=4,
    )
    return checkpoint, build(request).path


@pytest.fixture
def session(folders: tuple[Path, Path]) -> Iterator[OrtSession]:
    model = load_bundle(open_bundle(folders[1]), max_sequences=4, threads=1, prefill_chunk=64)
    yield model.session
    model.session.close()


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    ids: list[int] = np.random.default_rng(5).integers(0, 4096, CONTEXT).tolist()
    return ids


@pytest.fixture(scope="module")
def expected(folders: tuple[Path, Path], tokens: list[int]) -> Array:
    """Float32 logits of the whole sequence from the NumPy reference."""
    checkpoint = open_checkpoint(folders[0])
    model = ReferenceModel(checkpoint.config, checkpoint.tensor)
    return np.asarray(model.logits([np.array(tokens, np.int64)])[0])


def close(actual: Array, wanted: Array) -> None:
    # Weights and embedding are stored in float16, hence not the reference's bits.
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=4e-3 * float(np.abs(wanted).max()))


def test_prefill_equals_reference(session: OrtSession, tokens: list[int], expected: Array) -> None:
    """A prompt prefilled in chunks, over two cache tiers, gives the reference's logits."""
    close(session.prefill(0, tokens[:600], all_logits=True), expected[:600])


def test_decode_equals_prefill(session: OrtSession, tokens: list[int], expected: Array) -> None:
    """Token by token over a tier boundary gives the same logits as prefill."""
    session.prefill(1, tokens[:250])
    for position in range(250, 262):
        logits = session.decode([1], [tokens[position]], [position])
        close(logits[0], expected[position])


def test_slots_do_not_disturb_each_other(
    session: OrtSession, tokens: list[int], expected: Array
) -> None:
    """Interleaved sequences of different lengths, some idle, keep their own logits."""
    starts = {0: 40, 1: 7, 3: 130}
    for slot, start in starts.items():
        close(session.prefill(slot, tokens[:start]), expected[start - 1])
    for step, slots in enumerate([[0, 1, 3], [3], [1, 0], [0, 3], [0, 1, 3]]):
        positions = [starts[slot] for slot in slots]
        logits = session.decode(slots, [tokens[p] for p in positions], positions)
        for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
            close(logits[row], expected[position])
            starts[slot] += 1
        assert step >= 0


def test_going_back_overwrites(session: OrtSession, tokens: list[int], expected: Array) -> None:
    """Feeding an earlier position again forgets what followed."""
    session.prefill(0, [1, 2, 3, 4, 5, 6])
    session.prefill(0, tokens[:30])
    session.prefill(0, [9, 9, 9], start=20)
    close(session.prefill(0, tokens[20:31], start=20), expected[30])


def test_context_can_be_filled_to_the_last_token(
    session: OrtSession, tokens: list[int], expected: Array
) -> None:
    """A slot holds exactly max_context tokens, and the next one is refused by name."""
    session.prefill(2, tokens[: CONTEXT - 1])
    close(session.decode([2], [tokens[-1]], [CONTEXT - 1])[0], expected[-1])
    with pytest.raises(ContextOverflowError, match=f"context of {CONTEXT}"):
        session.decode([2], [0], [CONTEXT])
    session.prefill(0, tokens[:5])
    close(session.decode([0, 2], [tokens[5], tokens[-1]], [5, CONTEXT - 1])[0], expected[5])


def test_nan_is_reported_and_cleaned_up(
    session: OrtSession, tokens: list[int], expected: Array
) -> None:
    """A NaN in a cache is reported, its slot is zeroed, the others live on."""
    session.prefill(0, tokens[:10])
    session.prefill(1, tokens[:10])
    session._cache._arrays[0][1, 0, 3, 0] = np.nan
    with pytest.raises(EngineError, match="slot 1"):
        session.decode([0, 1], [tokens[10], tokens[10]], [10, 10])
    close(session.decode([0], [tokens[10]], [10])[0], expected[10])
    close(session.prefill(1, tokens[:12]), expected[11])


@pytest.mark.parametrize(
    ("slots", "positions", "message"),
    [
        ([9], [0], "no slot 9"),
        ([0], [5], "holds 0 tokens"),
        ([1, 1], [0, 0], "repeat"),
        ([], [], "are empty"),
    ],
)
def test_misuse_is_refused(
    session: OrtSession, slots: list[int], positions: list[int], message: str
) -> None:
    """Unknown slots, gaps and repeated slots are errors that name them."""
    with pytest.raises(EngineError, match=message):
        session.decode(slots, [0] * len(slots), positions)


def test_release_shrinks_the_caches(session: OrtSession, tokens: list[int]) -> None:
    """When the last slot is released the caches return to the first tier."""
    session.prefill(0, tokens[:300])
    assert session._cache.capacity == 512
    session.release(0)
    assert session._cache.capacity == 256


@pytest.mark.parametrize(
    ("rows", "tier"), [(1, 256), (255, 256), (256, 512), (600, 701), (700, 701)]
)
def test_tiers_keep_a_row_for_idle_writes(rows: int, tier: int) -> None:
    """Capacity doubles, stays above the rows held, and ends just above the context."""
    assert tier_for(rows, CONTEXT) == tier


def test_missing_provider_is_an_error(folders: tuple[Path, Path]) -> None:
    """CUDA that is not there is an error with a remedy, never a quiet fallback."""
    with pytest.raises(EngineError, match="no CUDAExecutionProvider"):
        load_bundle(open_bundle(folders[1]), provider="cuda")
