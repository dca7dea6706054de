"""What was taken up outlasts power cuts, broken files and changes of keys; unsure, it closes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from remote_cases import (
    COOL,
    DAY_MS,
    EU,
    HOT,
    KEY,
    SECOND,
    STRANGER,
    Device1,
    answer,
    closed_here,
    configuration,
    outcomes,
    raised_above,
    signed,
    trusting,
)

from device.remote.effective import merge


@pytest.fixture
def device(tmp_path: Path) -> Device1:
    return Device1(tmp_path / "remote.json")


def test_a_power_cut_leaves_the_old_or_the_new(
    device: Device1, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever step of the writing is the last, a start finds one of the two, whole."""
    device.start().take(answer(signed(configuration(COOL, 1))))
    steps = {"n": 0}

    class PowerCutError(BaseException):
        pass

    def cut(name: str) -> Any:
        real = getattr(os, name) if name != "replace" else Path.replace

        def step(*arguments: Any) -> Any:
            steps["n"] -= 1
            if steps["n"] == 0:
                raise PowerCutError
            return real(*arguments)

        return step

    finished = False
    for last in range(1, 20):
        remote = device.start()
        steps["n"] = last
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", cut("fsync"))
            patch.setattr(Path, "replace", cut("replace"))
            try:
                remote.take(answer(signed(configuration(HOT, 2 * last))))
                finished = True
            except PowerCutError:
                pass
        device.start()
        assert raised_above(device) in {88.0, 95.0}
        again = device.start()
        assert again.effective.leaks == device.local.leaks
        if finished:
            break
        device.start().take(answer(signed(configuration(COOL, 2 * last + 1))))
    assert finished
    assert last == 7  # three flushes or renames a file, two files, and the end


def test_a_broken_file_is_put_aside_for_the_one_before(device: Device1) -> None:
    """The configuration before holds then, and what leaks is no looser than the owner has it."""
    remote = device.start()
    for counter, settings in enumerate((COOL, HOT, {"routing": {"cloud": False}}), 1):
        remote.take(answer(signed(configuration(settings, counter))))
    device.path.write_bytes(device.path.read_bytes()[:-9])
    device.start()
    assert raised_above(device) == 95.0
    assert device.path.with_name("remote.json.broken").exists()


def test_nothing_leaves_while_it_is_unknown_what_was_forbidden(device: Device1) -> None:
    """With both files broken the device closes, until its own document or its owner opens it."""
    remote = device.start()
    for counter in (1, 2):
        remote.take(answer(signed(configuration({"routing": {"cloud": False}}, counter))))
    for path in device.path.parent.iterdir():
        path.write_bytes(b"\0" * 40)
    closed = device.start()
    assert closed.effective.leaks == closed_here(device)
    closed.take(answer(signed(configuration(HOT, audience=EU))))
    assert device.start().effective.leaks == closed_here(device)
    closed = device.start()
    closed.take(answer(signed(configuration(HOT, 3))))
    assert closed.effective.leaks == device.start().effective.leaks == device.local.leaks


def test_what_was_lost_stays_lost_over_restarts(device: Device1) -> None:
    """A device closed by broken files is not opened by being started again, but by its owner."""
    remote = device.start()
    for counter in (1, 2):
        remote.take(answer(signed(configuration({"routing": {"cloud": False}}, counter))))
    for path in device.path.parent.iterdir():
        path.write_bytes(b"\0" * 40)
    for _ in range(3):
        closed = device.start()
        assert closed.effective.leaks == closed_here(device)
    closed.forget()
    assert closed.effective.leaks == device.start().effective.leaks == device.local.leaks


def test_a_document_that_cannot_be_proven_any_more_closes(device: Device1) -> None:
    """Once its key is not trusted, what it forbade stays forbidden, and all else that leaks too."""
    tight = configuration({**HOT, "routing": {"local_only": True}})
    device.start().take(answer(signed(tight)))
    device.keys = trusting(SECOND)
    remote = device.start()
    assert remote.effective.leaks == closed_here(device)
    assert raised_above(device) == 90.0
    assert "device:orin-1" in str(remote.details()["remote_unproven"])
    assert [row["proven"] for row in remote.describe()] == [False]
    remote.take(answer(signed(configuration({}, 2), SECOND)))
    assert remote.effective.leaks == device.local.leaks
    assert "remote_unproven" not in remote.details()


def test_keys_are_changed_without_closing(device: Device1) -> None:
    """What holds is signed by the new key as well, kept so, and outlasts the old one."""
    document = configuration(HOT, 7)
    device.start().take(answer(signed(document, KEY)))
    device.keys = trusting(KEY, SECOND)
    remote = device.start()
    before = device.path.read_bytes()
    remote.take(answer(signed(document, KEY, STRANGER), signed(document, STRANGER)))
    assert device.path.read_bytes() == before
    remote.take(answer(signed(document, KEY, SECOND)))
    remote.take(answer(signed(document, KEY)))
    assert outcomes(remote) == {"unchanged": 4}
    device.keys = trusting(SECOND)
    after = device.start()
    assert after.effective.leaks == device.local.leaks
    assert raised_above(device) == 95.0


def test_what_closed_opens_when_it_is_signed_anew(device: Device1) -> None:
    """The same document by a key that is trusted now needs no higher counter, nor be in time."""
    document = configuration(HOT, 7)
    device.start().take(answer(signed(document, KEY)))
    device.keys = trusting(SECOND)
    device.clock.now_ms += 1000 * DAY_MS
    remote = device.start()
    remote.take(answer(signed(document, KEY), signed(document, STRANGER)))
    assert remote.effective.leaks == closed_here(device)
    remote.take(answer(signed(document, SECOND)))
    assert remote.effective.leaks == device.local.leaks
    assert outcomes(remote) == {"signature": 3, "applied": 1}
    assert device.start().effective == remote.effective


def test_the_owner_may_forget_and_floors_stay(device: Device1) -> None:
    """Loosening is local: forgetting brings the owner's word back, and no replay."""
    remote = device.start()
    tight = signed(configuration({"routing": {"cloud": False}}, 5))
    remote.take(answer(tight))
    assert not remote.effective.leaks.policy.cloud
    remote.forget()
    assert remote.effective == merge(device.local, [])
    again = device.start()
    assert again.effective == merge(device.local, [])
    again.take(answer(tight))
    assert outcomes(again) == {"replayed": 1}
