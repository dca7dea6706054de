"""The tokenizer's files: which there are, and the chat template wherever it stands."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edgekit.checkpoint.files import contained_file, read_errors
from edgekit.errors import CheckpointError

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
OPTIONAL_FILES = ("chat_template.jinja", "generation_config.json", "special_tokens_map.json")
MAX_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Files a bundle carries, by the name they keep."""

    files: dict[str, Path]


def has_tokenizer(folder: Path) -> bool:
    """Tell whether the files that every tokenizer has are in the folder, unopened.

    Raises:
        CheckpointError: One is a link out of the folder.
    """
    needed = (TOKENIZER, TOKENIZER_CONFIG)
    return all(contained_file(folder, name) is not None for name in needed)


def find_tokenizer(folder: Path) -> TokenizerFiles:
    """Locate the tokenizer of a checkpoint.

    Raises:
        CheckpointError: ``tokenizer.json`` or ``tokenizer_config.json`` is missing, or a file is
            too large, not readable, or a link out of the folder.
    """
    files: dict[str, Path] = {}
    for name in (TOKENIZER, TOKENIZER_CONFIG):
        path = contained_file(folder, name)
        if path is None:
            slow = contained_file(folder, "tokenizer.model") is not None
            remedy = (
                "Convert tokenizer.model with transformers: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
                if slow
                else "Copy it from the model's repository"
            )
            raise CheckpointError(f"{folder} has no {name}", remedy)
        files[name] = path
    for name in OPTIONAL_FILES:
        path = contained_file(folder, name)
        if path is not None:
            files[name] = path
    for name, path in files.items():
        with read_errors(path), path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            size = file.tell()
        if size > MAX_FILE_BYTES:
            raise CheckpointError(f"{name} is larger than {MAX_FILE_BYTES} bytes")
    return TokenizerFiles(files)
