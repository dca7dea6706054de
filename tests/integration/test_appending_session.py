"""The session of the trt103 dialect: float16 graphs of JetPack 6.2 bundles run on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import write_checkpoint
from session_cases import random_tokens, reference_logits

from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.engine.appending_cache import AppendingCacheSession
from edgekit.engine.load import open_session
from edgekit.errors import ContextOverflowError, EngineError
from edgekit.models.config import ModelConfig
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS

Array = np.ndarray[Any, Any]
CONTEXT = 100


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random checkpoint and its unquantized bundle for JetPack 6.2."""
    root = tmp_path_factory.mktemp("appending")
    checkpoint = write_checkpoint(root / "checkpoint", hidden=32, intermediate=64)
    request = BuildRequest(
        model=str(checkpoint),
        target=TARGETS["orin-jp62"],
        recipe=load_recipe("float16"),
        out=root / "bundle",
        max_context=CONTEXT,
    )
    return checkpoint, build(request).path


def opened(bundle: Bundle, purpose: str, **options: Any) -> Any:
    config = ModelConfig.from_dict(dict(bundle.manifest.model["config"]))
    options = {"threads": 1, "exact": True, **options}
    return open_session(bundle, bundle.graph(purpose), config, "cpu", options)


@pytest.fixture
def session(folders: tuple[Path, Path]) -> Iterator[AppendingCacheSession]:
    opening = opened(open_bundle(folders[1]), "target", max_sequences=3, prefill_chunk=16)
    assert isinstance(opening, AppendingCacheSession)
    yield opening
    opening.close()


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return random_tokens(CONTEXT)


@pytest.fixture(scope="module")
def expected(folders: tuple[Path, Path], tokens: list[int]) -> Array:
    return reference_logits(folders[0], tokens)


def close(actual: Array, wanted: Array) -> None:
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=6e-3 * float(np.abs(wanted).max()))


def test_prefill_and_decode_equal_the_reference(
    session: AppendingCacheSession, tokens: list[int], expected: Array
) -> None:
    """Chunks, single tokens and the context's last token give the reference's logits."""
    close(session.prefill(0, tokens[:70], all_logits=True), expected[:70])
    for position in range(70, CONTEXT):
        close(session.decode([0], [tokens[position]], [position])[0], expected[position])
    with pytest.raises(ContextOverflowError, match=f"context of {CONTEXT}"):
        session.decode([0], [1], [CONTEXT])


def test_slots_and_going_back(
    session: AppendingCacheSession, tokens: list[int], expected: Array
) -> None:
    """Slots keep their own rows, and an earlier position overwrites what followed."""
    close(session.prefill(0, tokens[:40]), expected[39])
    session.prefill(2, [7, 7, 7, 7, 7, 7])
    session.prefill(2, tokens[:20])
    session.prefill(2, [9, 9], start=10)
    close(session.prefill(2, tokens[10:21], start=10), expected[20])
    close(session.decode([2, 0], [tokens[21], tokens[40]], [21, 40]), expected[[21, 40]])
    session.release(2)
    with pytest.raises(EngineError, match="slot 2 holds 0 tokens, not 22"):
        session.decode([2], [1], [22])


def test_optimizations_change_nothing_that_counts(
    folders: tuple[Path, Path], tokens: list[int], expected: Array
) -> None:
    """The graph as written and as ONNX Runtime rearranges it give the same answers."""
    fast = opened(open_bundle(folders[1]), "target", exact=False)
    close(fast.prefill(0, tokens, all_logits=True), expected)


@pytest.mark.parametrize(
    ("purpose", "advice"), [("target", "--target cpu"), ("host", "checkpoint")]
)
def test_advice_on_nan_is_what_the_graph_s_type_leaves(
    folders: tuple[Path, Path], tokens: list[int], purpose: str, advice: str
) -> None:
    """Only a float16 graph's NaN is answered with --target cpu, which computes in float32."""
    opening = opened(open_bundle(folders[1]), purpose)
    opening.prefill(0, tokens[:10])
    own = purpose == "target"
    cache = opening._caches[0][0] if own else opening._cache._buffers[0].array
    cache.fill(np.nan)
    with pytest.raises(EngineError, match="NaN or infinite logits") as caught:
        opening.decode([0], [tokens[10]], [10])
    assert advice in caught.value.remedy
    assert "8-bit" not in caught.value.remedy


def test_nan_is_reported_and_cleaned_up(
    session: AppendingCacheSession, tokens: list[int], expected: Array
) -> None:
    """A NaN in a slot's cache is reported, the slot is emptied, the others live on."""
    session.prefill(0, tokens[:10])
    session.prefill(1, tokens[:10])
    session._caches[1][0][0, 0, 3, 0] = np.nan
    with pytest.raises(EngineError, match="NaN or infinite logits in slot 1"):
        session.decode([0, 1], [tokens[10], tokens[10]], [10, 10])
    close(session.decode([0], [tokens[11]], [11])[0], expected[11])
    close(session.prefill(1, tokens[:12]), expected[11])


@pytest.mark.parametrize(
    ("slots", "tokens", "positions", "message"),
    [
        ([9], [0], [0], "no slot 9"),
        ([0], [0], [5], "holds 0 tokens"),
        ([1, 1], [0, 0], [0, 0], "repeat"),
        ([], [], [], "are empty"),
        ([0], [4096], [0], "token 4096 is not in the vocabulary"),
    ],
)
def test_misuse_is_refused(
    session: AppendingCacheSession,
    slots: list[int],
    tokens: list[int],
    positions: list[int],
    message: str,
) -> None:
    """Unknown slots, gaps, repeated slots and foreign tokens are errors that name them."""
    with pytest.raises(EngineError, match=message):
        session.decode(slots, tokens, positions)
    with pytest.raises(EngineError, match="no tokens"):
        session.prefill(0, [])


def test_another_dialect_is_refused(folders: tuple[Path, Path]) -> None:
    """A standard graph, which returns whole caches, is not taken for a trt103 one."""
    bundle = open_bundle(folders[1])
    config = ModelConfig.from_dict(dict(bundle.manifest.model["config"]))
    with pytest.raises(EngineError, match="is not of the trt103 dialect"):
        AppendingCacheSession(bundle.path / bundle.graph("host").path, config=config, max_context=9)
