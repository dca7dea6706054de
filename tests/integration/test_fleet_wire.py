"""What a device's telemetry costs on the wire, and a thousand devices over a bad link.

They count and impair real IP packets on an interface of their own, which root alone may make.
"""

from __future__ import annotations

import os
import socket
import time

import pytest
from bench_wire import Case, measure
from fleet_chaos import run
from impaired_link import ImpairedLink

GOAL_BYTES = 1_200_000
"""Of one device's telemetry in a day."""
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make an interface")


def test_a_bad_link_counts_delays_and_loses_packets() -> None:
    """The link of the tests below does what it says: round trip, losses, cuts, bytes."""
    link = ImpairedLink(201, delay_s=0.05)
    with link, socket.create_server((link.near, 0)) as server:
        began_s = time.monotonic()
        address = (link.far, server.getsockname()[1])
        with socket.create_connection(address, 5) as one, server.accept()[0] as other:
            assert time.monotonic() - began_s >= 0.1
            one.sendall(bytes(1000))
            receive(other, 1000)
            assert other.getpeername()[0] == link.far
            # SYN, SYN with ACK (60 bytes each), ACK (52), the data, and perhaps its ACK.
            assert link.counts["bytes"] in {60 + 60 + 52 + 1052, 60 + 60 + 52 + 1052 + 52}
            assert link.counts["syn"] == 1
            assert link.counts["lost"] == 0
            link.is_cut = True
            one.sendall(b"x")
            other.settimeout(0.3)
            with pytest.raises(TimeoutError):
                other.recv(1)
            assert link.counts["lost"] >= 1
            link.is_cut, link.loss = False, 0.1
            one.sendall(bytes(50_000))
            receive(other, 50_001)
            assert link.counts["lost"] > 2


def receive(connection: socket.socket, count: int) -> None:
    """Receive that many bytes."""
    connection.settimeout(20)
    while count > 0:
        data = connection.recv(count)
        assert data, "the connection ended"
        count -= len(data)


@pytest.mark.slow
def test_a_day_of_telemetry_costs_no_more_than_its_goal() -> None:
    """With the default configuration two hours cost at most a twelfth of 1.2 MB, all included."""
    found = measure(Case(share=1 / 12), number=202, seconds=60.0)
    assert found["bytes_a_day"] <= GOAL_BYTES
    assert found["samples"] >= 700
    assert found["oldest_in_a_batch_s"] <= 600
    assert 0.9 < found["device_counted_share"] < 1.1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_of_a_thousand_devices() -> None:
    """A thousand devices on a bad link, everything killed 20 times: each row is stored once."""
    found = run(1000, 20)
    assert found["killed"]["broker"] == 20
    assert found["killed"]["link"] == 2
    assert found["rows_promised"] > 50_000
    assert found["rows_stored"] == found["rows_given"]
    assert found["rows_dropped"] == 0
