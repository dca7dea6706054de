"""The agent's configuration: strict, and what it does not say is as `edgekit serve` has it."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

import click
import pytest

from device.__main__ import main
from device.agent.config import AgentConfig, read_config
from edgekit.cli.commands.serve import command
from edgekit.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[3]


def write(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text)
    return path


def test_every_key_is_read(tmp_path: Path) -> None:
    """Each type, as TOML writes it; a whole number is a number of seconds, too."""
    text = """
        [serve]
        bundle = "/b"
        host = "::1"
        port = 1
        provider = "tensorrt"
        fallback = "cpu"
        threads = 2
        digests = false
        timeout_s = 5
        tls_certificate = "/c"
        tls_key = "/k"
        cors_origins = ["https://a.example"]
        vllm_metrics = true
    """
    config = read_config(write(tmp_path, text))
    assert config.bundle == Path("/b")
    assert config.timeout_s == 5.0
    assert type(config.timeout_s) is float
    assert config.cors_origins == ("https://a.example",)
    assert config.load_options()["fallback"] == "cpu"
    assert not config.digests
    assert config.queue == AgentConfig().queue == 64


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[serv]", "unknown table serv. Is it serve"),
        ("[serve]\nprot = 1", "unknown key prot. Is it port"),
        ("[serve]\nxyzzy = 1", "unknown key xyzzy. Known are: bundle"),
        ("[serve]\nport = '8000'", "port is '8000', and must be a whole number"),
        ("[serve]\nport = true", "port is True"),
        ("[serve]\nport = 70000", "port 70000"),
        ("[serve]\ndigests = 1", "must be true or false"),
        ("[serve]\nbundle = 3", "must be a path"),
        ("[serve]\ncors_origins = [1]", "must be a list of strings"),
        ("[serve]\nprovider = 'gpu'", "provider 'gpu' is none of cpu, cuda"),
        ("[serve]\ntimeout_s = 0", "timeout_s is 0.0, and must be above 0"),
        ("[serve]\nqueue = -1", "queue is -1"),
        ("[serve]\ntls_key = 'k'", "tls_certificate and tls_key go together"),
        ("[serve]\ntls_client_ca = 'k'", "tls_client_ca needs tls_certificate"),
        ("serve = 1", "serve is no table"),
        ("[serve", "cannot read the configuration"),
    ],
)
def test_what_means_nothing_is_told(tmp_path: Path, text: str, said: str) -> None:
    """File, key, and what it should be."""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_a_wrong_configuration_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr, with an exit code of its own; a file that is named must be there."""
    assert main(["--config", str(write(tmp_path, "[serve]\nprot = 1"))]) == 15
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["--config", str(tmp_path / "none")]) == 15
    assert "No such file" in capsys.readouterr().err


def test_the_command_has_what_the_file_has() -> None:
    """`edgekit serve` takes each key as an option, but for those of an agent, with one default."""
    context = command.make_context("serve", ["bundle"])
    options = {p.name for p in command.params if isinstance(p, click.Option)}
    keys = {field.name: field.default for field in fields(AgentConfig)}
    assert set(keys) - options == {"bundle", "stall_s", "poll_s", "telemetry"}
    assert options <= set(keys)
    for name in options:
        wanted = "off" if name == "log" else keys[name]
        assert context.params[name] == wanted, name


def test_the_documentation_has_every_key() -> None:
    """docs/agent.md: a row a key, with the default."""
    text = (ROOT / "docs/agent.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", text, re.MULTILINE)
    keys = [field.name for field in fields(AgentConfig)]
    assert [name for name, _ in rows] == [
        key for key in keys if key not in {"routing", "telemetry"}
    ]
    assert "`[routing]`" in text
    assert "`[telemetry]`" in text
    for name, default in rows:
        value = getattr(AgentConfig(), name)
        if value is None:
            assert not default.startswith("`"), name
        else:
            written = tomllib.loads(f"x = {default.strip('`')}")["x"]
            assert (tuple(written) if value == () else written) == (
                str(value) if isinstance(value, Path) else value
            ), name
