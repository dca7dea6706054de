"""jetson.Dockerfile keeps its promises as far as text can tell; no engine builds it here."""

from __future__ import annotations

import platform
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.version import Version

from device.agent.config import DEFAULT_PATH, AgentConfig, read_config
from edgekit.targets import TARGETS

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "jetson.Dockerfile"
JETPACKS = {"7.2": ("orin", "orin-32gb"), "6.2": ("orin-jp62",)}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its continued lines joined, and the stage it stands in."""

    stage: str
    name: str
    value: str


def instructions() -> list[Instruction]:
    """Return the Dockerfile's instructions; the stage before the first FROM is empty."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    found, stage = [], ""
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, value = line.split(maxsplit=1)
        if name == "FROM":
            stage = value.split(" AS ")[1]
        found.append(Instruction(stage, name, " ".join(value.split())))
    return found


def values(name: str, stage: str | None = None) -> list[str]:
    """Return what is given to an instruction, in one stage or in all."""
    return [
        item.value for item in instructions() if item.name == name and stage in {None, item.stage}
    ]


def jetpack(version: str) -> dict[str, str]:
    """Return the environment of a JetPack's stage."""
    (words,) = values("ENV", f"jetpack-{version}")
    return dict(word.split("=", 1) for word in shlex.split(words))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="hadolint's package is for x86-64")
def test_hadolint_has_nothing_to_say() -> None:
    """The linter passes; what it is told to ignore is ignored line by line, in the file."""
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run(
        [hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr


def test_arguments_choose_stages_that_exist() -> None:
    """JETPACK is 7.2 or 6.2, ENGINE is tensorrt or onnxruntime; the first of each by default."""
    assert values("ARG", "") == ["JETPACK=7.2", "ENGINE=tensorrt"]
    assert values("ARG", "build") == ["ENGINE"]  # an ARG before the first FROM is none of a stage's
    assert values("FROM") == [
        "ubuntu:24.04 AS jetpack-7.2",
        "ubuntu:22.04 AS jetpack-6.2",
        "jetpack-${JETPACK} AS onnxruntime",
        "onnxruntime AS tensorrt",
        "onnxruntime AS build",
        "${ENGINE} AS device",
    ]
    assert ":latest" not in DOCKERFILE.read_text()


@pytest.mark.parametrize("version", JETPACKS)
def test_jetpacks_are_those_bundles_are_built_for(version: str) -> None:
    """A JetPack's L4T and TensorRT lie in the ranges that its targets' bundles require."""
    stage = jetpack(version)
    l4t = Version(stage["L4T_SUITE"].removeprefix("r"))
    tensorrt = Version(stage["TENSORRT_VERSION"].split("-")[0])
    for name in JETPACKS[version]:
        target = TARGETS[name]
        assert Requirement(f"l4t{target.l4t}").specifier.contains(l4t)
        assert Requirement(f"tensorrt{target.tensorrt}").specifier.contains(tensorrt)


def test_tensorrt_is_pinned() -> None:
    """TensorRT is named with its version, and what it depends on is held to it."""
    (install,) = values("RUN", "tensorrt")
    assert '"python3-libnvinfer=${TENSORRT_VERSION}"' in install
    assert "Package: *nvinfer* *nvonnxparsers*\\nPin: version %s\\nPin-Priority: 1001" in install
    assert "signed-by=" in install


@pytest.mark.parametrize(("version", "python"), [("7.2", "3.12"), ("6.2", "3.10")])
def test_constraints_pin_all_that_a_device_installs(version: str, python: str) -> None:
    """What the core and the image's extras name is pinned, for that Python on aarch64."""
    environment = {
        **{key: str(value) for key, value in default_environment().items()},
        "python_version": python,
        "python_full_version": f"{python}.3",
        "platform_machine": "aarch64",
    }
    pins = {}
    for line in (ROOT / jetpack(version)["EDGEKIT_CONSTRAINTS"]).read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate(environment):
                pins[pin.name] = str(pin.specifier).removeprefix("==")
    project = (ROOT / "pyproject.toml").read_text()
    (core,) = re.findall(r"^dependencies = \[$(.*?)^\]$", project, re.MULTILINE | re.DOTALL)
    (device,) = re.findall(r"^device = \[$(.*?)^\]$", project, re.MULTILINE | re.DOTALL)
    (tensorrt,) = re.findall(r"^tensorrt = \[$(.*?)^\]$", project, re.MULTILINE | re.DOTALL)
    (serve,) = re.findall(r"^serve = \[$(.*?)^\]$", project, re.MULTILINE | re.DOTALL)
    # CUDA's bindings are of the JetPack's CUDA, not of the Python.
    pins["cuda-bindings"] = jetpack(version)["CUDA_BINDINGS_VERSION"]
    cuda = jetpack(version)["CUDA_PACKAGES"].partition("-")[0]
    assert pins["cuda-bindings"].split(".")[0] == cuda
    for text in re.findall(r'"(.+)",', core + device + serve + tensorrt):
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate(environment):
            assert wanted.specifier.contains(pins[wanted.name]), wanted
    assert not {"onnx", "numba", "torch"} & set(re.findall(r'"(\w+)', device))


def test_the_hardware_script_installs_what_the_image_has() -> None:
    """The same bindings and pins, by JetPack."""
    script = (ROOT / "scripts" / "hardware.sh").read_text()
    for version in ("7.2", "6.2"):
        pins = jetpack(version)
        wanted = f"bindings={pins['CUDA_BINDINGS_VERSION']} pins={pins['EDGEKIT_CONSTRAINTS']}"
        assert f"{wanted}\n" in script


def test_extras_are_those_of_the_engine() -> None:
    """Only the image with TensorRT has what talks to CUDA, at the JetPack's version."""
    (install,) = [value for value in values("RUN", "build") if "pip install" in value]
    script = install[: install.index("&& /opt/edgekit/bin/pip install")]
    script = script.partition("&& ")[2] + '&& printf "%s\\n" "$@"'
    for engine, wanted in {
        "tensorrt": [".[device,serve,tensorrt]", "cuda-bindings==1.2"],
        "onnxruntime": [".[device,serve]"],
    }.items():
        environment = {"ENGINE": engine, "CUDA_BINDINGS_VERSION": "1.2"}
        result = subprocess.run(
            ["/bin/sh", "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert result.stdout.split() == wanted
    assert '"${EDGEKIT_CONSTRAINTS}" "$@"' in install


def test_runs_unprivileged_with_one_volume_and_a_health_check() -> None:
    """The image's user is not root, all state is in one volume, its health is the agent's."""
    (user,) = values("USER")
    (volume,) = values("VOLUME")
    assert f"--uid {user} " in " ".join(values("RUN", "device"))
    assert int(user) >= 1000
    environment = " ".join(values("ENV", "device"))
    assert f"EDGEKIT_BUNDLE={volume}/bundle" in environment
    assert "PYTHONDONTWRITEBYTECODE=1" in environment
    (health,) = values("HEALTHCHECK")
    assert health.endswith('CMD ["python", "-m", "device", "--health"]')
    assert values("ENTRYPOINT") == []
    assert values("CMD") == ['["python", "-m", "device"]']
    assert all(item.stage == "device" for item in instructions() if item.name in {
        "USER", "VOLUME", "HEALTHCHECK", "ENTRYPOINT", "CMD"
    })  # fmt: skip
    # What scripts/arm64.sh runs is what the image runs.
    script = (ROOT / "scripts" / "arm64.sh").read_text()
    assert "python -m device & agent=$!" in script
    assert "until python -m device --health" in script


def test_the_agent_of_the_image_is_configured(tmp_path: Path) -> None:
    """What the image writes to /etc/edgekit is read: the volume's bundle, every address."""
    (made,) = [value for value in values("RUN", "device") if "agent.toml" in value]
    script = made[made.index("printf") :].replace(str(DEFAULT_PATH), str(tmp_path / "agent.toml"))
    subprocess.run(["/bin/sh", "-c", script], check=True)
    config = read_config(tmp_path / "agent.toml")
    assert config == AgentConfig(bundle=Path("/var/lib/edgekit/bundle"), host="0.0.0.0")  # noqa: S104


def test_context_is_what_the_wheel_is_made_of() -> None:
    """.dockerignore lets through the packages and what pyproject.toml and the image name."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    constraints = {jetpack(version)["EDGEKIT_CONSTRAINTS"] for version in JETPACKS}
    packages = {"edgekit", "device", "ota", "recipes"}
    assert allowed == {"pyproject.toml", "README.md", "LICENSE", *constraints, *packages}
    assert "*" in lines
    assert all((ROOT / name).exists() for name in allowed)
