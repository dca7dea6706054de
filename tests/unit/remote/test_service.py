"""The fleet's service over real mutual TLS: each device sees its own, and sends what was asked."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mqtt_certificates import Authority
from remote_cases import DAY_MS, KEY, NOW_MS, STRANGER, command, configuration, signed, trusting
from service_cases import Service, fleet_service

from edgekit.contracts.envelope import Envelope
from edgekit.contracts.signed import Audience
from edgekit.contracts.topics import Device
from edgekit.errors import ConfigError, EdgekitError, MessageError, TrustError
from ota.config.app import MAX_DIAGNOSTIC_BYTES
from ota.config.peer import device_named, device_of
from ota.config.server import server_config
from ota.config.store import MAX_COMMANDS, DocumentStore

EU, US = Audience("cohort", "eu"), Audience("cohort", "us")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with fleet_service(tmp_path) as running:
        yield running


def audiences(response: httpx.Response) -> list[Any]:
    """Return whom the documents of an answer are for."""
    assert response.status_code == 200, response.text
    found = [Envelope.from_dict(row) for row in response.json()["documents"]]
    documents = [json.loads(envelope.payload) for envelope in found]
    return [one.get("audience", one.get("id")) for one in documents]


def test_a_device_is_given_what_is_for_it(service: Service) -> None:
    """Its cohorts', its own, its commands by counter; nothing of others, of any tenant."""
    mine = configuration({})
    theirs = configuration({}, audience=Audience("device", "orin-2"))
    service.publish(
        signed(mine),
        signed(theirs),
        signed(configuration({}, audience=EU)),
        signed(configuration({}, audience=US)),
        signed(configuration({}, tenant="other")),
        signed(command("live", {"minutes": 1}, 9)),
        signed(command("live", {"minutes": 1}, 10)),
        signed(command("live", {"minutes": 1}, 1, device="orin-2")),
    )
    with service.client(service.identity()) as client:
        found = audiences(client.get("/v1/pending?cohort=eu"))
        assert found == [{"cohort": "eu"}, {"device": "orin-1"}, "c-9", "c-10"]
        assert audiences(client.get("/v1/pending")) == [{"device": "orin-1"}, "c-9", "c-10"]
    with service.client(service.identity("acme/device/orin-2")) as client:
        assert audiences(client.get("/v1/pending")) == [{"device": "orin-2"}, "c-1"]
    with service.client(service.identity("other/device/orin-9")) as client:
        assert audiences(client.get("/v1/pending?cohort=eu")) == []


def test_asked_again_it_answers_without_a_body(service: Service) -> None:
    """The tag of an answer costs a metered link some hundred bytes; a new document another."""
    service.publish(signed(configuration({})))
    with service.client(service.identity()) as client:
        first = client.get("/v1/pending")
        tag = {"if-none-match": first.headers["etag"]}
        again = client.get("/v1/pending", headers=tag)
        assert (again.status_code, again.content) == (304, b"")
        service.publish(signed(configuration({}, 2)))
        assert client.get("/v1/pending", headers=tag).status_code == 200


def test_what_has_expired_is_not_given(service: Service) -> None:
    """A device would refuse it."""
    service.publish(signed(configuration({})), signed(command("live", {"minutes": 1})))
    service.now_ms += DAY_MS
    with service.client(service.identity()) as client:
        assert audiences(client.get("/v1/pending")) == [{"device": "orin-1"}]


def test_nobody_without_a_certificate_is_answered(service: Service, tmp_path: Path) -> None:
    """No certificate, and one of another authority, end in the handshake."""
    stranger = Authority(tmp_path / "other", "other").issue("acme/device/orin-1")
    for identity in (None, stranger):
        with service.client(identity) as client, pytest.raises(httpx.TransportError):
            client.get("/v1/pending")


@pytest.mark.parametrize("name", ["orin-1", "acme/device/", "acme/device/a/b", "a b/device/c", "*"])
def test_a_certificate_that_names_no_device_is_refused(service: Service, name: str) -> None:
    """The subject has to be TENANT/device/DEVICE; a header changes nothing of it."""
    with service.client(service.authority.issue(name)) as client:
        headers = {"x-ssl-client-s-dn": "CN=acme/device/orin-1", "x-forwarded-for": "127.0.0.1"}
        assert client.get("/v1/pending", headers=headers).status_code == 403


def test_a_revoked_certificate_is_refused(tmp_path: Path) -> None:
    """With a revocation list a stolen device's certificate ends in the handshake."""
    with fleet_service(tmp_path, crl=True) as service:
        with service.client(service.identity()) as client:
            assert client.get("/v1/pending").status_code == 200
        stolen = service.identity("acme/device/stolen")
        with service.client(stolen) as client, pytest.raises(httpx.TransportError):
            client.get("/v1/pending")


def test_without_tls_nobody_is_a_device() -> None:
    """Under a server that proves nothing, each request is refused."""
    scopes: list[dict[str, Any]] = [
        {},
        {"extensions": {"tls": {}}},
        {"extensions": {"tls": _failed()}},
    ]
    for scope in scopes:
        with pytest.raises(TrustError, match="no certificate"):
            device_of({"type": "http", **scope})
    assert device_named("acme/device/x").tenant == "acme"


def _failed() -> dict[str, Any]:
    return {"client_cert_chain": ["x"], "client_cert_error": "expired"}


def test_a_bundle_is_taken_once(service: Service) -> None:
    """The one who was asked may send it, to its end, and then nobody any more."""
    service.publish(signed(command("logs", {"url": f"{service.url}/v1/diagnostics/c-1"})))
    with service.client(service.identity("acme/device/orin-2")) as client:
        assert client.put("/v1/diagnostics/c-1", content=b"x").status_code == 404
    place = service.folder / "store/acme/diagnostics/orin-1/c-1.tar.zst"
    with service.client(service.identity()) as client:
        assert client.put("/v1/diagnostics/c-9", content=b"x").status_code == 404
        assert client.put("/v1/diagnostics/..", content=b"x").status_code == 404
        assert client.put("/v1/diagnostics/c-1", content=b"bundle").status_code == 201
        assert client.put("/v1/diagnostics/c-1", content=b"other").status_code == 409
    assert place.read_bytes() == b"bundle"
    assert [path.name for path in place.parent.iterdir()] == ["c-1.tar.zst"]


def test_a_command_that_asks_for_no_bundle_gets_none(service: Service) -> None:
    """Live mode's id opens nothing; and the time for an upload ends."""
    service.publish(
        signed(command("live", {"minutes": 1})),
        signed(command("logs", {"url": f"{service.url}/v1/diagnostics/c-2"}, 2)),
    )
    with service.client(service.identity()) as client:
        assert client.put("/v1/diagnostics/c-1", content=b"x").status_code == 404
        service.now_ms += DAY_MS
        assert client.put("/v1/diagnostics/c-2", content=b"x").status_code == 404


def test_a_bundle_that_is_too_large_is_refused(service: Service) -> None:
    """Whether its length is told or not, nothing is kept, and the id stays open."""
    service.publish(signed(command("logs", {"url": f"{service.url}/v1/diagnostics/c-1"})))
    piece = b"\0" * (1 << 20)

    def pieces() -> Iterator[bytes]:
        for _ in range(MAX_DIAGNOSTIC_BYTES // len(piece) + 1):
            yield piece

    head = f"PUT /v1/diagnostics/c-1 HTTP/1.1\r\nhost: a\r\ncontent-length: {9 << 20}\r\n\r\n"
    assert said_to(service, head).startswith(b"HTTP/1.1 413 ")
    with service.client(service.identity()) as client:
        assert _status_of(client, pieces()) in {413, None}
    folder = service.folder / "store/acme/diagnostics/orin-1"
    assert not list(folder.iterdir())
    with service.client(service.identity()) as client:
        assert client.put("/v1/diagnostics/c-1", content=b"small").status_code == 201


def said_to(service: Service, head: str) -> bytes:
    """Return the beginning of what is answered to a request's head, without its body."""
    identity = service.identity()
    context = ssl.create_default_context(cafile=service.authority.certificate)
    context.load_cert_chain(identity.certificate, identity.key)
    with (
        socket.create_connection(("127.0.0.1", service.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(head.encode())
        return connection.recv(4096)


def _status_of(client: httpx.Client, pieces: Iterator[bytes]) -> int | None:
    try:
        return client.put("/v1/diagnostics/c-1", content=pieces).status_code
    except httpx.TransportError:  # the service closed while the client still sent
        return None


def test_of_two_that_come_at_once_one_is_kept(service: Service) -> None:
    """Uploads in step with each other: one is taken, and the file is that one's alone."""
    service.publish(signed(command("logs", {"url": f"{service.url}/v1/diagnostics/c-1"})))
    begin, identity = threading.Barrier(4), service.identity()
    found: list[int | None] = []

    def send(text: bytes) -> None:
        def pieces() -> Iterator[bytes]:
            yield text
            begin.wait(10)
            yield text

        with service.client(identity) as client:
            found.append(_status_of(client, pieces()))

    threads = [threading.Thread(target=send, args=(b"%d" % n * 1000,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 4
    assert found.count(201) == 1
    assert set(found) <= {201, 409, None}
    data = (service.folder / "store/acme/diagnostics/orin-1/c-1.tar.zst").read_bytes()
    assert data in {b"%d" % n * 2000 for n in range(4)}


def test_only_what_devices_would_take_is_published(tmp_path: Path) -> None:
    """Unsigned, expired, of an old counter, off the list: who publishes is told."""
    store, keys = DocumentStore(tmp_path), trusting(KEY)
    store.publish(signed(configuration({}, 5)), keys, NOW_MS)
    store.publish(signed(command("live", {"minutes": 1}, 5)), keys, NOW_MS)
    unsigned = Envelope(configuration({}).TYPE, configuration({}, 6).to_bytes())
    cases: list[tuple[Envelope, type[EdgekitError], str]] = [
        (unsigned, TrustError, "1 must"),
        (signed(configuration({}, 6), STRANGER), TrustError, "1 must"),
        (signed(configuration({}, 5, issued_ms=1)), TrustError, "5 is published already"),
        (signed(configuration({}, 6, expires_ms=NOW_MS)), TrustError, "has expired"),
        (signed(configuration({"serve": {}}, 6)), MessageError, "may not be set"),
        (signed(command("live", {}, 6)), MessageError, "takes minutes"),
        (signed(command("live", {"minutes": 1}, 5, id="x")), TrustError, "5 is published"),
        (signed(command("live", {"minutes": 1}, 6, id="c-5")), TrustError, "a command c-5"),
    ]
    for envelope, kind, said in cases:
        with pytest.raises(kind, match=said):
            store.publish(envelope, keys, NOW_MS)
    assert store.publish(signed(configuration({}, 6)), keys, NOW_MS).counter == 6


def test_a_configuration_is_published_again_with_other_signatures(tmp_path: Path) -> None:
    """So keys are changed; another document of the same counter is refused."""
    store, keys = DocumentStore(tmp_path), trusting(KEY, STRANGER)
    document = configuration({}, 5)
    store.publish(signed(document), keys, NOW_MS)
    store.publish(signed(document, KEY, STRANGER), keys, NOW_MS)
    (found,) = store.pending(Device("acme", "orin-1"), [], NOW_MS)
    assert len(found.signatures) == 2
    with pytest.raises(TrustError, match="5 is published"):
        store.publish(signed(configuration({"log": {"level": "info"}}, 5)), keys, NOW_MS)


def test_a_damaged_document_keeps_no_other_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told by its file, and devices are given the rest."""
    store, keys = DocumentStore(tmp_path), trusting(KEY)
    store.publish(signed(configuration({})), keys, NOW_MS)
    store.publish(signed(configuration({}, audience=EU)), keys, NOW_MS)
    (tmp_path / "acme/configuration/cohort/eu.json").write_bytes(b"{")
    assert len(store.pending(Device("acme", "orin-1"), ["eu"], NOW_MS)) == 1
    assert "eu.json is damaged" in caplog.text


def test_commands_do_not_pile_up(tmp_path: Path) -> None:
    """So many wait for a device at once that it can read them all; expired ones do not count."""
    store, keys = DocumentStore(tmp_path), trusting(KEY)
    for counter in range(1, MAX_COMMANDS + 1):
        store.publish(signed(command("live", {"minutes": 1}, counter)), keys, NOW_MS)
    further = signed(command("live", {"minutes": 1}, 99, expires_ms=NOW_MS + 2 * DAY_MS))
    with pytest.raises(TrustError, match="commands wait"):
        store.publish(further, keys, NOW_MS)
    assert store.publish(further, keys, NOW_MS + DAY_MS).counter == 99


def test_tls_files_that_are_none_are_told(tmp_path: Path) -> None:
    """A service that could check nobody does not start."""
    authority = Authority(tmp_path, "devices")
    identity = authority.issue("localhost", server=True)
    for broken in ("certificate", "key", "client_ca"):
        files = {
            "certificate": identity.certificate,
            "key": identity.key,
            "client_ca": authority.certificate,
        }
        with pytest.raises(ConfigError, match="TLS cannot use"):
            server_config(
                lambda *_: None,  # type: ignore[arg-type]  # never asked
                **{**files, broken: tmp_path / "none"},
                host="127.0.0.1",
                port=0,
            )
