"""Log probabilities are the model's, whatever is done to its logits before the draw."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.runtime.logprobs import token_logprob


@given(st.lists(st.integers(-40, 40), min_size=3, max_size=60), st.integers(0, 3), st.data())
def test_against_a_plain_softmax(values: list[int], count: int, data: st.DataObject) -> None:
    """The chosen one's, and the likeliest, lower ids first among equals."""
    logits = np.array(values, np.float32)
    token = data.draw(st.integers(0, len(values) - 1))
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact - exact.max()).sum()) + exact.max()
    told = token_logprob(logits, token, count)
    assert told.logprob == pytest.approx(exact[token], abs=1e-5)
    order = sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]
    assert [index for index, _ in told.top] == order
    assert [logprob for _, logprob in told.top] == pytest.approx(exact[order].tolist(), abs=1e-5)
