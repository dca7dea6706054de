"""Answers in OpenAI's JSON, whole and in chunks."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from typing import Any, Literal

from device.runtime.answer import Answer
from edgekit.text.reasoning import TextPiece

Kind = Literal["chat", "completion"]
DONE = b"data: [DONE]\n\n"


class Reply:
    """One reply: its identity, and its forms.

    Args:
        kind: ``chat`` or ``completion``.
        model: The model's name.
        answer: What it is made of.
    """

    def __init__(self, kind: Kind, model: str, answer: Answer) -> None:
        self._kind, self._model, self._answer = kind, model, answer
        self._id = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._begun = False

    def whole(self) -> dict[str, Any]:
        """Return the finished reply."""
        answer = self._answer
        choice: dict[str, Any] = {"index": 0, "finish_reason": answer.finish_reason}
        choice["logprobs"] = None
        if self._kind == "chat":
            # Templates put blank lines after the reasoning; they are not the answer's.
            text = answer.text.lstrip() if answer.reasoning else answer.text
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            if answer.reasoning:
                message |= both_names(answer.reasoning)
            choice["message"] = message
        else:
            choice["text"] = answer.reasoning + answer.text
        name = "chat.completion" if self._kind == "chat" else "text_completion"
        return {**self._head(name), "choices": [choice], "usage": self.usage()}

    def first(self) -> bytes:
        """Return the chunk that opens a streamed chat; a completion has none."""
        if self._kind == "completion":
            return b""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, piece: TextPiece) -> bytes:
        """Return the chunk of a piece of text; empty if nothing of it is to be shown."""
        if self._kind == "completion":
            return self._chunk({"text": piece.text})
        if piece.is_reasoning:
            return self._chunk(both_names(piece.text))
        text = piece.text
        if not self._begun and self._answer.reasoning:
            text = text.lstrip()
        self._begun = self._begun or bool(text)
        return self._chunk({"content": text}) if text else b""

    def last(self, *, usage: bool) -> bytes:
        """Return the chunks that end a stream."""
        delta = {} if self._kind == "chat" else {"text": ""}
        end = self._chunk(delta, self._answer.finish_reason)
        if usage:
            end += event({**self._head(self._chunk_name()), "choices": [], "usage": self.usage()})
        return end + DONE

    def usage(self) -> dict[str, Any]:
        """Return what it took."""
        request = self._answer.request
        prompt, generated = len(request.prompt), len(request.generated)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": request.reused_tokens},
            "completion_tokens_details": {"reasoning_tokens": self._answer.reasoning_tokens},
        }

    def _chunk(self, delta: Mapping[str, Any], reason: str | None = None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
        if self._kind == "chat":
            choice["delta"] = delta
        else:
            choice |= delta
        return event({**self._head(self._chunk_name()), "choices": [choice]})

    def _chunk_name(self) -> str:
        return "chat.completion.chunk" if self._kind == "chat" else "text_completion"

    def _head(self, name: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": name,
            "created": self._created,
            "model": self._model,
        }


def both_names(reasoning: str) -> dict[str, str]:
    """Return reasoning under DeepSeek's name and vLLM's: clients look for one or the other."""
    return {"reasoning_content": reasoning, "reasoning": reasoning}


def event(data: Mapping[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"
