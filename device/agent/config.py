"""The agent's configuration: a TOML file; its keys are in ``docs/agent.md`` and what that names.

Strict: an unknown key is an error, and so is a value of another type. What is not said is as
``edgekit serve`` has it.
"""

from __future__ import annotations

import difflib
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Union, get_args, get_origin, get_type_hints

from device.limits import BODY_LIMIT_BYTES, QUEUE_LIMIT
from device.routing.config import RoutingConfig, parse_routing
from device.telemetry.config import TABLE as TELEMETRY
from device.telemetry.config import TelemetryConfig, parse_telemetry
from edgekit.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:  # an extra's packages come with it
    from device.api.settings import Settings
    from device.routing.router import Router

DEFAULT_PATH: Final = Path("/etc/edgekit/agent.toml")
TABLE: Final = "serve"
ROUTING: Final = "routing"
_CHOICES: Final = {
    "provider": ("cpu", "cuda", "tensorrt", "auto"),
    "fallback": ("cpu", "cuda"),
    "dialect": ("standard", "ort"),
}
_POSITIVE: Final = (
    "timeout_s",
    "stall_s",
    "poll_s",
    "threads",
    "max_sequences",
    "body_limit_bytes",
)
_MAX_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What an agent is told.

    Attributes:
        bundle: The bundle, or a link to it; need not exist.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        provider: Where to run: ``cpu``, ``cuda``, ``tensorrt``, or what was chosen: ``auto``.
        fallback: Where to run if TensorRT cannot.
        dialect: Which of the bundle's graphs to run.
        threads: CPU threads; None is all cores.
        max_sequences: Requests that generate at once; None is the bundle's number.
        digests: Check the bundle's bytes before it is loaded.
        queue: Requests that may wait.
        timeout_s: Seconds after which a request is given up.
        drain_s: Seconds that running requests have when the server or their model is to go.
        stall_s: A step of the engine that takes longer hangs: the watchdog is fed no more.
        poll_s: Seconds between two looks for a bundle while there is none.
        tls_certificate: PEM file; with it HTTPS is served.
        tls_key: PEM file of its key.
        tls_client_ca: PEM file; clients must have a certificate of one of these authorities.
        api_keys: File of clients and sha256 digests of their keys.
        cors_origins: Origins whose pages may ask from a browser.
        body_limit_bytes: Largest body that is read.
        log: ``stdout``, ``off`` or a file.
        vllm_metrics: Tell the metrics under vLLM's names, too.
        routing: The table ``[routing]``; None lets nothing go.
        telemetry: The table ``[telemetry]``; None sends none.
    """

    bundle: Path = Path("/var/lib/edgekit/current")
    host: str = "127.0.0.1"
    port: int = 8000
    provider: str = "cpu"
    fallback: str | None = None
    dialect: str | None = None
    threads: int | None = None
    max_sequences: int | None = None
    digests: bool = True
    queue: int = QUEUE_LIMIT
    timeout_s: float = 600.0
    drain_s: float = 30.0
    stall_s: float = 60.0
    poll_s: float = 2.0
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    api_keys: Path | None = None
    cors_origins: tuple[str, ...] = ()
    body_limit_bytes: int = BODY_LIMIT_BYTES
    log: str = "stdout"
    vllm_metrics: bool = False
    routing: RoutingConfig | None = None
    telemetry: TelemetryConfig | None = None

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise ConfigError(f"{name} {value!r} is none of {', '.join(known)}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}, and must be above 0")
        for name in ("queue", "drain_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, and must not be below 0")
        if not 0 <= self.port <= _MAX_PORT:
            raise ConfigError(f"port {self.port} is none")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("tls_certificate and tls_key go together", "Give both, or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ConfigError("tls_client_ca needs tls_certificate and tls_key")

    def load_options(self) -> dict[str, Any]:
        """Return the arguments of ``device.agent.loading.LoadOptions``."""
        names = ("provider", "fallback", "dialect", "threads", "max_sequences", "digests")
        return {name: getattr(self, name) for name in names}

    def settings(self) -> Settings:
        """Return how the server behaves.

        Raises:
            StorageError: The file of API keys, or one that routing needs, cannot be read.
        """
        from device.api.settings import Settings, read_keys  # noqa: PLC0415 - see above

        return Settings(
            queue_limit=self.queue,
            timeout_s=self.timeout_s,
            body_limit_bytes=self.body_limit_bytes,
            drain_s=self.drain_s,
            keys=None if self.api_keys is None else read_keys(self.api_keys),
            cors_origins=self.cors_origins,
            stall_s=self.stall_s,
            router=self._router(),
        )

    def _router(self) -> Router | None:
        if self.routing is None or not self.routing.enabled:
            return None
        from device.routing.router import Router  # noqa: PLC0415 - httpx, where it is used alone

        return Router(self.routing)


def read_config(path: Path) -> AgentConfig:
    """Read a configuration.

    Raises:
        ConfigError: It cannot be read, is no TOML, or says something that means nothing.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error}", "docs/agent.md shows one"
        ) from error
    try:
        return parse_config(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", error.remedy) from error


def parse_config(data: Mapping[str, Any]) -> AgentConfig:
    """Return the configuration of a parsed TOML file.

    Raises:
        ConfigError: It says something that means nothing.
    """
    _refuse_unknown(data, (TABLE, ROUTING, TELEMETRY), "table")
    table = data.get(TABLE, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{TABLE} is no table", f"Write [{TABLE}] above its keys")
    routing = parse_routing(data[ROUTING]) if ROUTING in data else None
    telemetry = parse_telemetry(data[TELEMETRY]) if TELEMETRY in data else None
    kinds = get_type_hints(AgentConfig)
    del kinds[ROUTING], kinds[TELEMETRY]
    _refuse_unknown(table, tuple(kinds), "key")
    said = {name: _convert(name, kinds[name], table[name]) for name in table}
    return AgentConfig(**said, routing=routing, telemetry=telemetry)


def _refuse_unknown(data: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    for name in data:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            remedy = f"Is it {near[0]}?" if near else f"Known are: {', '.join(known)}"
            raise ConfigError(f"unknown {what} {name}", remedy)


def _convert(name: str, kind: Any, value: Any) -> Any:
    """Return a TOML value as its field's type; whole numbers are numbers, strings are paths."""
    if get_origin(kind) in {Union, types.UnionType}:
        kind = next(one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is tuple:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ConfigError(f"{name} is {value!r}, and must be a list of strings")
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        words = {Path: "a path", str: "a string", int: "a whole number", float: "a number"}
        raise ConfigError(f"{name} is {value!r}, and must be {words.get(kind, 'true or false')}")
    return value
