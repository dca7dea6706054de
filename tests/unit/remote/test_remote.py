"""Documents from afar: proven, new, in time and allowed, or refused and nothing disturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from remote_cases import (
    COOL,
    DAY_MS,
    EU,
    HOT,
    KEY,
    NOW_MS,
    ORIN,
    SECOND,
    STRANGER,
    Device1,
    answer,
    closed_here,
    command,
    configuration,
    outcomes,
    raised_above,
    signed,
    trusting,
)

from device.remote.effective import alarm_table, merge
from device.remote.state import StateFile
from edgekit.contracts.envelope import Envelope
from edgekit.contracts.signed import Audience, Document
from edgekit.errors import StorageError


@pytest.fixture
def device(tmp_path: Path) -> Device1:
    return Device1(tmp_path / "remote.json")


def test_a_configuration_holds_and_is_remembered(device: Device1) -> None:
    """What is signed and allowed holds at once, and after a restart without any network."""
    remote = device.start()
    assert remote.take(answer(signed(configuration(HOT)))) == []
    assert outcomes(remote) == {"applied": 1}
    assert raised_above(device) == 95.0
    device.start()
    assert len(device.agent.held) == 3
    assert device.agent.held[-1] == device.agent.held[-2]


def test_the_same_document_again_changes_nothing(device: Device1) -> None:
    """An answer that comes twice is no replay: it is known, and nothing is written."""
    remote = device.start()
    both = answer(signed(configuration(HOT)), signed(command("live", {"minutes": 1})))
    assert [one.command for one in remote.take(both)] == ["live"]
    before = device.path.stat().st_mtime_ns
    assert remote.take(both) == []
    assert device.start().take(both) == []
    assert device.path.stat().st_mtime_ns == before
    assert outcomes(remote) == {"applied": 2, "unchanged": 2}


REFUSED: dict[str, tuple[str, Document]] = {
    "of another tenant": ("tenant", configuration(HOT, tenant="evil")),
    "for another device": ("audience", configuration(HOT, audience=Audience("device", "x"))),
    "for another cohort": ("audience", configuration(HOT, audience=Audience("cohort", "us"))),
    "a command for another device": ("audience", command("live", {}, device="x")),
    "a command of another tenant": ("tenant", command("live", {}, tenant="evil")),
    "expired": ("expired", configuration(HOT, expires_ms=NOW_MS)),
    "an expired command": ("expired", command("live", {}, expires_ms=NOW_MS, issued_ms=1)),
    "signed in the future": (
        "early",
        configuration(HOT, issued_ms=NOW_MS + DAY_MS, expires_ms=NOW_MS + 2 * DAY_MS),
    ),
    "of an unknown setting": ("setting", configuration({**HOT, "serve": {"port": 80}})),
    "that would loosen": ("setting", configuration({**HOT, "log": {"prompts": True}})),
    "of a rule that cannot work": ("setting", configuration({"alarms": {"disk": {"hold_s": 60}}})),
    "of batches within a sample": ("setting", configuration({"telemetry": {"batch_s": 10}})),
    "of samples beyond a batch": ("setting", configuration({"telemetry": {"sample_s": 601}})),
    "of a rule on nothing": (
        "setting",
        configuration({"alarms": {"x": {"series": "x", "raise_above": 2, "clear_below": 1}}}),
    ),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_not_for_now_and_us_is_refused(device: Device1, case: str) -> None:
    """It is counted under its reason, and neither file nor configuration changes."""
    device.local = type(device.local)(device.local.leaks, sample_s=11.0)
    remote = device.start()
    remote.take(answer(signed(configuration(COOL))))
    before, held = device.path.read_bytes(), list(device.agent.held)
    reason, document = REFUSED[case]
    document = type(document)(**{**fields_of(document), "counter": 9})
    assert remote.take(answer(signed(document))) == []
    assert outcomes(remote) == {"applied": 1, reason: 1}
    assert remote.details()["remote_refused"].startswith(f"{reason}: ")  # type: ignore[union-attr]
    assert (device.path.read_bytes(), device.agent.held) == (before, held)


def fields_of(document: Document) -> dict[str, Any]:
    return {name: getattr(document, name) for name in (*document.FIELDS, "unknown")}


def test_only_trusted_keys_count(device: Device1) -> None:
    """Unsigned, of a stranger, of too few, or signed for other bytes: refused."""
    device.keys = trusting(KEY, SECOND, threshold=2)
    remote = device.start()
    good = signed(configuration(HOT), KEY, SECOND)
    other = signed(configuration(COOL), KEY, SECOND)
    bad = [
        Envelope(good.payload_type, good.payload),
        signed(configuration(HOT), STRANGER),
        signed(configuration(HOT), KEY),
        Envelope(good.payload_type, good.payload, other.signatures),
        Envelope("application/json", good.payload, good.signatures),
    ]
    remote.take(answer(*bad))
    assert outcomes(remote) == {"signature": 5}
    remote.take(answer(good))
    assert outcomes(remote) == {"signature": 5, "applied": 1}


def test_an_older_document_never_comes_back(device: Device1) -> None:
    """A counter at or below the last one is refused, after a restart as well."""
    remote = device.start()
    old, new = signed(configuration(HOT, 3)), signed(configuration(COOL, 4))
    remote.take(answer(old, new, old))
    remote.take(answer(signed(configuration(HOT, 4))))
    again = device.start()
    again.take(answer(old))
    assert raised_above(device) == 88.0
    assert (outcomes(remote), outcomes(again)) == ({"applied": 2, "replayed": 2}, {"replayed": 1})


def test_scopes_have_counters_of_their_own(device: Device1) -> None:
    """A cohort's counter says nothing of the device's, nor one of commands of either."""
    remote = device.start()
    cohort = configuration({"telemetry": {"sample_s": 60}}, 100, audience=EU)
    commands = remote.take(
        answer(
            signed(cohort), signed(configuration(HOT, 1)), signed(command("live", {"minutes": 1}))
        )
    )
    assert outcomes(remote) == {"applied": 3}
    assert [one.id for one in commands] == ["c-1"]
    assert device.agent.held[-1].sample_s == 60


def test_the_devices_own_document_counts_more_than_its_cohorts(device: Device1) -> None:
    """Whatever order they come in, key by key."""
    remote = device.start()
    own = configuration({"telemetry": {"sample_s": 20}})
    cohort = configuration({"telemetry": {"sample_s": 60, "batch_s": 900}}, audience=EU)
    remote.take(answer(signed(own), signed(cohort)))
    assert (device.agent.held[-1].sample_s, device.agent.held[-1].batch_s) == (20, 900)


def test_a_device_that_leaves_a_cohort_leaves_its_settings(device: Device1) -> None:
    """The owner says what cohorts there are; a document for another is not held on to."""
    device.start().take(answer(signed(configuration(HOT, audience=EU))))
    assert raised_above(device) == 95.0
    device.cohorts = ()
    remote = device.start()
    assert raised_above(device) == 90.0
    assert remote.effective.leaks == device.local.leaks


def test_without_a_clock_expiry_is_held_to_what_was_signed(device: Device1) -> None:
    """A device that boots in 1970 still knows that what expired before its last document has."""
    device.start().take(answer(signed(configuration(HOT, 1, issued_ms=NOW_MS))))
    device.clock.now_ms, device.clock.synced = 0, False
    remote = device.start()
    expired = configuration(COOL, 2, issued_ms=NOW_MS - DAY_MS, expires_ms=NOW_MS - 1)
    remote.take(answer(signed(expired)))
    assert outcomes(remote) == {"expired": 1}
    device.clock.ticks_ms += 2 * DAY_MS
    remote.take(answer(signed(configuration(COOL, 2, expires_ms=NOW_MS + DAY_MS))))
    assert outcomes(remote) == {"expired": 2}
    remote.take(answer(signed(configuration(COOL, 2, expires_ms=NOW_MS + 3 * DAY_MS))))
    assert outcomes(remote) == {"expired": 2, "applied": 1}


def test_a_wrong_time_server_poisons_nothing(device: Device1) -> None:
    """A clock that was years ahead for a while leaves no floor that nothing gets over."""
    device.clock.now_ms = NOW_MS + 5000 * DAY_MS
    remote = device.start()
    remote.take(answer(signed(configuration(HOT, 1))))
    assert outcomes(remote) == {"expired": 1}
    long = configuration(HOT, 1, expires_ms=NOW_MS + 9000 * DAY_MS)
    remote.take(answer(signed(long)))
    device.clock.now_ms = NOW_MS
    again = device.start()
    again.take(answer(signed(configuration(COOL, 2))))
    assert outcomes(again) == {"applied": 1}


def test_what_holds_outlasts_its_expiry(device: Device1) -> None:
    """A device that is cut off for years keeps what it has: expiry ends only taking up."""
    device.start().take(answer(signed(configuration(HOT))))
    device.clock.now_ms += 1000 * DAY_MS
    device.start()
    assert raised_above(device) == 95.0


def test_a_command_is_done_once_at_most(device: Device1) -> None:
    """It is remembered before it is done, so that a crash in it repeats nothing."""
    one, two = command("live", {"minutes": 1}, 1), command("live", {"minutes": 2}, 2)
    remote = device.start()
    assert [each.counter for each in remote.take(answer(signed(two)))] == [2]
    assert device.start().take(answer(signed(two))) == []
    again = device.start()
    assert again.take(answer(signed(one))) == []
    assert outcomes(again) == {"replayed": 1}


def test_a_full_disk_changes_nothing(device: Device1, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be remembered does not hold, and a command that cannot be is not done."""
    remote = device.start()

    def full(*_: Any) -> None:
        raise StorageError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(StateFile, "save", full)
        both = answer(signed(configuration(HOT)), signed(command("live", {"minutes": 1})))
        assert remote.take(both) == []
    assert outcomes(remote) == {"failed": 2}
    assert len(device.agent.held) == 1
    assert len(remote.take(both)) == 1
    assert raised_above(device) == 95.0


def test_what_cannot_be_made_to_hold_is_taken_back(device: Device1) -> None:
    """The agent's parts go back to what they had, and so does the file."""
    remote = device.start()
    remote.take(answer(signed(configuration(COOL, 1))))
    device.agent.fails = StorageError("no")
    remote.take(answer(signed(configuration(HOT, 2))))
    assert outcomes(remote) == {"applied": 1, "failed": 1}
    assert raised_above(device) == 88.0
    device.start()
    assert raised_above(device) == 88.0


def test_the_owners_table_of_alarms_is_changed_by_name(device: Device1) -> None:
    """A rule of the owner's keeps what a document does not say; false switches one off."""
    device.local = type(device.local)(device.local.leaks, {"disk": {"raise_above": 0.95}})
    remote = device.start()
    settings = {"alarms": {"disk": {"clear_below": 0.7}, "throttling": False}}
    remote.take(answer(signed(configuration(settings))))
    rules = device.agent.held[-1].rules
    assert (rules["disk"].raise_above, rules["disk"].clear_below) == (0.95, 0.7)
    assert "throttling" not in rules


def test_rules_are_the_table_that_makes_them(device: Device1) -> None:
    """The owner's rules, written as a table again, make the same rules."""
    rules = merge(device.local, [{"alarms": {"disk": False, **HOT["alarms"]}}]).rules
    table = alarm_table(rules)
    assert merge(type(device.local)(alarms=table), []).rules == rules
    assert table["disk"] is False


def test_a_rule_that_no_longer_works_beside_the_owners_is_told(device: Device1) -> None:
    """The owner changed a threshold since: the document is told, and nothing leaves meanwhile."""
    device.start().take(answer(signed(configuration({"alarms": {"disk": {"clear_below": 0.7}}}))))
    device.local = type(device.local)(
        device.local.leaks, {"disk": {"raise_above": 0.6, "clear_below": 0.5}}
    )
    remote = device.start()
    assert outcomes(remote) == {"setting": 1}
    assert remote.effective.rules["disk"].raise_above == 0.6
    assert remote.effective.leaks == closed_here(device)


def test_a_birth_tells_what_holds(device: Device1) -> None:
    """Who looks at the fleet sees which document each device has, by its digest."""
    remote = device.start()
    assert remote.details() == {}
    remote.take(answer(signed(configuration(HOT))))
    (row,) = remote.describe()
    assert remote.details() == {"remote_held": f"device:orin-1 {row['digest'][:12]}"}
    assert (row["audience"], row["counter"], row["proven"]) == ("device:orin-1", 1, True)
    assert ORIN.device in row["audience"]
