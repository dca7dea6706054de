"""Refuses options that would do nothing; what a build's mean for a model, the pipeline refuses."""

from __future__ import annotations

import click
from click.core import ParameterSource


def refuse_idle(reason: str, *names: str) -> None:
    """Refuse options of the running command that a person gave though they would do nothing.

    One that only has a default, or that the environment sets for other calls, is let be.

    Args:
        reason: What is missing, or there, as in "without --data".
        names: The options' parameter names.

    Raises:
        UsageError: One of them stands on the command line.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and parameter.name in names:
            raise click.UsageError(f"{parameter.opts[0]} does nothing {reason}", context)
