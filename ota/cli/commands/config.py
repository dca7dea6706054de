"""``edgekit-fleet config``: keys, signed documents, and the service that hands them out.

Signing needs no network and no store: it can be done on a machine that has neither.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from edgekit.bundle.storage import write_atomic
from edgekit.contracts.canonical import read_limited
from edgekit.contracts.envelope import MAX_ENVELOPE_BYTES, Envelope
from edgekit.errors import StorageError
from edgekit.signing import ROLES, Role, SigningKey, TrustedKeys, verify
from ota.config.store import DocumentStore, read_document
from ota.config.written import document_of

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@click.group()
def command() -> None:
    """Sign configurations and commands for devices, and hand them out."""


@command.command()
@click.argument("path", type=_FILE)
@click.option("--trust", type=_FILE, help="add its public half to this file of trusted keys")
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(sorted(ROLES.values())),
    help="what it may sign (default: all)",
)
@click.option("--threshold", type=click.IntRange(1), help="how many keys of a role have to sign")
def keygen(path: Path, trust: Path | None, roles: tuple[str, ...], threshold: int | None) -> None:
    """Make a key that signs, in a new file PATH that its owner alone may read."""
    key = SigningKey.generate()
    names = roles or tuple(sorted(ROLES.values()))
    trusted = None if trust is None else _extended(trust, key, names, threshold)
    key.save(path)
    if trust is not None and trusted is not None:
        write_atomic(trust, trusted.to_bytes(), option="--trust")
    click.echo(key.public.keyid)


@command.command()
@click.argument("source", type=_FILE)
@click.option("--key", "keys", multiple=True, required=True, type=_FILE, help="PEM file of a key")
@click.option("--out", type=_FILE, required=True, help="file of the signed document")
@click.option(
    "--documents", "store", type=_FOLDER, help="take the next counter after what is published here"
)
def sign(source: Path, keys: tuple[Path, ...], out: Path, store: Path | None) -> None:
    """Sign SOURCE: a TOML file, or a document that others have signed already."""
    data = _read(source)
    if data.lstrip().startswith(b"{"):
        envelope = Envelope.from_bytes(data)
        read_document(envelope)
    else:
        highest = None if store is None else DocumentStore(store).highest_counter
        document = document_of(data, str(source), _now_ms(), highest)
        envelope = Envelope(document.TYPE, document.to_bytes())
        read_document(envelope)
    for key in keys:
        envelope = SigningKey.load(key).sign(envelope)
    write_atomic(out, envelope.to_bytes())
    click.echo(f"{out}: {len(envelope.signatures)} signatures")


@command.command()
@click.argument("document", type=_FILE)
@click.option(
    "--documents", "store", type=_FOLDER, required=True, help="folder of published documents"
)
@click.option("--trusted", type=_FILE, required=True, help="file of trusted keys, as devices have")
def publish(document: Path, store: Path, trusted: Path) -> None:
    """Put a signed DOCUMENT where its devices find it, if they would take it up."""
    envelope = Envelope.from_bytes(_read(document))
    found = DocumentStore(store).publish(envelope, TrustedKeys.load(trusted), _now_ms())
    click.echo(f"{found.NAME} {found.counter} is published")


@command.command()
@click.argument("document", type=_FILE)
@click.option("--trusted", type=_FILE, help="check the signatures against these keys")
def show(document: Path, trusted: Path | None) -> None:
    """Print what a signed DOCUMENT says, and who has signed it."""
    envelope = Envelope.from_bytes(_read(document))
    told: dict[str, Any] = {
        "type": envelope.payload_type,
        "document": read_document(envelope).to_dict(),
        "signed_by": [one.keyid for one in envelope.signatures],
    }
    if trusted is not None:
        told["verified"] = list(verify(envelope, TrustedKeys.load(trusted)))
    click.echo(json.dumps(told, indent=2))


@command.command()
@click.option(
    "--documents", "store", type=_FOLDER, required=True, help="folder of published documents"
)
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen on")
@click.option("--port", default=8443, show_default=True, type=int, help="port to listen on")
@click.option("--certificate", type=_FILE, required=True, help="PEM file of the service's")
@click.option("--key", type=_FILE, required=True, help="PEM file of its key")
@click.option("--client-ca", type=_FILE, required=True, help="authorities of devices' certificates")
@click.option("--crl", type=_FILE, help="PEM file of revoked certificates; read at the start")
def serve(
    store: Path,
    host: str,
    port: int,
    certificate: Path,
    key: Path,
    client_ca: Path,
    crl: Path | None,
) -> None:
    """Hand documents out to devices over HTTPS, each what is for it."""
    import uvicorn  # noqa: PLC0415 - the other commands do without

    from ota.config.app import make_app  # noqa: PLC0415
    from ota.config.server import server_config  # noqa: PLC0415

    found = server_config(
        make_app(DocumentStore(store)),
        certificate=certificate,
        key=key,
        client_ca=client_ca,
        crl=crl,
        host=host,
        port=port,
    )
    server = uvicorn.Server(found)
    server.run()
    if not server.started:
        sys.exit(StorageError.exit_code)


def _extended(
    path: Path, key: SigningKey, names: tuple[str, ...], threshold: int | None
) -> TrustedKeys:
    """Return the keys of a file and one more."""
    roles = dict(TrustedKeys.load(path).roles) if path.exists() else {}
    for name in names:
        before = roles.get(name, Role({}, 1))
        keys = {**before.keys, key.public.keyid: key.public}
        roles[name] = Role(keys, before.threshold if threshold is None else threshold)
    return TrustedKeys(roles)


def _read(path: Path) -> bytes:
    try:
        return read_limited(path, MAX_ENVELOPE_BYTES)
    except OSError as error:
        said = error.strerror or error
        raise StorageError(f"cannot read {path}: {said}", "Name a file that is there") from error
