"""The command group of ``edgekit-fleet``; errors and exit codes are those of ``edgekit``."""

from __future__ import annotations

from importlib.util import find_spec

import click

from edgekit import __version__
from edgekit.cli.main import LazyGroup
from edgekit.errors import MissingExtraError

COMMANDS = {
    "ingest": "Move telemetry from the broker to the store.",
    "store": "Make, look after, back up and restore the store.",
    "devices": "List the devices, or show one.",
    "samples": "Show what a device measured.",
    "config": "Sign configurations and commands, and hand them out.",
    "export": "Write what the store gets to Prometheus.",
    "simulate": "Run made-up devices against a broker.",
}
NEEDED = (
    "alembic",
    "cramjam",
    "httpx",
    "msgspec",
    "paho",
    "prometheus_client",
    "psycopg",
    "sqlalchemy",
)
"""Packages of the extra ``fleet`` that these commands import."""


class FleetGroup(LazyGroup):
    """Commands that need the extra ``fleet``."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module and return its ``command``.

        Raises:
            MissingExtraError: The extra is not installed.
        """
        if any(find_spec(name) is None for name in NEEDED):
            raise MissingExtraError("edgekit-fleet", "fleet")
        return super().get_command(ctx, cmd_name)


@click.group(
    cls=FleetGroup,
    listed=COMMANDS,
    package="ota.cli.commands",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "EDGEKIT_FLEET",
    },
)
@click.version_option(__version__, package_name="edgekit")
def cli() -> None:
    r"""Run the cloud's side of a fleet: telemetry into a store.

    \b
    edgekit-fleet store migrate --store sqlite:////var/lib/edgekit/store.db
    edgekit-fleet ingest --store sqlite:////var/lib/edgekit/store.db --broker mqtt://localhost
    """
