"""From MODEL to a folder: a local checkpoint, or a snapshot of a Hugging Face repository.

Only data files are fetched; remote code is never fetched and never run. Downloads resume, and
``HF_HUB_OFFLINE`` and the cache are honoured, both by huggingface_hub itself.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgekit.errors import CheckpointError, HubError, MissingExtraError
from edgekit.progress import SILENT, Progress

PATTERNS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
SUBFOLDERS = "*/*"
"""Left out: other precisions and frameworks, which no checkpoint needs."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def resolve_model(model: str, *, revision: str | None = None, progress: Progress = SILENT) -> Path:
    """Return the folder of a checkpoint, fetching it when MODEL is a hub id.

    Raises:
        CheckpointError: MODEL is neither a folder nor of the form of a hub id.
        HubError: The repository is not found, gated, or offline and not cached.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{model} is a file", "Point MODEL at the folder it is in")
    if not _HUB_ID.fullmatch(model) or model.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{model} is neither a folder nor a hub id (owner/name)",
            "Check the path, or give an id like deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        )
    progress.advance(0, f"fetching {model}")
    return _fetch(model, revision)


def _fetch(model: str, revision: str | None) -> Path:
    try:
        import huggingface_hub as hub  # noqa: PLC0415 - optional, and slow to import
        from huggingface_hub import errors  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(f"fetching {model} from the hub", "host") from error
    # The HTTP library's own error, whichever httpx this version of the hub's client uses.
    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    at = f"{model} at revision {revision}" if revision else model
    try:
        folder = hub.snapshot_download(
            model, revision=revision, allow_patterns=list(PATTERNS), ignore_patterns=[SUBFOLDERS]
        )
    except errors.GatedRepoError as error:
        raise HubError(f"{model} is gated", "Accept its terms and run `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{model} has no revision {revision}", "Check --revision") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"the hub has no model {model}, or it is private", "Check the id, or `hf auth login`"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise HubError(
            f"{at} is not, or not wholly, in the cache, and the hub cannot be reached",
            "Connect, unset HF_HUB_OFFLINE, or point MODEL at a folder",
        ) from error
    except (http_error, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubError(
            f"fetching {at} failed: {first}", "Run the same command again: the download resumes"
        ) from error
    return _with_weights(Path(folder), model)


def _with_weights(folder: Path, model: str) -> Path:
    """Refuse a repository that publishes no safetensors; its other weights were not fetched."""
    if any(folder.glob("*.safetensors")):
        return folder
    raise HubError(
        f"{model} publishes no safetensors weights (pickled ones are not fetched: unpickling "
        "executes code)",
        "Convert it once, where you trust it, with transformers' save_pretrained, and point MODEL "
        "at that folder",
    )
