"""A real mosquitto for tests: the shipped configuration (``ota/broker``) on free loopback ports.

    with Broker(tmp_path) as broker:
        identity = broker.device(Device("acme", "orin-1"))   # certificate for broker.device_port
        ingest = broker.services.issue("ingest")             # certificate for broker.service_port
        ...                                                  # broker.plain_port: anyone, anything

The server's certificate is for ``localhost`` and 127.0.0.1, of the authority ``broker.server_ca``.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from pathlib import Path

from child_process import ChildProcess, free_ports
from mqtt_certificates import Authority, Identity

from edgekit.contracts.topics import Device

SHIPPED = Path(__file__).resolve().parents[1] / "ota/broker"
_SHIPPED_FOLDER = "/etc/mosquitto/edgekit"
_START_S = 10.0
_PLAIN = """
listener {port} 127.0.0.1
allow_anonymous true
"""


class Broker(ChildProcess):
    """One broker, which may be killed and started again on the same ports.

    Args:
        folder: Where its files go.
        persistent: Keep sessions on disk, as shipped; else in memory alone.
        settings: Global settings that replace shipped ones or are added, such as
            ``{"max_inflight_messages": 1}``.
        address: Where it listens for devices.
        called: The address that devices call it by, which its certificate must have.

    Attributes:
        plain_port: No TLS, no access rules.
        device_port: TLS; certificates of ``devices``, ``devices.acl``.
        service_port: TLS; certificates of ``services``, ``services.acl``.
        server_ca: PEM file of the authority of the server's certificate.
        devices: Authority of devices' certificates; after ``devices.revoke(identity)`` restart.
        services: Authority of services' certificates.
        log: What it has said.
    """

    def __init__(
        self,
        folder: Path,
        *,
        persistent: bool = True,
        settings: dict[str, object] | None = None,
        address: str = "127.0.0.1",
        called: str = "127.0.0.1",
    ) -> None:
        self._folder = folder / "broker"
        super().__init__(self._folder / "log")
        self._data = self._folder / "data"
        self._data.mkdir(parents=True)
        self._settings = {"persistence": str(persistent).lower(), **(settings or {})}
        self._address = address
        self.plain_port, self.device_port, self.service_port = free_ports(3)
        self.devices = Authority(self._folder, "devices")
        self.services = Authority(self._folder, "services")
        server = Authority(self._folder, "server")
        self.server_ca = server.certificate
        identity = server.issue("localhost", server=True, addresses=("127.0.0.1", called))
        shutil.copy(identity.certificate, self._folder / "server.pem")
        shutil.copy(identity.key, self._folder / "server-key.pem")
        for name in ("devices.acl", "services.acl"):
            shutil.copy(SHIPPED / name, self._folder / name)
        self._config = self._folder / "mosquitto.conf"
        self._config.write_text(self._configuration())

    def start(self) -> None:
        """Start it, and wait until it listens.

        Raises:
            RuntimeError: It ended, or does not listen in time; with what it said.
        """
        self._begin([_program(), "-c", self._config])
        ports = (self.plain_port, self.device_port, self.service_port)
        addresses = ("127.0.0.1", self._address, "127.0.0.1")
        self._wait_for(
            lambda: all(map(_listens, ports, addresses)), "mosquitto does not listen", _START_S
        )

    def restart(self, *, crash: bool = False) -> None:
        """End it and start it again on the same ports."""
        self._end(signal.SIGKILL if crash else signal.SIGTERM)
        self.start()

    def forget(self) -> None:
        """Lose all sessions and retained messages, as with a broken disk; it is not running."""
        assert self._process is None, "the broker is running"
        for file in self._data.iterdir():
            file.unlink()

    def pause(self) -> None:
        """Stop it in its tracks (SIGSTOP): connections stay, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def save(self) -> None:
        """Have it write its sessions down now (SIGUSR1)."""
        database = self._data / "mosquitto.db"
        before = database.stat().st_mtime_ns if database.exists() else 0
        os.kill(self.pid, signal.SIGUSR1)
        deadline = time.monotonic() + _START_S
        while not database.exists() or database.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline, "mosquitto wrote no sessions"
            time.sleep(0.02)

    def reload(self) -> None:
        """Have it read configuration, access rules and its own certificate anew (SIGHUP)."""
        os.kill(self.pid, signal.SIGHUP)

    def device(self, device: Device) -> Identity:
        """Return a new certificate of a device."""
        return self.devices.issue(device.path)

    def _configuration(self) -> str:
        """Return the shipped configuration with the test's ports, folders and settings."""
        text = (SHIPPED / "mosquitto.conf").read_text()
        moved = {
            _SHIPPED_FOLDER: str(self._folder),
            "/var/lib/mosquitto/": f"{self._data}/",
            "listener 8883": f"listener {self.device_port} {self._address}",
            "listener 8884": f"listener {self.service_port} 127.0.0.1",
        }
        for shipped, ours in moved.items():
            assert shipped in text, f"{shipped} is not in the shipped configuration"
            text = text.replace(shipped, ours)
        settings = dict(self._settings)
        if os.geteuid() == 0:  # pytest's folders are root's alone
            settings["user"] = "root"
        lines = [line for line in text.splitlines() if line.split(" ")[0] not in settings]
        # Global settings stand before the first listener.
        head = [f"{name} {value}" for name, value in settings.items()]
        return "\n".join([*head, *lines]) + _PLAIN.format(port=self.plain_port)


def _program() -> str:
    """Return mosquitto's path; Debian's is not in every user's PATH."""
    found = shutil.which(
        "mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    )
    assert found is not None, "these tests need mosquitto: apt-get install mosquitto"
    return found


def _listens(port: int, address: str) -> bool:
    try:
        socket.create_connection((address, port), 1.0).close()
    except OSError:
        return False
    return True
