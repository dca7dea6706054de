"""What the rules look at, as tests state it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from device.routing.rules import Facts

FITS = Facts(
    pinned=False,
    client="a",
    names_tokens=False,
    prompt_tokens=10,
    context_tokens=100,
    wait_s=0.0,
    service_s=2.0,
    left_s=60.0,
    max_wait_s=math.inf,
    link=True,
    bytes_wanted=50,
    bytes_left=1000,
    circuit=True,
)
"""A request that the device answers at once."""

_SECONDS = st.one_of(st.floats(0, 100), st.just(math.inf))
FACTS = st.builds(
    Facts,
    pinned=st.booleans(),
    client=st.sampled_from(["a", "b", "c"]),
    names_tokens=st.booleans(),
    prompt_tokens=st.integers(1, 200),
    context_tokens=st.integers(1, 200),
    wait_s=_SECONDS,
    service_s=st.floats(0, 100),
    left_s=_SECONDS,
    max_wait_s=_SECONDS,
    link=st.booleans(),
    bytes_wanted=st.integers(0, 200),
    bytes_left=st.one_of(st.integers(0, 200), st.just(math.inf)),
    circuit=st.booleans(),
)


def facts(like: Facts = FITS, **changed: Any) -> Facts:
    return replace(like, **changed)
