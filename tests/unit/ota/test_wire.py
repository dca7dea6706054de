"""The body of a remote write, read by protobuf's own reader."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from write_request import read_request

from ota.metrics.wire import Encoder, encode_labels, request_body

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
points = st.lists(
    st.tuples(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)), max_size=40
)


@given(st.lists(st.tuples(st.dictionaries(texts, texts, max_size=6), points), max_size=5))
def test_protobuf_reads_what_was_written(
    series: list[tuple[dict[str, str], list[tuple[int, float]]]],
) -> None:
    """Any labels, times and values come back from another reader as they were."""
    encoder = Encoder()
    body = request_body([encoder.series(encode_labels(labels), at) for labels, at in series])
    assert read_request(body) == series


def test_labels_are_in_order() -> None:
    """Receivers may refuse labels that are not sorted, and empty ones."""
    labels = {"tenant": "acme", "device": "orin-1", "zone": "", "__name__": "edgekit_device_x"}
    data = encode_labels(labels)
    order = [data.index(name) for name in (b"__name__", b"device", b"tenant")]
    assert order == sorted(order)
    assert b"zone" not in data


@pytest.mark.parametrize("count", [1, 60])
def test_a_point_takes_sixteen_bytes(count: int) -> None:
    """A double, a time of these years, and their tags: 18 bytes with the sample's own."""
    encoder = Encoder()
    empty = len(encoder.series(b"", []))
    at = [(1_784_970_508_000 + 10_000 * n, 0.5) for n in range(count)]
    assert len(encoder.series(b"", at)) - empty - (count > 6) == 18 * count
