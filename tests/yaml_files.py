"""YAML that tests read: what ships for Prometheus, Alertmanager, Grafana and Compose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: Path) -> Any:
    """Return a file's one document."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))
