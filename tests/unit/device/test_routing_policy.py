"""A remote policy takes away, and adds nothing, whatever it says."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_cases import FACTS, facts

from device.routing.policy import CLOUD_REASONS, Policy, read_policy
from device.routing.rules import decide
from edgekit.errors import ConfigError

POLICIES = st.builds(
    Policy,
    st.booleans(),
    st.frozensets(st.sampled_from(sorted(CLOUD_REASONS))),
    st.one_of(st.just(math.inf), st.integers(0, 1000)),
    st.booleans(),
    st.frozensets(st.sampled_from(["a", "b", "c"])),
)


@given(POLICIES, POLICIES)
def test_tightened_is_never_looser(own: Policy, remote: Policy) -> None:
    """Not than the owner's, nor than the remote one."""
    both = own.tightened_by(remote)
    assert both.allows_no_more_than(own)
    assert both.allows_no_more_than(remote)


@given(POLICIES, POLICIES, POLICIES)
def test_tightened_is_no_tighter_than_both_say(own: Policy, remote: Policy, other: Policy) -> None:
    """What is at most as loose as either is at most as loose as both; order and number are one."""
    both = own.tightened_by(remote)
    if other.allows_no_more_than(own) and other.allows_no_more_than(remote):
        assert other.allows_no_more_than(both)
    assert both == remote.tightened_by(own) == both.tightened_by(remote)
    assert both.tightened_by(other) == own.tightened_by(remote.tightened_by(other))
    assert own.tightened_by(Policy()) == own


@given(FACTS, POLICIES, POLICIES)
def test_what_stays_under_the_owners_policy_stays(seen: Any, own: Policy, remote: Policy) -> None:
    """No remote policy sends a request away that the owner's keeps."""
    if decide(seen, own).route == "local":
        assert decide(seen, own.tightened_by(remote)).route == "local"


@given(FACTS, POLICIES)
def test_a_pinned_request_stays(seen: Any, policy: Policy) -> None:
    """Whatever else is true of it."""
    pinned = facts(seen, pinned=True)
    assert decide(pinned, policy).header == "local; reason=privacy"
    named = Policy(local_clients=frozenset({seen.client}))
    assert decide(seen, policy.tightened_by(named)).header == "local; reason=privacy"


def test_a_remote_policy_is_read() -> None:
    """What it leaves out it does not touch."""
    assert read_policy({}, "policy") == Policy()
    table = {"cloud": False, "reasons": ["queue"], "daily_bytes": 5, "local_clients": ["a"]}
    assert read_policy(table, "policy") == Policy(
        cloud=False,
        reasons=frozenset({"queue"}),
        daily_bytes=5,
        local_clients=frozenset({"a"}),
    )


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"cluod": False}, "unknown key 'cluod'"),
        ({"cloud": 0}, "must be of type bool"),
        ({"daily_bytes": -1}, "must be 0 to"),
        ({"daily_bytes": True}, "must be of type int"),
        ({"reasons": ["whim"]}, "reasons has 'whim'"),
        ({"reasons": "queue"}, "array of strings"),
    ],
)
def test_what_is_not_understood_is_refused_whole(table: dict[str, Any], said: str) -> None:
    """It may have forbidden something."""
    with pytest.raises(ConfigError, match=said):
        read_policy(table, "policy")


def test_a_limit_that_is_no_number_is_none() -> None:
    """NaN compares as false with everything: taken for a limit it would be none."""
    for wrong in (math.nan, -1):
        with pytest.raises(ConfigError, match="daily_bytes"):
            Policy(daily_bytes=wrong)


def test_an_address_is_pinned_however_it_is_written() -> None:
    """IPv6 has many forms of one address; requests come with the shortest."""
    policy = Policy(local_clients=frozenset({"2001:DB8:0::0:1", " 10.0.0.7"}))
    for client in ("2001:db8::1", "10.0.0.7"):
        seen = facts(client=client, prompt_tokens=200)
        assert decide(seen, policy).header == "local; reason=privacy"
    assert decide(facts(client="10.0.0.8", prompt_tokens=200), policy).route == "cloud"
