"""OpenAI's client for Node, as npm has it: `tests/node` asks a server of this process."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from serve_cases import NAME, served, settle

NODE = Path(__file__).parents[1] / "node"
CHECKS = 8


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the client installed exactly as the lock file says."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is missing: install Node 20 or newer (Debian: nodejs and npm)")
    folder = tmp_path_factory.mktemp("node") / "client"
    shutil.copytree(NODE, folder, ignore=shutil.ignore_patterns("node_modules"))
    command = [shutil.which("npm") or "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_openais_client_for_node_gets_its_answers(client: Path, bundle: Path) -> None:
    """Models, whole and streamed answers, tools, schemas, aborts and errors, as it reads them."""
    with served(bundle) as (address, service):
        command = [shutil.which("node") or "node", "--test", "--test-reporter=tap"]
        done = subprocess.run(
            [*command, "client.test.mjs"],
            cwd=client,
            env=os.environ | {"BASE_URL": f"{address}/v1", "MODEL": NAME},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        settle(service)
        metrics = httpx.get(f"{address}/metrics").text
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^# (pass|fail|skipped) (\d+)$", done.stdout, re.MULTILINE) == [
        ("pass", str(CHECKS)),
        ("fail", "0"),
        ("skipped", "0"),
    ]
    ends = re.findall(r'finished_reason="(?:cancelled|abort)".* ([\d.]+)$', metrics, re.MULTILINE)
    assert [float(count) for count in ends] == [2]  # whole and streamed, each aborted once


def test_the_lock_file_names_no_host() -> None:
    """The client comes from whichever registry npm is set to."""
    text = (NODE / "package-lock.json").read_text(encoding="utf-8")
    assert '"integrity": "sha512-' in text
    assert "resolved" not in text
    assert "://" not in text
