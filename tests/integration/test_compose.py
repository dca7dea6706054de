"""ota/compose keeps its promises as far as text can tell; no container engine has run it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from yaml_files import read_yaml

from ota.cli.main import cli

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "ota/compose/compose.yml"
DOCUMENT: dict[str, Any] = read_yaml(COMPOSE)
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
OURS = ("migrate", "ingest", "export")
KEYS = {
    *("image", "build", "restart", "command", "environment", "depends_on", "healthcheck"),
    *("read_only", "cap_drop", "security_opt", "secrets", "logging", "ports", "networks"),
    *("volumes", "shm_size", "stop_grace_period"),
}
"""Of a service in the Compose Specification: those that this file uses."""


def mounts() -> list[tuple[str, str]]:
    """Return service and source of every mount."""
    return [
        (name, mount.split(":")[0])
        for name, service in SERVICES.items()
        for mount in service.get("volumes", [])
    ]


def test_every_part_is_there() -> None:
    """Broker, database, ingest, exporter, series, alerts, dashboards and bundles."""
    assert set(SERVICES) == {
        "emqx", "postgres", "migrate", "ingest", "export", "prometheus", "alertmanager",
        "grafana", "minio",
    }  # fmt: skip
    assert set(DOCUMENT) == {"name", "x-fleet", "services", "networks", "volumes", "secrets"}
    for service in SERVICES.values():
        assert set(service) <= KEYS


@pytest.mark.parametrize("name", SERVICES)
def test_versions_are_pinned(name: str) -> None:
    """No image moves by itself: a tag with all its numbers, or one that is built here."""
    repository, _, tag = SERVICES[name]["image"].rpartition(":")
    assert repository
    if name not in OURS:
        assert re.fullmatch(r"(v?\d+\.\d+(\.\d+)?(-bookworm)?|RELEASE\.[\dTZ-]+)", tag)


def test_everything_mounted_exists_or_is_declared() -> None:
    """Files are in the repository, named volumes and secrets and networks are declared and used."""
    named = set()
    for service, source in mounts():
        if source.startswith("."):
            assert (COMPOSE.parent / source).exists(), f"{service} mounts {source}"
        else:
            named.add(source)
    assert named == set(DOCUMENT["volumes"])
    for kind in ("secrets", "networks"):
        used = {one for service in SERVICES.values() for one in service.get(kind, [])}
        assert used == set(DOCUMENT[kind])
    for secret in DOCUMENT["secrets"].values():
        assert secret["file"].startswith("secrets/")
        ignored = ["git", "check-ignore", "-q", f"ota/compose/{secret['file']}"]
        assert subprocess.run(ignored, cwd=ROOT, check=False).returncode == 0, secret["file"]
    assert (ROOT / ".dockerignore").read_text().splitlines()[-1] == "ota/compose/secrets"


def test_no_secret_is_in_the_text() -> None:
    """Passwords and keys come from files; none is an argument or a variable."""
    for service in SERVICES.values():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|ROOT_USER", variable):
                assert variable.endswith("_FILE")
                assert value.startswith("/run/secrets/")
                assert value.removeprefix("/run/secrets/") in service["secrets"]
        for word in service.get("command", []):
            for secret in re.findall(r"/run/secrets/(\w+)", word):
                assert secret in service["secrets"]
    for secret in re.findall(r"/run/secrets/(\w+)", (COMPOSE.parent / "emqx.conf").read_text()):
        assert secret in SERVICES["emqx"]["secrets"]


@pytest.mark.parametrize(
    ("script", "ends"),
    [
        (SERVICES["emqx"]["command"], "emqx foreground"),
        (SERVICES["emqx"]["healthcheck"]["test"][1:], "emqx ctl status"),
    ],
    ids=["start", "health"],
)
def test_the_brokers_cookie_is_a_secret(script: list[str], ends: str, tmp_path: Path) -> None:
    """EMQX's node has a cookie, without which it does not start: that of a file, never its own."""
    shell, option, line = script
    assert (shell, option) == ("sh", "-c")
    assert line.endswith(ends)
    assert not re.search(r"^\s*cookie", (COMPOSE.parent / "emqx.conf").read_text(), re.MULTILINE)
    line = line.replace("$$", "$").replace("/run/secrets", str(tmp_path))
    line = line.replace(f"/opt/emqx/bin/{ends}", "printenv EMQX_NODE__COOKIE")
    run = [shell, option, line]
    missing = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (missing.returncode, missing.stdout) == (1, "")
    (tmp_path / "broker_cookie").write_text("5eed\n")
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout == "5eed\n"


def test_the_secrets_are_documented() -> None:
    """docs/fleet-metrics.md names every file that is to be put there."""
    guide = (ROOT / "docs/fleet-metrics.md").read_text()
    for secret in DOCUMENT["secrets"].values():
        assert f"`{secret['file'].removeprefix('secrets/')}`" in guide, secret["file"]


def test_ports_are_one_each_and_few() -> None:
    """What is published: MQTT over TLS; what speaks plain HTTP is for this host alone."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert sorted(ports) == ["127.0.0.1:3000:3000", "127.0.0.1:9000:9000", "8883:8883"]


def test_services_wait_for_healthy_ones() -> None:
    """Every long-lived service has a health check, and who needs one waits for it."""
    for name, service in SERVICES.items():
        assert ("healthcheck" in service) == (name != "migrate")
        for other, how in service.get("depends_on", {}).items():
            ends = other == "migrate"
            expected = "service_completed_successfully" if ends else "service_healthy"
            assert how == {"condition": expected}
            assert set(service["networks"]) & set(SERVICES[other]["networks"])


def test_prometheus_scrapes_what_is_served() -> None:
    """The scrape targets of prometheus.yml are these services, at the ports that they serve."""
    config = read_yaml(ROOT / "ota/prometheus/prometheus.yml")
    jobs = {
        job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]
    }
    for job, service in (("edgekit-ingest", "ingest"), ("edgekit-export", "export")):
        (target,) = jobs[job]
        host, _, port = target.partition(":")
        assert host == service
        assert f"--metrics-port={port}" in SERVICES[service]["command"]
        assert f":{port}/metrics" in SERVICES[service]["healthcheck"]["test"][-1]
    assert config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] == [
        "alertmanager:9093"
    ]
    assert "--web.enable-remote-write-receiver" in SERVICES["prometheus"]["command"]


@pytest.mark.parametrize("name", OURS)
def test_commands_are_of_this_release(name: str) -> None:
    """edgekit-fleet knows every option that a service gives it."""
    words = [word for word in SERVICES[name]["command"] if not word.startswith("-")]
    shown = CliRunner().invoke(cli, [*words, "--help"])
    assert shown.exit_code == 0, shown.output
    for option in [word for word in SERVICES[name]["command"] if word.startswith("-")]:
        assert option.partition("=")[0] in shown.output


def test_the_image_is_linted() -> None:
    """Hadolint finds nothing wrong with fleet.Dockerfile, and it starts what the services name."""
    dockerfile = ROOT / "ota/compose/fleet.Dockerfile"
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint is not None
    done = subprocess.run([hadolint, str(dockerfile)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert 'ENTRYPOINT ["edgekit-fleet"]' in dockerfile.read_text()
    for name in OURS:
        assert SERVICES[name]["build"]["dockerfile"] == "ota/compose/fleet.Dockerfile"
