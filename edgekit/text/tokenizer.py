"""The checkpoint's tokenizer: text to ids, ids to text, one token at a time.

A thin wrapper of Hugging Face ``tokenizers`` (Rust) and of the two JSON files beside
``tokenizer.json`` that say which tokens are special. It never runs code from a checkpoint and
does not know chat templates (``chat_template.py``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from edgekit.errors import CheckpointError, MissingExtraError

TOKENIZER_FILE: Final = "tokenizer.json"
TOKENIZER_CONFIG_FILE: Final = "tokenizer_config.json"
GENERATION_CONFIG_FILE: Final = "generation_config.json"
MAX_TOKENIZER_BYTES: Final = 64 << 20
"""Largest ``tokenizer.json`` read; Llama 3's, the largest in use here, has 17 MB."""
LONG_TEXT_CHARS: Final = 1 << 14
"""From here on other threads run while a text is encoded: some 10 ms of one core."""
MAX_CONFIG_BYTES: Final = 4 << 20
"""Largest JSON file read beside it; R1-Distill's ``tokenizer_config.json`` has 7 kB."""
_BYTE_TOKEN: Final = re.compile(r"<0x[0-9A-F]{2}>")


def _byte_letters() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for.

    Source: Radford et al., GPT-2, ``encoder.py`` (``bytes_to_unicode``): printable bytes of Latin-1
    stand for themselves, the others for letters from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_LETTER: Final = _byte_letters()
REPLACEMENT: Final = "\ufffd"
"""What a decoder writes for bytes that are not (yet) UTF-8."""


class Tokenizer:
    """Text to token ids and back.

    Args:
        path: A ``tokenizer.json``.
        config: Content of ``tokenizer_config.json``; names the special tokens.
        generation_config: Content of ``generation_config.json``; its ``eos_token_id`` (an id
            or a list of ids) is added to the tokenizer's own.

    Raises:
        CheckpointError: The file is missing, too large or not a tokenizer, or a special
            token is not in the vocabulary.
        MissingExtraError: ``tokenizers`` is not installed.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = _load(path)
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._added = {token.content: token for token in added}
        self.config: Mapping[str, Any] = config or {}
        self.bos_token = special_token(self.config, "bos_token")
        self.eos_token = special_token(self.config, "eos_token")
        self.bos_token_id = self._special_id(self.bos_token)
        ids = [] if self.eos_token is None else [self._special_id(self.eos_token)]
        ids.extend(_eos_ids(generation_config or {}))
        self.eos_token_ids: tuple[int, ...] = tuple(
            dict.fromkeys(token for token in ids if token is not None)
        )

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read ``tokenizer.json`` and the JSON files beside it, which may be missing."""
        return cls(
            folder / TOKENIZER_FILE,
            read_json_object(folder / TOKENIZER_CONFIG_FILE),
            read_json_object(folder / GENERATION_CONFIG_FILE),
        )

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included (a model's logits may be padded wider)."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return the ids of ``text``.

        Args:
            text: May hold special tokens written out.
            add_special: Begin with the model's bos, as a base model was trained: what
                ``tokenizer.json``'s post-processor adds, or the bos where only
                ``tokenizer_config.json`` asks for one (``add_bos_token``; transformers before 5
                added it in code). A text that begins with its bos gets no second one. Off by
                default: a rendered chat template holds what the model wants.
        """
        plain = self._ids(text, add_special=False)
        bos = self.bos_token_id
        if not add_special or (bos is not None and plain[:1] == [bos]):
            return plain
        ids = self._ids(text, add_special=True)
        if self.config.get("add_bos_token") is True and bos is not None and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    def _ids(self, text: str, *, add_special: bool) -> list[int]:
        if len(text) < LONG_TEXT_CHARS:
            return list(self._tokenizer.encode(text, add_special_tokens=add_special).ids)
        # Unlike ``encode`` it lets go of the interpreter's lock; and it keeps no offsets.
        (found,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special)
        return list(found.ids)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of ``ids``; bytes that are not UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    def token_id(self, token: str) -> int | None:
        """Return the id of a whole token, or None when the vocabulary lacks it."""
        found = self._tokenizer.token_to_id(token)
        return None if found is None else int(found)

    def token_bytes(self, token: int) -> bytes:
        """Return what a token stands for; a part of a character is not UTF-8."""
        written = self._tokenizer.id_to_token(token)
        if written is None:
            return b""
        if written not in self._added:
            if _BYTE_TOKEN.fullmatch(written):  # byte fallback, as Llama 2 has it
                return bytes([int(written[3:5], 16)])
            if all(letter in _BYTE_OF_LETTER for letter in written):
                return bytes(_BYTE_OF_LETTER[letter] for letter in written)
        return str(written).encode()

    def is_added(self, token: str) -> bool:
        """Say whether a text is a token of its own, which no other text is cut into."""
        return token in self._added

    def is_special(self, token: str) -> bool:
        """Say whether a text is a special token, which decoding skips."""
        found = self._added.get(token)
        return found is not None and bool(found.special)

    def source(self) -> str:
        """Return ``tokenizer.json``'s content, as others of its readers want it."""
        return str(self._tokenizer.to_str())

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """Return a decoder to feed one token at a time."""
        return StreamDecoder(self, skip_special=skip_special)

    def _special_id(self, token: str | None) -> int | None:
        if token is None:
            return None
        found = self.token_id(token)
        if found is None:
            raise CheckpointError(
                f"{TOKENIZER_CONFIG_FILE} names the special token {token!r}, "
                f"which {TOKENIZER_FILE} does not have",
                "Take both files from the same checkpoint",
            )
        return found


class StreamDecoder:
    """Decodes a growing token sequence; the pieces joined are the decode of the whole.

    A character may need several tokens (one per UTF-8 byte at worst), so a piece is held back
    while it ends in U+FFFD. A token may also decode differently after another (a leading
    space is stripped at the start of a text), so each step decodes a window that begins one
    settled piece earlier and emits what is new in it.

    Exact for byte-level tokenizers, which every DeepSeek checkpoint has. A tokenizer with
    byte fallback (Llama 2's kind) rewrites settled text when an invalid byte follows a valid
    one; there the pieces differ from the whole in such damaged places only.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._window: list[int] = []
        self._context = 0  # tokens of the window that are settled and only give context
        self._emitted = 0  # characters of the decoded window already returned

    def feed(self, token: int) -> str:
        """Add one token; return the text it completes, which may be empty."""
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT):
            # Only the last U+FFFD can still become a character: a decoder writes one for an
            # unfinished sequence, and one before another is final.
            piece = text[self._emitted : -1]
            self._emitted += len(piece)
            return piece
        piece = text[self._emitted :]
        del self._window[: self._context]
        self._context = len(self._window)
        self._emitted = len(self._decode(self._window))
        return piece

    def flush(self) -> str:
        """Return what is held back, U+FFFD included, and start over."""
        piece = self._decode(self._window)[self._emitted :]
        self._window, self._context, self._emitted = [], 0, 0
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=self._skip_special)


def special_token(config: Mapping[str, Any], key: str) -> str | None:
    """Return a special token of ``tokenizer_config.json`` as text.

    Both forms are read: a string, and an ``AddedToken`` mapping with ``content``.

    Raises:
        CheckpointError: It is neither.
    """
    value = config.get(key)
    if isinstance(value, Mapping):
        value = value.get("content")
    if value is None or isinstance(value, str):
        return value
    raise CheckpointError(
        f"{TOKENIZER_CONFIG_FILE}: {key} is {value!r:.60}, not a string or an added token",
        "Fetch the file again",
    )


def read_json_object(path: Path, limit_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Return a JSON file's object, or an empty one when there is no such file.

    Raises:
        CheckpointError: It is unreadable, larger than ``limit_bytes``, not JSON, or not an
            object.
    """
    try:
        size = path.stat().st_size
        if size > limit_bytes:
            raise CheckpointError(
                f"{path.name} has {size} bytes, more than the {limit_bytes} edgekit reads",
                "Check that it is the checkpoint's own file",
            )
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is not readable JSON: {error}", "Fetch it again") from (
            error
        )
    if not isinstance(data, dict):
        raise CheckpointError(f"{path.name} holds no JSON object", "Fetch it again")
    return data


def _load(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer as HubTokenizer  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError("Reading a tokenizer", "host") from error
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(
            f"{path.name} is missing or unreadable in {path.parent}",
            "Fetch the checkpoint again; edgekit needs the fast tokenizer's file",
        ) from error
    if size > MAX_TOKENIZER_BYTES:
        raise CheckpointError(
            f"{path.name} has {size} bytes, more than the {MAX_TOKENIZER_BYTES} edgekit reads",
            "Check that it is the checkpoint's own file",
        )
    try:
        return HubTokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception for everything
        raise CheckpointError(
            f"{path.name} is not a tokenizer: {str(error)[:200]}", "Fetch the checkpoint again"
        ) from error


def _eos_ids(generation_config: Mapping[str, Any]) -> list[int]:
    value = generation_config.get("eos_token_id")
    if value is None:
        return []
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids):
        raise CheckpointError(
            f"{GENERATION_CONFIG_FILE}: eos_token_id is {value!r:.60}, not an id or a list of ids",
            "Fetch the file again",
        )
    return ids
