"""No document makes what leaks looser than the owner has it; nonsense changes nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from remote_cases import (
    KEY,
    Device1,
    answer,
    command,
    configuration,
    outcomes,
    signed,
    trusting,
)

from device.remote.effective import CLOSED, Leaks, Local, merge
from device.routing.policy import CLOUD_REASONS, Policy
from edgekit.contracts.signed import Audience
from edgekit.errors import EdgekitError

POLICIES = st.builds(
    Policy,
    st.booleans(),
    st.frozensets(st.sampled_from(sorted(CLOUD_REASONS))),
    st.integers(0, 100) | st.just(float("inf")),
    st.booleans(),
    st.frozensets(st.sampled_from(["camera", "door", "10.0.0.7"])),
)
LEAKS = st.builds(Leaks, POLICIES, st.booleans())
ROUTING = st.fixed_dictionaries(
    {},
    optional={
        "cloud": st.booleans(),
        "reasons": st.lists(st.sampled_from(sorted(CLOUD_REASONS)), unique=True),
        "daily_bytes": st.integers(0, 200),
        "local_only": st.booleans(),
        "local_clients": st.lists(st.sampled_from(["camera", "door", "desk"])),
    },
)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "routing": ROUTING,
        "log": st.fixed_dictionaries({}, optional={"prompts": st.just(False)}),
        "telemetry": st.fixed_dictionaries({}, optional={"sample_s": st.integers(5, 60)}),
    },
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**60) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)
NAMES = ["routing", "log", "telemetry", "alarms", "prompts", "cloud", "disk", "series", "x"]


@given(LEAKS, st.lists(SETTINGS, max_size=4))
def test_no_documents_loosen(leaks: Leaks, documents: list[dict[str, Any]]) -> None:
    """For all documents and every order: what holds allows no more than the owner does."""
    effective = merge(Local(leaks), documents)
    assert effective.leaks.allows_no_more_than(leaks)
    assert merge(Local(leaks), documents[::-1]).leaks == effective.leaks
    assert merge(Local(leaks), documents * 2).leaks == effective.leaks
    for settings in documents:
        assert effective.leaks.allows_no_more_than(merge(Local(leaks), [settings]).leaks)


@given(
    LEAKS,
    st.dictionaries(st.sampled_from(NAMES), JSON | st.dictionaries(st.sampled_from(NAMES), JSON)),
)
def test_no_json_at_all_loosens(leaks: Leaks, settings: dict[str, Any]) -> None:
    """Settings of any form are refused by an error of ours, or loosen nothing."""
    try:
        effective = merge(Local(leaks), [settings])
    except EdgekitError:
        return
    assert effective.leaks.allows_no_more_than(leaks)


@given(LEAKS, LEAKS, LEAKS)
def test_tightening_is_a_greatest_lower_bound(one: Leaks, two: Leaks, three: Leaks) -> None:
    """It allows what both allow, no less, in any order; nothing is below closed but closed."""
    both = one.tightened_by(two)
    assert both.allows_no_more_than(one)
    assert both.allows_no_more_than(two)
    assert both == two.tightened_by(one)
    assert both.tightened_by(three) == one.tightened_by(two.tightened_by(three))
    if three.allows_no_more_than(one) and three.allows_no_more_than(two):
        assert three.allows_no_more_than(both)
    assert one.tightened_by(CLOSED).allows_no_more_than(CLOSED)
    assert Leaks(Policy(), log_prompts=True).tightened_by(one) == one


def mutated(draw: random.Random, data: bytes) -> bytes:
    """Return bytes with something wrong: cut, changed, doubled, or put elsewhere."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(changed) or 1)
        kind = draw.randrange(5)
        if kind == 0:
            del changed[place:]
        elif kind == 1 and changed:
            changed[place % len(changed)] = draw.randrange(256)
        elif kind == 2:
            changed[place:place] = draw.randbytes(draw.randint(1, 9))
        elif kind == 3:
            end = place + draw.randint(1, 40)
            changed[place:place] = changed[place:end] * draw.randint(1, 3)
        else:
            del changed[place : place + draw.randint(1, 40)]
    return bytes(changed)


def test_ten_thousand_broken_answers_disturb_nothing(tmp_path: Path) -> None:
    """Cut, changed and doubled bytes of real answers: refused or known, never taken up."""
    draw = random.Random(20)
    device = Device1(tmp_path / "remote.json", keys=trusting(KEY))
    remote = device.start()
    held = signed(configuration({"routing": {"cloud": False}}, 5))
    remote.take(answer(held))
    before, effective = device.path.read_bytes(), list(device.agent.held)
    stranger = configuration({"telemetry": {"sample_s": 5}}, 9, tenant="other")
    seeds = [
        answer(held),
        answer(signed(configuration({"telemetry": {"sample_s": 5}}, 4))),
        answer(signed(stranger), signed(command("live", {"minutes": 3}, device="other"))),
        answer(signed(configuration({}, 3, audience=Audience("cohort", "us")))),
    ]
    for _ in range(10_000):
        assert remote.take(mutated(draw, draw.choice(seeds))) == []
    assert (device.path.read_bytes(), device.agent.held) == (before, effective)
    counts = outcomes(remote)
    assert counts["applied"] == 1
    assert {"malformed", "signature", "unchanged"} <= set(counts)
    assert sum(counts.values()) > 10_000
    assert device.start().effective == effective[-1]


@given(
    st.lists(
        st.tuples(st.sampled_from(["device:orin-1", "cohort:eu"]), st.integers(1, 6), SETTINGS),
        max_size=6,
    ),
    st.lists(st.integers(0, 5), max_size=10),
)
def test_any_order_of_signed_documents_keeps_the_promises(
    tmp_path_factory: Any, documents: list[tuple[str, int, dict[str, Any]]], order: list[int]
) -> None:
    """Counters only rise, the file says what holds, and nothing is looser than the owner's word."""
    device = Device1(tmp_path_factory.mktemp("device") / "remote.json")
    envelopes = [
        signed(configuration(settings, counter, audience=Audience(*scope.split(":"))))
        for scope, counter, settings in documents
    ]
    remote, last = device.start(), {"device:orin-1": 0, "cohort:eu": 0}
    for place in order:
        if place >= len(documents):
            continue
        remote.take(answer(envelopes[place]))
        counters = {row["audience"]: row["counter"] for row in remote.describe()}
        assert all(counters.get(name, 0) >= count for name, count in last.items())
        last |= counters
        assert remote.effective.leaks.allows_no_more_than(device.local.leaks)
        assert device.start().effective == remote.effective
