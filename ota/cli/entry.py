"""The entry point of ``edgekit-fleet``: a clear line where the cloud's packages are missing."""

from __future__ import annotations


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit."""
    from edgekit.cli.main import run_group  # noqa: PLC0415 - what a missing package may break
    from ota.cli.main import cli  # noqa: PLC0415

    run_group(cli, "edgekit-fleet", args)
