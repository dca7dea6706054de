"""Many clients, a cloud that does anything, and clients that leave: all get what is theirs."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from cloud_cases import Cloud, Seen, answer, refuse
from routing_pair import SHORT, TOO_LONG, Pair, paired
from serve_cases import wait_until

CLIENTS, ASKS = 8, 15


def anything(draw: random.Random) -> Any:
    """Return a script that answers, fails, is cut, or dawdles."""

    def cut(seen: Seen) -> None:
        seen.begin()
        seen.say("from ")
        seen.connection.close()

    def slow(seen: Seen) -> None:
        time.sleep(0.3)
        answer(seen)

    scripts = [answer, answer, slow, cut, refuse(500), refuse(400), refuse(429)]

    def script(seen: Seen) -> None:
        draw.choice(scripts)(seen)

    return script


def ask(pair: Pair, draw: random.Random, faults: list[str]) -> None:
    """Ask for something; note an answer that nobody should get."""
    is_long, stream = draw.random() < 0.7, draw.random() < 0.5
    body = {**(TOO_LONG if is_long else SHORT), "stream": stream}
    read_s = draw.choice([0.05, 30.0])
    try:
        got = httpx.post(
            f"{pair.server[0]}/v1/chat/completions",
            json=body,
            timeout=httpx.Timeout(30, read=read_s),
        )
    except httpx.ReadTimeout:
        if read_s == 30.0:
            faults.append("no answer")
        return
    route = got.headers["x-edgekit-route"]
    if is_long and got.status_code == 200:
        whole = "from the cloud" in got.text or "[DONE]" in got.text or '"error"' in got.text
        if not (whole and route == "cloud; reason=context"):
            faults.append(f"{route}: {got.text}")
    elif is_long and got.status_code not in {400, 502}:
        faults.append(f"{got.status_code}: {got.text}")
    elif not is_long and "cloud" not in route and "58 + 67 = 125" not in got.text and not stream:
        faults.append(f"{route}: {got.text}")


def test_nobody_gets_anothers_and_nothing_leaks(bundle: Path, tmp_path: Path) -> None:
    """Two connections for eight clients; afterwards all bytes set aside are given back."""
    draw = random.Random(11)
    cloud = Cloud(anything(random.Random(5)))
    config = {"connections": 2, "failures": 1000, "connect_timeout_s": 0.5}
    faults: list[str] = []
    with paired(bundle, tmp_path, cloud, None, **config) as pair:

        def client(seed: int) -> None:
            own = random.Random(seed)
            for _ in range(ASKS):
                ask(pair, own, faults)

        threads = [
            threading.Thread(target=client, args=[draw.randrange(1 << 30)]) for _ in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
        wait_until(lambda: pair.router.budget._reserved == 0)
        assert not faults
        assert pair.router.breaker.passes()
        assert len(cloud.seen) > CLIENTS
        cloud.script = answer
        # The connections of who left may still be closing; none is kept for ever.
        wait_until(lambda: pair.ask(TOO_LONG).status_code == 200)
        got = pair.ask(TOO_LONG)
        assert got.json()["choices"][0]["message"]["content"] == "from the cloud"
