"""Powers of two for float16: small where nothing overflows, enough where it would."""

from __future__ import annotations

import pytest

from edgekit.graph.exponents import (
    FLOAT16_MAX,
    HEADROOM,
    Exponents,
    choose_exponents,
    needed_exponent,
)


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
    chosen = choose_exponents(1e5, [1e6, 1.0], [1e4, 1.0])
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
