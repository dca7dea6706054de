"""The agent's configuration: a TOML file; its keys are in ``docs/agent.md`` and what that names.

Strict: an unknown key is an error, and so is a value of another type. What is not said is as
``edgekit serve`` has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from device.agent.options import LoadOptions
from device.limits import BODY_LIMIT_BYTES, QUEUE_LIMIT
from device.remote.config import FleetConfig, parse_fleet
from device.routing.config import RoutingConfig, parse_routing
from device.tables import read_table, read_toml, refuse_unknown
from device.telemetry.config import TABLE as TELEMETRY
from device.telemetry.config import TelemetryConfig, parse_telemetry
from edgekit.errors import ConfigError

if TYPE_CHECKING:  # an extra's packages come with it
    from device.api.settings import Settings
    from device.routing.router import Router

DEFAULT_PATH: Final = Path("/etc/edgekit/agent.toml")
TABLE: Final = "serve"
ROUTING: Final = "routing"
FLEET: Final = "fleet"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig(LoadOptions):
    """What an agent is told; how it loads bundles is the base's.

    Attributes:
        bundle: The bundle, or a link to it; need not exist.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
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
        fleet: The table ``[fleet]``; None takes nobody's word from afar.
    """

    bundle: Path = Path("/var/lib/edgekit/current")
    host: str = "127.0.0.1"
    port: int = 8000
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
    fleet: FleetConfig | None = None

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise ConfigError(f"{name} {value!r} is none of {', '.join(known)}")
        if not self.log:
            raise ConfigError("log is empty", "Give stdout, off or a file")
        self._require_numbers()
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("tls_certificate and tls_key go together", "Give both, or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ConfigError("tls_client_ca needs tls_certificate and tls_key")

    def _require_numbers(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value}, and must be above 0 and finite")
        for name in ("queue", "drain_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, and must be 0 or more")
        if not 0 <= self.port <= _MAX_PORT:
            raise ConfigError(f"port {self.port} is none")

    def settings(self) -> Settings:
        """Return how the server behaves.

        Raises:
            StorageError: The file of API keys, or one that routing needs, cannot be read.
            ConfigError: Routing pins a client that there is not.
        """
        from device.api.settings import Settings, read_keys  # noqa: PLC0415 - see above

        keys = None if self.api_keys is None else read_keys(self.api_keys)
        if self.routing is not None:
            self.routing.require_clients(None if keys is None else set(keys.values()))
        return Settings(
            queue_limit=self.queue,
            timeout_s=self.timeout_s,
            body_limit_bytes=self.body_limit_bytes,
            drain_s=self.drain_s,
            keys=keys,
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
    data = read_toml(path, "docs/agent.md shows one")
    try:
        return parse_config(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", error.remedy) from error


def parse_config(data: Mapping[str, Any]) -> AgentConfig:
    """Return the configuration of a parsed TOML file.

    Raises:
        ConfigError: It says something that means nothing.
    """
    refuse_unknown(data, (TABLE, ROUTING, TELEMETRY, FLEET), "the file")
    table = data.get(TABLE, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{TABLE} is no table", f"Write [{TABLE}] above its keys")
    config = read_table(AgentConfig, table, f"[{TABLE}]", without=(ROUTING, TELEMETRY, FLEET))
    routing = parse_routing(data[ROUTING]) if ROUTING in data else None
    telemetry = parse_telemetry(data[TELEMETRY]) if TELEMETRY in data else None
    fleet = parse_fleet(data[FLEET], telemetry=telemetry) if FLEET in data else None
    return replace(config, routing=routing, telemetry=telemetry, fleet=fleet)
