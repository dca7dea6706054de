"""A remote configuration only takes away, whatever it is and whatever came before it."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_cases import FACTS

from device.routing.config import RoutingConfig
from device.routing.policy import CLOUD_REASONS, Policy
from device.routing.remote import SHUT, read_remote, tightened
from device.routing.rules import decide
from edgekit.errors import ConfigError

REASONS = st.lists(st.sampled_from(sorted(CLOUD_REASONS)), unique=True)
CLIENTS = st.lists(st.sampled_from(["a", "b", "10.0.0.1", "::1"]), unique=True)
OWN = st.builds(
    RoutingConfig,
    base_url=st.just("https://api.example.com/v1"),
    model=st.just("big"),
    state_file=st.just("budget.json"),
    daily_bytes=st.integers(0, 1000),
    enabled=st.booleans(),
    reasons=REASONS.map(tuple),
    local_only=st.booleans(),
    local_clients=CLIENTS.map(tuple),
)
TABLE = st.fixed_dictionaries(
    {},
    optional={
        "cloud": st.booleans(),
        "reasons": REASONS,
        "daily_bytes": st.integers(0, 2000),
        "local_only": st.booleans(),
        "local_clients": CLIENTS,
    },
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
ANYTHING = st.one_of(SCALARS, st.lists(SCALARS, max_size=2), st.just({"cloud": True}))
REMOTE = st.one_of(
    st.fixed_dictionaries({}, optional={"routing": TABLE}),
    st.fixed_dictionaries({"routing": st.dictionaries(st.sampled_from(["cloud", "x"]), ANYTHING)}),
    st.dictionaries(st.sampled_from(["routing", "serve"]), ANYTHING),
)


@given(st.one_of(st.none(), OWN), st.lists(REMOTE, min_size=1, max_size=4), FACTS)
def test_no_remote_configuration_loosens(
    own: RoutingConfig | None, remotes: list[dict[str, Any]], seen: Any
) -> None:
    """Understood or not, one or many: never more than the owner allows, no request that stayed."""
    allowed = SHUT if own is None else own.policy
    effective = allowed
    for remote in remotes:
        with contextlib.suppress(ConfigError):
            effective = tightened(own, read_remote(remote, "remote"))
        assert effective.allows_no_more_than(allowed)
        if decide(seen, allowed).route == "local":
            assert decide(seen, effective).route == "local"


@given(OWN, TABLE, TABLE)
def test_the_last_one_counts(own: RoutingConfig, first: Any, second: Any) -> None:
    """What an earlier one forbade and the later one does not is as the owner has it."""
    tightened(own, read_remote({"routing": first}, "remote"))
    policy = read_remote({"routing": second}, "remote")
    assert tightened(own, policy) == own.policy.tightened_by(policy)
    assert tightened(own, read_remote({}, "remote")) == own.policy


@given(FACTS)
def test_without_a_table_nothing_leaves(seen: Any) -> None:
    """Whatever a remote configuration says: the owner has allowed nothing."""
    assert decide(seen, tightened(None, Policy())).route == "local"


@pytest.mark.parametrize(
    ("remote", "said"),
    [
        ({"serve": {}}, "remote has an unknown key 'serve'"),
        ({"routing": 1}, "remote: routing is no table"),
        ({"routing": {"prompts": False}}, "of remote has an unknown key 'prompts'"),
        ({"routing": {"enabled": True}}, "unknown key 'enabled'"),
        ({"routing": {"cloud": "no"}}, "cloud must be of type bool"),
    ],
)
def test_what_is_not_understood_is_told(remote: dict[str, Any], said: str) -> None:
    """By table, key and value."""
    with pytest.raises(ConfigError, match=said):
        read_remote(remote, "remote")
