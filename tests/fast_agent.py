"""An agent whose seconds are short: minutes of live mode pass while a test waits.

Started by ``agent_cases`` with :data:`SCRIPT`; the clock's beginning comes by the environment, so
that the test and an agent that was restarted have the same time.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from telemetry_cases import FastClock

SPEED = 12.0
SCRIPT = "import sys, fast_agent; sys.exit(fast_agent.main())"
BEGUN = "EDGEKIT_TEST_BEGUN"


class SharedClock(FastClock):
    """A fast clock that is the same in every process.

    Args:
        began_s: Of the monotonic clock.
        wall_s: The time then.
    """

    def __init__(self, began_s: float, wall_s: float) -> None:
        super().__init__(SPEED)
        self._began_s, self._wall_s = began_s, wall_s

    @classmethod
    def now(cls) -> SharedClock:
        """Return one that begins now."""
        return cls(time.monotonic(), time.time())

    @property
    def environment(self) -> dict[str, str]:
        """What an agent's process is told, this project's packages and these tests among it."""
        tests = Path(__file__).resolve().parent
        path = [str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")]
        return {
            BEGUN: f"{self._began_s} {self._wall_s}",
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
        }


def main() -> int:
    """Run it; arguments are the folder, ``--config FILE`` and ``--port PORT``."""
    from device.agent.agent import Agent
    from device.agent.config import read_config
    from device.agent.server import listen

    _, path, _, port = sys.argv[2:]
    began_s, wall_s = map(float, os.environ[BEGUN].split())
    agent = Agent(read_config(Path(path)), clock=SharedClock(began_s, wall_s))
    return agent.run(listen("127.0.0.1", int(port)))
