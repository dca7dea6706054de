"""Renders a checkpoint's own chat template, in a sandbox.

A template is a program that came with the weights: it is rendered by jinja2's immutable
sandbox, with the helpers and settings of transformers' ``apply_chat_template`` (so that both
write the same prompt) and with limits on its size and on what it writes. Nothing it can reach
touches a file, a process or the network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

from edgekit.errors import CheckpointError, EngineError, MissingExtraError
from edgekit.text.template_calls import CallManner, find_manner
from edgekit.text.template_limits import MAX_RENDERED_CHARS, work
from edgekit.text.tokenizer import TOKENIZER_CONFIG_FILE, read_json_object, special_token

CHAT_TEMPLATE_FILE: Final = "chat_template.jinja"
DEFAULT_NAME: Final = "default"
MAX_TEMPLATE_CHARS: Final = 256 << 10
"""Longest template compiled; the longest published ones have some 20 thousand characters."""

Message = Mapping[str, Any]
"""A chat message: ``{"role": "user", "content": "..."}``, and what a template reads besides."""


class ChatTemplate:
    """A compiled chat template and the special tokens it may write.

    Args:
        source: The template in jinja2's language.
        tokens: Special tokens given to the template (``bos_token``, ``eos_token``, ...).

    Attributes:
        variables: Names that it reads and does not set: ``messages``, ``tools``, ...

    Raises:
        CheckpointError: The template is too long or has a syntax error.
        MissingExtraError: ``jinja2`` is not installed.
    """

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise CheckpointError(
                f"The chat template has {len(source)} characters, "
                f"more than the {MAX_TEMPLATE_CHARS} edgekit compiles",
                "Check that it is the checkpoint's own",
            )
        self.source = source
        self.tokens = dict(tokens or {})
        self._template = _compile(source)
        self.variables = _variables(source) - set(self.tokens)

    @classmethod
    def from_folder(cls, folder: Path, name: str = DEFAULT_NAME) -> ChatTemplate | None:
        """Read a checkpoint's template; None when it has none (a base model).

        ``chat_template.jinja`` goes before ``tokenizer_config.json``, as in transformers.

        Raises:
            CheckpointError: It is unreadable, or there is no template called ``name``.
        """
        config = read_json_object(folder / TOKENIZER_CONFIG_FILE)
        path = folder / CHAT_TEMPLATE_FILE
        try:
            text = path.read_text(encoding="utf-8") if path.is_file() else None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path.name} is not readable text: {error}") from error
        if text is not None and name == DEFAULT_NAME:
            config = {**config, "chat_template": text}
        return cls.from_config(config, name)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], name: str = DEFAULT_NAME
    ) -> ChatTemplate | None:
        """Take the template out of ``tokenizer_config.json``; None when it has none.

        Raises:
            CheckpointError: It has another form, or there is no template called ``name``.
        """
        source = _pick(config.get("chat_template"), name)
        if source is None:
            return None
        keys = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
        found = {key: special_token(config, key) for key in keys}
        return cls(source, {key: token for key, token in found.items() if token is not None})

    @cached_property
    def manner(self) -> CallManner | None:
        """How it takes calls of tools; None if it shows neither them nor their results."""
        return find_manner(self.render, self.source)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """Return the prompt of ``messages``, special tokens written out.

        Args:
            messages: The conversation, oldest first.
            add_generation_prompt: End where the assistant is to go on.
            tools: Tool schemas, for templates that present them.
            variables: Whatever else the template reads (``enable_thinking=False``).

        Raises:
            EngineError: The template refuses the messages (its own ``raise_exception``, or a
                field it misses), or writes too much.
        """
        from jinja2 import TemplateError  # noqa: PLC0415 - an extra

        values = {
            **self.tokens,
            "documents": None,
            **variables,
            **_plain({"messages": [dict(message) for message in messages], "tools": tools}),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._write(values)
        except (
            TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
            MemoryError,
        ) as error:
            raise EngineError(
                f"The chat template does not accept these messages: {error}",
                "Check each message's role and content, and the order of the roles",
            ) from error

    def _write(self, values: Mapping[str, Any]) -> str:
        parts: list[str] = []
        count = 0
        work.start()
        for part in self._template.generate(values):
            parts.append(part)
            count += len(part)
            if count > MAX_RENDERED_CHARS:
                raise EngineError(
                    f"The chat template wrote more than {MAX_RENDERED_CHARS} characters",
                    "Shorten the conversation",
                )
        return "".join(parts)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return a copy made of plain JSON types: no object with methods enters the sandbox."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(values))
    except (TypeError, ValueError, RecursionError) as error:
        raise EngineError(
            f"The messages are not plain JSON data: {error}",
            "Pass strings, numbers, lists and mappings",
        ) from error
    return copy


def _pick(value: Any, name: str) -> str | None:
    """Return the template called ``name`` out of a string or a list of named templates."""
    if value is None or (isinstance(value, str) and name == DEFAULT_NAME):
        return value
    named: dict[str, str] = {DEFAULT_NAME: value} if isinstance(value, str) else {}
    entries = value if isinstance(value, list) else []
    for entry in entries:
        if isinstance(entry, Mapping) and isinstance(entry.get("template"), str):
            named[str(entry.get("name"))] = entry["template"]
    if not named:
        raise CheckpointError(
            f"{TOKENIZER_CONFIG_FILE}: chat_template is neither a string nor a list of named ones",
            "Fetch the file again",
        )
    if name not in named:
        raise CheckpointError(
            f"The checkpoint has no chat template called {name!r}",
            f"It has: {', '.join(sorted(named))}",
        )
    return named[name]


@lru_cache(maxsize=16)
def _variables(source: str) -> frozenset[str]:
    from jinja2 import meta  # noqa: PLC0415

    from edgekit.text.template_sandbox import sandbox  # noqa: PLC0415

    return frozenset(meta.find_undeclared_variables(sandbox().parse(source)))


@lru_cache(maxsize=16)
def _compile(source: str) -> Any:
    try:
        from jinja2 import TemplateError  # noqa: PLC0415 - an extra

        from edgekit.text.template_sandbox import sandbox  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("Rendering a chat template", "host") from error
    try:
        return sandbox().from_string(source)
    except (TemplateError, RecursionError) as error:
        raise CheckpointError(
            f"The chat template has a mistake: {error}", "Fetch the checkpoint again"
        ) from error
