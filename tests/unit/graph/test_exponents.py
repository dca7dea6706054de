"""Powers of two for float16: small where nothing overflows, enough where it would."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import UnsupportedModelError
from edgekit.graph.exponents import Exponents, choose_exponents, require_float16
from edgekit.graph.float16_range import (
    COARSE_SCORE,
    HEADROOM,
    LARGEST_EXPONENT,
    SMALLEST_PEAK,
    AttentionRange,
    LayerMaxima,
    ModelRange,
    NormRange,
    coarse_score_warning,
    model_range,
    needed_exponent,
)
from edgekit.quant.packing import FLOAT16_MAX


def ranges(
    maxima: list[LayerMaxima], final_norm: NormRange | None = None, *, qk_norm: bool = False
) -> ModelRange:
    return model_range(maxima, final_norm or NormRange(8.0, 1.0), 128, qk_norm=qk_norm)


def choose(maxima: list[LayerMaxima], *, qk_norm: bool = False) -> Exponents:
    return choose_exponents(1e5, maxima, ranges(maxima, qk_norm=qk_norm), qk_norm=qk_norm)


@pytest.mark.parametrize("amax", [0.0, 1.0, 100.0, 4000.0])
def test_small_activations_need_no_exponent(amax: float) -> None:
    """A model that stays far below float16's range is left as it is."""
    assert needed_exponent(amax) == 0


@pytest.mark.parametrize("amax", [5e3, 1e5, 3.7e6])
def test_exponent_is_the_smallest_that_keeps_the_headroom(amax: float) -> None:
    """The chosen power keeps the headroom and no smaller one does."""
    exponent = needed_exponent(amax)
    assert amax * HEADROOM * 2.0**-exponent <= FLOAT16_MAX
    assert amax * HEADROOM * 2.0 ** -(exponent - 1) > FLOAT16_MAX


def test_exponents_of_weights_cancel() -> None:
    """Along every path the exponents add up to the residual's, so the function is unchanged."""
    chosen = choose([LayerMaxima(mlp_product=1e6, value=1e4), LayerMaxima()])
    assert (chosen.mlp, chosen.value) == ((8, 0), (2, 0))
    residual = chosen.of_weight("model.embed_tokens")
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        attention = [chosen.of_weight(f"{prefix}.self_attn.{m}_proj") for m in "vo"]
        mlp = [chosen.of_weight(f"{prefix}.mlp.{m}_proj") for m in ("gate", "up", "down")]
        assert sum(attention) == residual
        assert sum(mlp) == residual
    assert chosen.of_weight("lm_head") == 0


def test_biases_follow_their_outputs() -> None:
    """A bias added to the residual shrinks with it, one of v with the values."""
    chosen = Exponents(residual=3, mlp=(2,), value=(1,))
    assert chosen.of_bias("model.layers.0.self_attn.o_proj") == -3
    assert chosen.of_bias("model.layers.0.self_attn.v_proj") == -1
    assert chosen.of_bias("model.layers.0.mlp.up_proj") == -2
    assert chosen.of_bias("model.layers.0.self_attn.q_proj") == 0


def test_up_alone_counts() -> None:
    """A gate of zero hides a huge up in their product, not in float16."""
    chosen = choose([LayerMaxima(up=3e5, mlp_product=0.0)])
    assert chosen.mlp == (needed_exponent(3e5),)


@pytest.mark.parametrize(
    ("query", "key", "score"),
    [(1, 1, 1), (100, 400, 3500), (0.1, 5e5, 4000), (2e5, 1e-3, 1), (3e3, 3e3, 3e4)],
)
def test_queries_and_keys_keep_the_headroom(query: float, key: float, score: float) -> None:
    """Queries, keys and their product fit with headroom, and no smaller exponents do that."""
    held = AttentionRange(query, key, score, 128)
    pair = held.exponents()
    assert pair is not None
    q, k = query * 2.0 ** -pair[0], key * 2.0 ** -pair[1]
    assert max(q, k, score * 128**0.5 * 2.0 ** -sum(pair)) * HEADROOM <= FLOAT16_MAX
    smaller = range(-abs(pair[0]) - abs(pair[1]) + 1, abs(pair[0]) + abs(pair[1]))
    for a in smaller:
        for b in smaller:
            assert abs(a) + abs(b) >= abs(pair[0]) + abs(pair[1]) or not held.fits(a, b)


def test_exponents_are_searched_once_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choosing and refusing search each layer once, and one that fits as it is in one step."""
    tried: list[tuple[int, int]] = []
    fits = AttentionRange.fits

    def count(held: AttentionRange, query: int, key: int) -> bool:
        tried.append((query, key))
        return fits(held, query, key)

    monkeypatch.setattr(AttentionRange, "fits", count)
    maxima = [LayerMaxima(query=1, key=1), LayerMaxima(query=5000, key=1)]
    held = ranges(maxima)
    chosen = choose_exponents(1.0, maxima, held, qk_norm=False)
    require_float16(maxima, held, chosen, qk_norm=False)
    assert (chosen.query, chosen.key) == ((0, 1), (0, 0))
    second = [(0, 0), (-1, 0), (0, -1), (0, 1), (1, 0)]
    assert tried == [(0, 0), *second, *zip(chosen.query, chosen.key, strict=True)]


@pytest.mark.parametrize(
    ("output", "weight", "exponent"),
    [
        (0.0, 0.0, 0),
        (8.0, 1.0, 0),
        (4000.0, 500.0, 0),
        (1e6, 1e5, 8),
        (1.0, 2e5, 2),
        (2e-5, 1e-5, -6),
    ],
)
def test_norms_have_the_smallest_exponent_that_fits(
    output: float, weight: float, exponent: int
) -> None:
    """Neither output nor weight overflows, nor is the output subnormal, with as little as that."""
    norm = NormRange(output, weight)
    assert norm.exponent() == exponent
    assert output * HEADROOM * 2.0**-exponent <= FLOAT16_MAX
    assert weight * 2.0**-exponent <= FLOAT16_MAX
    assert output == 0 or output * 2.0**-exponent >= SMALLEST_PEAK
    assert not any(norm.fits(e) for e in range(1 - abs(exponent), abs(exponent)))


@pytest.mark.parametrize("norm", [NormRange(1e9, 1e8), NormRange(1e-9, 1e-9), NormRange(1e-3, 1e6)])
def test_norms_that_nothing_holds_have_no_exponent(norm: NormRange) -> None:
    """Too large, too small, or a weight too large for so small an output."""
    assert norm.exponent() is None
    assert not any(norm.fits(e) for e in range(-LARGEST_EXPONENT, LARGEST_EXPONENT + 1))


def test_linears_undo_the_exponent_of_the_norm_they_read() -> None:
    """A norm's power of two and that of each linear after it cancel; biases stay as they are."""
    loud = LayerMaxima(
        input_norm=1e6, input_norm_weight=1e5, post_attention_norm=1e-5, value=1e5, up=1e5
    )
    held = ranges([loud], NormRange(1e5, 1e4))
    chosen = choose_exponents(1.0, [loud], held, qk_norm=False)
    assert (chosen.input_norm, chosen.post_attention_norm, chosen.final_norm) == ((8,), (-7,), 5)
    layer, value, up = "model.layers.0", needed_exponent(1e5), needed_exponent(1e5)
    attention = chosen.of_tensor(f"{layer}.input_layernorm.weight")
    for kind, own in (("q", 0), ("k", 0), ("v", -value)):
        name = f"{layer}.self_attn.{kind}_proj"
        assert attention + chosen.of_weight(name) == chosen.of_bias(name) == own
    mlp = chosen.of_tensor(f"{layer}.post_attention_layernorm.weight")
    for kind, own in (("gate", 0), ("up", -up)):
        name = f"{layer}.mlp.{kind}_proj"
        assert mlp + chosen.of_weight(name) == chosen.of_bias(name) == own
    assert chosen.of_weight("model.norm") + chosen.of_weight("lm_head") == 0
    assert chosen.of_weight("lm_head") == 5
    assert chosen.of_weight("model.embed_tokens") == 0
    assert chosen.of_norm_input(f"{layer}.input_layernorm") == 0


def test_the_scale_undoes_what_queries_and_keys_were_multiplied_by() -> None:
    """The attention's scale takes back the projections' powers of two, or the norms'."""
    chosen = Exponents(query=(3,), key=(-1,), query_norm=(4,), key_norm=(1,), input_norm=(6,))
    layer = "model.layers.0.self_attn"
    for qk_norm, suffix in ((False, "proj.bias"), (True, "norm.weight")):
        folded = sum(chosen.of_tensor(f"{layer}.{kind}_{suffix}") for kind in "qk")
        assert folded + chosen.of_score(0, qk_norm=qk_norm) == 0
    assert chosen.of_weight(f"{layer}.q_proj") == 3
    assert chosen.of_tensor(f"{layer}.q_proj.bias") == -3
    assert chosen.of_tensor(f"{layer}.k_norm.weight") == -1
    assert chosen.of_norm_input(f"{layer}.q_norm") == -3
    assert chosen.of_tensor("model.norm.weight") == 0


def test_projections_that_are_normed_have_exponents_of_their_own() -> None:
    """With q_norm, the projection's exponent follows its output, the norm's what is attended."""
    loud = LayerMaxima(query_projection=1e6, query=100.0, key=100.0, attention_score=800.0)
    chosen = choose([loud], qk_norm=True)
    assert chosen.query == (needed_exponent(1e6),)
    assert chosen.query_norm[0] + chosen.key_norm[0] == needed_exponent(800 * 128**0.5)


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (LayerMaxima(attention_score=4e4), "layer 1 has attention scores of 4e[+]04"),
        (LayerMaxima(gate=1e5), "layer 1 has gate of 1e[+]05"),
        (LayerMaxima(query=1e9, key=1e9), "layer 1 has queries of 1e[+]09 and keys of 1e[+]09"),
    ],
)
def test_what_nothing_holds_is_refused(seen: LayerMaxima, message: str) -> None:
    """Scores and gates cannot be scaled; the error names layer and value."""
    maxima = [LayerMaxima(), seen]
    with pytest.raises(UnsupportedModelError, match=message):
        require_float16(maxima, ranges(maxima), choose(maxima), qk_norm=False)


@pytest.mark.parametrize("name", ["model.layers.1.input_layernorm", "model.norm"])
def test_norms_that_nothing_holds_are_refused(name: str) -> None:
    """The error names the norm, and what it makes."""
    layer = LayerMaxima(input_norm=8, input_norm_weight=1, post_attention_norm=8)
    bad = NormRange(1e-3, 1e6)
    worse = LayerMaxima(input_norm=1e-3, input_norm_weight=1e6, post_attention_norm=8)
    maxima = [layer, worse if "layers" in name else layer]
    held = ranges(maxima, bad if name == "model.norm" else None)
    chosen = choose_exponents(1.0, maxima, held, qk_norm=False)
    with pytest.raises(UnsupportedModelError, match=f"{name} has outputs up to 0.001 and weights"):
        require_float16(maxima, held, chosen, qk_norm=False)


def test_coarse_scores_are_warned_of() -> None:
    """The warning names the layer that attends to the largest scores, and float16's steps there."""
    # Other scores of a query may be large: what is not attended to may be coarse.
    fine = LayerMaxima(attention_score=9000.0, attended_score=COARSE_SCORE - 1)
    assert coarse_score_warning([]) is None
    assert coarse_score_warning([fine, fine]) is None
    warning = coarse_score_warning([fine, LayerMaxima(attended_score=3000.0), fine])
    assert warning is not None
    assert warning.startswith(
        "layer 1 attends to scores up to 3000, which float16 holds in steps of 2 "
    )
    assert "(1 of 3 layers exceed 512)" in warning
    step = np.spacing(np.float16(COARSE_SCORE))
    assert step == 0.5


def test_json_form_of_old_manifests() -> None:
    """Fields an older manifest lacks are zero; a round trip keeps the others."""
    old = Exponents.from_dict({"residual": 2, "mlp": [1], "value": [0]})
    assert old == Exponents(residual=2, mlp=(1,), value=(0,))
    assert old.of_score(0, qk_norm=False) == 0
    chosen = Exponents(residual=2, query=(1,), key=(-2,), input_norm=(-3,), final_norm=4)
    assert Exponents.from_dict(chosen.to_dict()) == chosen
