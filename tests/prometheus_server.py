"""A real Prometheus and a real Alertmanager for tests, with what ``ota/prometheus`` ships.

    with Prometheus(tmp_path) as prometheus:
        prometheus.write_url                    # remote write
        prometheus.value("up")                  # the one value of an instant query

Both listen on free loopback ports and end with their block, by their ids.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml
from child_process import ChildProcess, free_port
from yaml_files import read_yaml

SHIPPED = Path(__file__).resolve().parents[1] / "ota/prometheus"
_START_S = 20.0
_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class _Server(ChildProcess):
    """A program that answers ``/-/ready``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "log")
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """Return what is started."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._begin(self.command())
        self._wait_for(self._answers, f"{type(self).__name__} does not answer", _START_S)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=1).status_code == 200
        except httpx.TransportError:
            return False


def faster(text: str, speed: int) -> str:
    """Return rules whose durations are so many times shorter."""
    if speed == 1:
        return text

    def shorter(match: re.Match[str]) -> str:
        return f"{match[1]}{int(match[2]) * _UNITS_MS[match[3]] // speed}ms"

    return re.sub(r"(\[|for: |interval: )(\d+)(ms|[smhd])\b", shorter, text)


class Prometheus(_Server):
    """One Prometheus with the shipped rules.

    Args:
        folder: Where its files go.
        targets: Ports that jobs scrape, by the job's shipped name; other jobs have none.
        alertmanager: Its port, if one is told.
        speed: How many times faster its rules' clock runs.
        window: Out-of-order time window, if another than shipped.
        every: How often rules are evaluated and jobs scraped, if another time than shipped.
    """

    def __init__(
        self,
        folder: Path,
        *,
        targets: Mapping[str, int] | None = None,
        alertmanager: int | None = None,
        speed: int = 1,
        window: str | None = None,
        every: str | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder)
        self._speed = speed
        self.write_url = f"{self.url}/api/v1/write"
        config = read_yaml(SHIPPED / "prometheus.yml")
        for job in config["scrape_configs"]:
            port = (targets or {}).get(job["job_name"])
            job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}] if port else []
        if alertmanager is None:
            del config["alerting"]
        else:
            there = [{"targets": [f"127.0.0.1:{alertmanager}"]}]
            config["alerting"]["alertmanagers"] = [{"static_configs": there}]
        if window is not None:
            config["storage"]["tsdb"]["out_of_order_time_window"] = window
        if every is not None:
            config["global"] = {"scrape_interval": every, "evaluation_interval": every}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        for name in config["rule_files"]:
            rules = faster((SHIPPED / name).read_text(), speed)
            if every is not None:
                rules = re.sub(r"interval: \w+", f"interval: {every}", rules)
            (folder / name).write_text(rules)

    def command(self) -> list[str]:
        """Return what is started."""
        return [
            "prometheus",
            f"--config.file={self.folder}/prometheus.yml",
            f"--storage.tsdb.path={self.folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--web.enable-remote-write-receiver",
            f"--query.lookback-delta={300_000 // self._speed}ms",
        ]

    def query(self, expression: str, at_s: float | None = None) -> list[dict[str, Any]]:
        """Return the vector or matrix of an instant query.

        Prometheus 2.42 fails one now and then that meets chunks while it moves them, as after a
        replay; asked again it answers.
        """
        arguments = {"query": expression, **({} if at_s is None else {"time": str(at_s)})}
        for _ in range(20):
            answer = httpx.get(f"{self.url}/api/v1/query", params=arguments, timeout=30)
            if "cannot populate chunk" not in answer.text:
                break
            time.sleep(0.25)
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def value(self, expression: str, at_s: float | None = None) -> float | None:
        """Return the one value of an instant query, None if it has none."""
        found = self.query(expression, at_s)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def firing(self) -> set[tuple[str, str]]:
        """Return name and device of all alerts that fire."""
        answer = httpx.get(f"{self.url}/api/v1/alerts", timeout=30).json()["data"]["alerts"]
        return {
            (one["labels"]["alertname"], one["labels"].get("device", ""))
            for one in answer
            if one["state"] == "firing"
        }


class Alertmanager(_Server):
    """One Alertmanager with the shipped routes.

    Args:
        folder: Where its files go.
        receiver: Port of the webhooks.
        group_wait: How long it gathers alerts of a group, if another time than shipped.
    """

    def __init__(self, folder: Path, receiver: int, group_wait: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder)
        text = (SHIPPED / "alertmanager.yml").read_text()
        text = text.replace("localhost:9095", f"127.0.0.1:{receiver}")
        if group_wait is not None:
            text = text.replace("group_wait: 30s", f"group_wait: {group_wait}")
            text = text.replace("group_interval: 5m", "group_interval: 1s")
        (folder / "alertmanager.yml").write_text(text)

    def command(self) -> list[str]:
        """Return what is started; it joins no cluster."""
        return [
            "prometheus-alertmanager",
            f"--config.file={self.folder}/alertmanager.yml",
            f"--storage.path={self.folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--cluster.listen-address=",
        ]

    def post(self, *alerts: Mapping[str, str]) -> None:
        """Tell it alerts that fire, by their labels."""
        body = [{"labels": dict(labels)} for labels in alerts]
        answer = httpx.post(f"{self.url}/api/v2/alerts", json=body, timeout=10)
        assert answer.status_code == 200, answer.text
