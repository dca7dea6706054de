"""From MODEL to a folder: a local checkpoint, or a snapshot of a Hugging Face repository.

Only data files are fetched; remote code is never fetched and never run. Downloads resume, and
``HF_HUB_OFFLINE`` and the cache are honoured, both by huggingface_hub itself.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.checkpoint.files import is_folder, is_present, shown
from edgekit.errors import CheckpointError, HubError, MissingExtraError
from edgekit.progress import SILENT, Progress
from edgekit.units import format_bytes

PATTERNS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
DESCRIPTION_PATTERNS = ("config.json", "generation_config.json", "*.safetensors.index.json")
"""What says what a model is, but for its weights' headers."""
PICKLED_PATTERNS = ("pytorch_model*.bin",)
"""Fetched as well when a repository has no safetensors; never unpickled (``pytorch_zip.py``)."""
SUBFOLDERS = "*/*"
"""Left out: other precisions and frameworks, which no checkpoint needs."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def resolve_model(model: str, *, revision: str | None = None, progress: Progress = SILENT) -> Path:
    """Return the folder of a checkpoint, fetching it when MODEL is a hub id.

    Raises:
        CheckpointError: MODEL is neither a folder nor of the form of a hub id.
        HubError: The repository is not found, gated, or offline and not cached.
    """
    local = local_folder(model)
    if local is not None:
        return local
    progress.advance(0, f"fetching {model}")
    folder = _fetch_weights(model, revision, _byte_bar(model, progress))
    if folder is None:
        raise no_weights(model)
    return folder


def local_folder(model: str) -> Path | None:
    """Return the folder that MODEL is; None when it is a hub id.

    Raises:
        CheckpointError: It is neither a folder nor of the form of a hub id.
    """
    path = Path(model).expanduser()
    if is_folder(path):
        return path
    if is_present(path):
        raise CheckpointError(f"{model} is a file", "Point MODEL at the folder it is in")
    if not _HUB_ID.fullmatch(model) or model.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{shown(model)} is neither a folder nor a hub id (owner/name)",
            "Check the path, or give an id like deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        )
    return None


def fetch_description(model: str, revision: str | None, progress: Progress = SILENT) -> Path:
    """Return the folder with a hub id's configuration and index of shards, fetched if need be.

    Raises:
        HubError: The repository is not found, gated, or offline and not cached.
    """
    progress.advance(0, f"fetching {model}")
    return _fetch(model, revision, DESCRIPTION_PATTERNS, _byte_bar(model, progress))


def cached_weights(model: str, commit: str) -> Path | None:
    """Return the folder of a hub id's commit if all that a build fetches is in the cache."""
    try:
        return _fetch_weights(model, commit, None)
    except HubError:
        return None


def _fetch_weights(model: str, revision: str | None, bar: type | None) -> Path | None:
    """Fetch all that a build reads, or look for it in the cache; None where there are no weights.

    Args:
        model: Hub id.
        revision: Commit, tag or branch.
        bar: Told of the bytes; None looks in the cache only.
    """
    folder = _fetch(model, revision, PATTERNS, bar)
    if any(folder.glob("*.safetensors")):
        return folder
    folder = _fetch(model, revision, (*PATTERNS, *PICKLED_PATTERNS), bar)
    return folder if any(folder.glob(PICKLED_PATTERNS[0])) else None


def no_weights(model: str) -> HubError:
    """Return the error of a repository without weights."""
    return HubError(
        f"{model} publishes no weights that edgekit reads (*.safetensors, pytorch_model*.bin)",
        "Use another repository of the model, or convert it with transformers' save_pretrained and "
        "point MODEL at that folder",
    )


def hub_commit(folder: Path) -> str | None:
    """Return the commit of a folder of a Hugging Face cache; None for any other folder."""
    snapshots = folder.resolve().parent
    cached = snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--")
    name = folder.resolve().name
    return name if cached and _COMMIT.fullmatch(name) else None


def _byte_bar(model: str, progress: Progress) -> type:
    """Return a class for the hub client's bars that counts fetched bytes into ``progress``."""
    try:
        from tqdm import tqdm  # noqa: PLC0415 - comes with huggingface_hub
    except ImportError as error:
        raise MissingExtraError(f"fetching {model} from the hub", "host") from error
    lock = threading.Lock()

    class ByteBar(tqdm):  # type: ignore[misc]  # tqdm is untyped
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Of the client's bars one counts files, and one the bytes on the wire, compressed.
            self._counts = kwargs.get("unit") == "B" and kwargs.get("desc") != "Downloading bytes"
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self._counts and n:
                of = f" of {format_bytes(self.total)}" if self.total else ""
                with lock:
                    progress.advance(int(n), f"fetching {model}{of}")

    return ByteBar


def _fetch(model: str, revision: str | None, patterns: tuple[str, ...], bar: type | None) -> Path:
    with hub_errors(model, revision, "Run the same command again: the download resumes"):
        import huggingface_hub as hub  # noqa: PLC0415 - optional, and slow to import

        folder = hub.snapshot_download(
            model,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=[SUBFOLDERS],
            tqdm_class=bar,
            local_files_only=bar is None,
        )
    return Path(folder)


@contextlib.contextmanager
def hub_errors(model: str, revision: str | None, remedy: str) -> Iterator[None]:
    """Turn what the hub's client raises into errors of one line.

    Args:
        model: Hub id that is asked for.
        revision: Of it.
        remedy: What to do about an error of the network.

    Raises:
        HubError: What the hub refuses, or that it cannot be reached.
        MissingExtraError: Its client is not installed.
    """
    try:
        from huggingface_hub import errors  # noqa: PLC0415 - optional, and slow to import
    except ImportError as error:
        raise MissingExtraError(f"fetching {model} from the hub", "host") from error
    # The HTTP library's own error, whichever httpx this version of the hub's client uses.
    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    at = f"{model} at revision {revision}" if revision else model
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(f"{model} is gated", "Accept its terms and run `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{model} has no revision {revision}", "Check --revision") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"the hub has no model {model}, or it is private, and there is no such folder here",
            "Check the path or the id, or `hf auth login`",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise HubError(
            f"{at} is not, or not wholly, in the cache, and the hub cannot be reached",
            "Connect, unset HF_HUB_OFFLINE, or point MODEL at a folder: there is none of this name",
        ) from error
    except (http_error, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubError(f"fetching {at} failed: {first}", remedy) from error
