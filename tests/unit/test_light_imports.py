"""Imports: what a device has is enough for what runs on it, and help comes without waiting.

Each case starts an interpreter of its own: in this one everything is loaded already.
"""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import edgekit.contracts
from edgekit.cli.main import COMMANDS

HOST = {
    "httpx", "huggingface_hub", "jinja2", "matplotlib", "ml_dtypes", "mlperf_loadgen", "numba",
    "onnx", "onnxruntime", "tokenizers", "torch", "transformers",
}  # fmt: skip
"""What only the extras of a host bring."""
CONTRACTS = [
    f"edgekit.contracts.{m.name}" for m in pkgutil.iter_modules(edgekit.contracts.__path__)
]


def loaded(code: str) -> set[str]:
    """Run Python code; return the top-level modules that are loaded when it ends."""
    script = (
        "import atexit, sys\natexit.register(lambda: print(*sys.modules, file=sys.stderr))\n" + code
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return {name.partition(".")[0] for name in result.stderr.split()}


def test_the_probe_sees_heavy_imports() -> None:
    """A package that is loaded is reported, so that the other tests mean something."""
    assert "onnx" in loaded("import edgekit.graph.check") & HOST


@pytest.mark.parametrize("package", ["device", "ota"])
def test_applications_load_no_host_packages(package: str) -> None:
    """The agent and the fleet side run without the pipeline's packages."""
    assert not loaded(f"import {package}") & HOST


def test_an_agent_without_a_model_is_light() -> None:
    """What it is made of loads neither NumPy nor anything that needs it; its health check less."""
    found = loaded("import device.__main__, device.agent.agent")
    assert "uvicorn" in found
    assert not found & {*HOST, "numpy", "rich"}
    asking = "from device.__main__ import main; main(['--port', '9', '--health'])"
    assert not loaded(asking) & {*HOST, "numpy", "uvicorn", "starlette", "prometheus_client"}


def test_a_server_that_routes_nothing_has_no_http_client() -> None:
    """Httpx takes memory that a small machine's server can do without."""
    found = loaded("import device.agent.agent, device.api.app")
    assert "starlette" in found
    assert "httpx" not in found


def test_a_router_needs_no_model() -> None:
    """It is made before there is one."""
    found = loaded("import device.routing.router")
    assert "httpx" in found
    assert not found & ({*HOST, "numpy"} - {"httpx"})


def test_readers_of_a_bundle_are_light() -> None:
    """A bundle is opened, verified and compared with the standard library and NumPy."""
    readers = [
        f"edgekit.bundle.{name}" for name in ("diff", "digests", "layout", "reader", "verify")
    ]
    found = loaded(f"import {', '.join([*readers, *CONTRACTS, 'edgekit.errors'])}")
    assert "numpy" in found
    assert not found & {*HOST, "click", "rich"}


def test_contracts_are_standard_library_only() -> None:
    """What crosses disk and air is read without any package."""
    assert CONTRACTS
    found = loaded(f"import {', '.join([*CONTRACTS, 'edgekit.errors'])}")
    own = loaded("")  # what the environment's .pth files load
    assert found - own <= {"edgekit", *sys.stdlib_module_names}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    """``--help`` of edgekit and of every command comes without the pipeline."""
    arguments = [*command.split(), "--help"]
    found = loaded(f"from edgekit.cli.main import main; main({arguments})")
    assert "click" in found
    assert not found & HOST
    assert command or "numpy" not in found
