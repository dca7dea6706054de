"""The tokenizer's files: which there are, and the chat template wherever it stands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import CheckpointError

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
OPTIONAL_FILES = ("chat_template.jinja", "generation_config.json", "special_tokens_map.json")
MAX_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Files a bundle carries, by the name they keep."""

    files: dict[str, Path]


def find_tokenizer(folder: Path) -> TokenizerFiles:
    """Locate the tokenizer of a checkpoint.

    Raises:
        CheckpointError: ``tokenizer.json`` or ``tokenizer_config.json`` is missing or too large.
    """
    files = {}
    for name in (TOKENIZER, TOKENIZER_CONFIG):
        if not (folder / name).is_file():
            slow = (folder / "tokenizer.model").is_file()
            remedy = (
                "Convert tokenizer.model with transformers: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
                if slow
                else "Copy it from the model's repository"
            )
            raise CheckpointError(f"{folder} has no {name}", remedy)
        files[name] = folder / name
    for name in OPTIONAL_FILES:
        if (folder / name).is_file():
            files[name] = folder / name
    for name, path in files.items():
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CheckpointError(f"{name} is larger than {MAX_FILE_BYTES} bytes")
    return TokenizerFiles(files)
