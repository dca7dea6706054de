"""What a build's options mean for a model: refused where they would do nothing, resolved elsewhere.

Shared by both exporters. An option that does nothing is an error, as an unknown recipe key is.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.checkpoint.files import is_folder
from edgekit.errors import CheckpointError, EdgekitError, RecipeError, UnsupportedModelError
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import MIN_CONTEXT


def refuse_idle_options(request: BuildRequest) -> None:
    """Refuse options that would do nothing.

    Raises:
        CheckpointError: A revision of a local folder.
        RecipeError: Calibration data for a recipe that reads none.
    """
    recipe = request.recipe
    if request.revision is not None and is_local(request.model):
        raise CheckpointError(
            f"--revision {request.revision} chooses a version of a hub repository, and "
            f"{request.model} is a folder",
            "Leave --revision out, or give the hub id",
        )
    if not request.compile_check and not request.target.tensorrt:
        raise EdgekitError(
            f"--no-compile-check leaves nothing out: target {request.target.name} runs no TensorRT",
            "Leave --no-compile-check out",
        )
    if request.calibration is not None and not recipe.needs_calibration:
        raise RecipeError(
            f"recipe {recipe.name} uses no calibration data",
            "Leave --calibration out, or use --recipe w4a16-gptq-g64",
        )


def is_local(model: str) -> bool:
    """Whether MODEL is a folder rather than a hub id.

    Raises:
        CheckpointError: The system does not let one look.
    """
    return is_folder(Path(model).expanduser())


def model_name(model: str) -> str:
    """Return what a bundle of MODEL is named: the folder's own name, or the repository's.

    The name stands in the manifest, so ``.``, ``../m`` and ``./m`` must give the same one. Links
    are not followed: a link's name says more than that of the snapshot it leads to.
    """
    path = Path(model).expanduser()
    named = Path(os.path.abspath(path)) if is_local(model) else path  # noqa: PTH100 - see above
    return named.name or "model"


def choose_context(request: BuildRequest, limit: int) -> int:
    """Return the tokens a sequence can hold: as asked for, or the recipe's, cut to the model's.

    Args:
        request: The build.
        limit: Most tokens the model is made for.

    Raises:
        UnsupportedModelError: More is asked for, or less is left than a golden sequence has.
    """
    asked = request.max_context
    if asked is not None and asked > limit:
        raise UnsupportedModelError(
            f"--max-context {asked} is more than the model holds: {limit} tokens",
            f"Use --max-context {limit} or less",
        )
    context = min(asked or request.recipe.graph.max_context, limit)
    if context < MIN_CONTEXT:
        of = "--max-context" if asked is not None and asked < MIN_CONTEXT else "the model's context"
        raise UnsupportedModelError(
            f"{of} is {context} tokens, a bundle needs {MIN_CONTEXT}: its golden sequences have "
            "that many",
        )
    return context
