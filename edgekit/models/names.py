"""What a model's name alone says: its repository on the hub, or why it is not built.

A name is looked at only where there is no folder of it, and before anything is fetched. One that
says nothing here may still be refused, by its ``config.json``.
"""

from __future__ import annotations

import difflib
import re

from edgekit.errors import UnsupportedModelError
from edgekit.models.published import PUBLISHED, PublishedModel

OWNER = "deepseek-ai/"

_DENSE = "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"
_EXPERTS = "a mixture of experts"
_LATENT = "a mixture of experts with multi-head latent attention"
_SPARSE: tuple[tuple[str, str], ...] = (
    (r"deepseek-moe-.*", _EXPERTS),
    (r"deepseek-(coder-)?v2(\.5)?(-.*)?", _LATENT),
    (r"deepseek-v3(\.\d)?(-.*)?", _LATENT),
    (r"deepseek-r1(-zero|-0528)?", _LATENT),
    (r"deepseek-prover-v2(-671b)?", _LATENT),
    (r"deepseek-math-v2", _LATENT),
)
"""Names of DeepSeek's sparse models, in lower case and whole, and what they are. Source: the
repositories of deepseek-ai; dense models named alike (R1-Distill, Prover-V2-7B) match none."""


def published_model(name: str) -> PublishedModel | None:
    """Return a published model by its name; None for any other.

    Args:
        name: Its hub id, with or without the owner, or what the name says after ``DeepSeek-``.
    """
    for model in PUBLISHED:
        base = model.hub_id.removeprefix(OWNER)
        if name in {model.hub_id, base, base.partition("-")[2]}:
            return model
    return None


def refuse_sparse_name(name: str) -> None:
    """Refuse a sparse DeepSeek model by its name, with or without the owner.

    Raises:
        UnsupportedModelError: It is one.
    """
    base = name.removeprefix(OWNER).lower()
    for pattern, what in _SPARSE:
        if re.fullmatch(pattern, base):
            raise UnsupportedModelError(
                f"{name} is {what}, which edgekit does not build: its graphs are of dense models "
                "under 13 B parameters",
                f"Use a dense one, such as {_DENSE}; `edgekit recipes` lists them",
            )


def near_names(name: str) -> str:
    """Return a sentence with the published model whose name is nearest; empty for none.

    Args:
        name: What was given, with or without the owner.

    Returns:
        ``Did you mean NAME? ``, to be followed by what else can be done.
    """
    owner, slash, base = name.rpartition("/")
    if slash and owner.lower() != OWNER.rstrip("/"):
        return ""
    names = {model.hub_id.removeprefix(OWNER).lower(): model.hub_id for model in PUBLISHED}
    near = difflib.get_close_matches(base.lower(), names, n=1, cutoff=0.75)
    return f"Did you mean {names[near[0]]}? " if near and names[near[0]] != name else ""
