"""Answers in OpenAI's JSON, whole and in chunks."""

from __future__ import annotations

import json
import secrets
import time
from codecs import getincrementaldecoder
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from device.runtime.answer import Answer, Piece
from device.runtime.logprobs import TokenLogprob
from edgekit.text.tokenizer import Tokenizer
from edgekit.text.tool_calls import ToolCall

Kind = Literal["chat", "completion"]
DONE = b"data: [DONE]\n\n"
TOKEN_BYTES = 64
"""Of a token and its log probability."""


class Reply:
    """One reply: its identity, and its forms.

    Args:
        kind: ``chat`` or ``completion``.
        model: The model's name.
        tokenizer: Writes the tokens of log probabilities.
        answers: What it is made of, by index.
        streams_usage: Whether a stream ends in what it took; its other chunks then say null.
        counts_on: Whether these say what it took so far.
    """

    def __init__(
        self,
        kind: Kind,
        model: str,
        tokenizer: Tokenizer,
        answers: Sequence[Answer],
        *,
        streams_usage: bool = False,
        counts_on: bool = False,
    ) -> None:
        self._kind, self._model, self._answers = kind, model, answers
        self._tokenizer = tokenizer
        self._id = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._begun = [False] * len(answers)
        self._called = [0] * len(answers)
        self._offsets = [TextOffset() for _ in answers]
        self._streams_usage, self._counts_on = streams_usage, streams_usage and counts_on

    @property
    def size(self) -> int:
        """About how many bytes it has: tokens told of make it long."""
        told = [
            len(answer.request.generated) * (1 + answer.request.top_logprobs)
            for answer in self._answers
            if answer.request.top_logprobs is not None
        ]
        texts = sum(len(answer.reasoning) + len(answer.text) for answer in self._answers)
        return TOKEN_BYTES * sum(told) + texts

    def whole(self) -> dict[str, Any]:
        """Return the finished reply."""
        name = "chat.completion" if self._kind == "chat" else "text_completion"
        choices = [self._choice(index) for index in range(len(self._answers))]
        return {**self._head(name), "choices": choices, "usage": self.usage()}

    def first(self, index: int) -> bytes:
        """Return the chunk that opens a streamed chat; a completion has none."""
        if self._kind == "completion":
            return b""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, piece: Piece) -> bytes:
        """Return the chunk of a piece; empty if nothing of it is to be shown."""
        if isinstance(piece, ToolCall):
            self._called[index] += 1
            call = {"index": self._called[index] - 1, **call_object(piece)}
            return self._chunk(index, {"tool_calls": [call]})
        if self._kind == "completion":
            return self._chunk(index, {"text": piece.text})
        if piece.is_reasoning:
            return self._chunk(index, both_names(piece.text))
        text = piece.text
        if not self._begun[index] and self._answers[index].has_reasoned:
            text = text.lstrip()
        self._begun[index] = self._begun[index] or bool(text)
        return self._chunk(index, {"content": text}) if text else b""

    def end(self, index: int) -> bytes:
        """Return the chunk that ends one of the answers."""
        delta = {} if self._kind == "chat" else {"text": ""}
        return self._chunk(index, delta, self._answers[index].finish_reason)

    def last(self) -> bytes:
        """Return what ends the stream."""
        if not self._streams_usage:
            return DONE
        told = {**self._head(self._chunk_name()), "choices": [], "usage": self.usage()}
        return event(told) + DONE

    def usage(self) -> dict[str, Any]:
        """Return what it took; a prompt that several answers have counts once."""
        requests = [answer.request for answer in self._answers]
        prompts = {id(request.prompt): request for request in requests}.values()
        prompt = sum(len(request.prompt) for request in prompts)
        generated = sum(len(request.generated) for request in requests)
        reasoning = sum(answer.reasoning_tokens for answer in self._answers)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {
                "cached_tokens": sum(request.reused_tokens for request in prompts)
            },
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }

    def _choice(self, index: int) -> dict[str, Any]:
        answer = self._answers[index]
        choice: dict[str, Any] = {"index": index, "finish_reason": answer.finish_reason}
        choice["logprobs"] = self._logprobs(index)
        if self._kind == "completion":
            return {**choice, "text": answer.text}
        # Templates put blank lines after the reasoning; they are not the answer's.
        text: str | None = answer.text.lstrip() if answer.has_reasoned else answer.text
        if answer.calls:
            text = text if text and text.strip() else None
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if answer.reasoning:
            message |= both_names(answer.reasoning)
        if answer.calls:
            message["tool_calls"] = [call_object(call) for call in answer.calls]
        return {**choice, "message": message}

    def _logprobs(self, index: int) -> dict[str, Any] | None:
        """Return the log probabilities of an answer's tokens since its last chunk."""
        answer, offset = self._answers[index], self._offsets[index]
        if answer.request.top_logprobs is None:
            return None
        tokens = answer.take_logprobs()
        if self._kind == "chat":
            content = [self._chat_logprob(token) for token in tokens]
            return {"content": content, "refusal": None}
        texts = [self._text(token.token) for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {self._text(other): logprob for other, logprob in token.top} for token in tokens
            ],
            "text_offset": [offset.before(self._shown(token.token)) for token in tokens],
        }

    def _chat_logprob(self, token: TokenLogprob) -> dict[str, Any]:
        top = [self._told(other, logprob) for other, logprob in token.top]
        return {**self._told(token.token, token.logprob), "top_logprobs": top}

    def _told(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token)
        return {"token": self._text(token), "logprob": logprob, "bytes": list(data)}

    def _shown(self, token: int) -> bytes:
        """Return what of a token is in the text: nothing of a special one."""
        return (
            b""
            if self._tokenizer.is_special(self._text(token))
            else self._tokenizer.token_bytes(token)
        )

    def _text(self, token: int) -> str:
        return self._tokenizer.token_bytes(token).decode(errors="replace")

    def _chunk(self, index: int, delta: Mapping[str, Any], reason: str | None = None) -> bytes:
        choice: dict[str, Any] = {"index": index, "finish_reason": reason}
        choice["logprobs"] = self._logprobs(index)
        if self._kind == "chat":
            choice["delta"] = delta
        else:
            choice |= delta
        told: dict[str, Any] = {**self._head(self._chunk_name()), "choices": [choice]}
        if self._counts_on:
            told["usage"] = self.usage()
        elif self._streams_usage and self._kind == "chat":  # as OpenAI describes either
            told["usage"] = None
        return event(told)

    def _chunk_name(self) -> str:
        return "chat.completion.chunk" if self._kind == "chat" else "text_completion"

    def _head(self, name: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": name,
            "created": self._created,
            "model": self._model,
        }


class TextOffset:
    """Counts an answer's characters token by token; those of a character begin where it does."""

    def __init__(self) -> None:
        self._count = 0
        self._decoder = getincrementaldecoder("utf-8")(errors="replace")

    def before(self, token: bytes) -> int:
        """Return how many characters stand before a token, the next in order."""
        found = self._count
        self._count += len(self._decoder.decode(token))
        return found


def both_names(reasoning: str) -> dict[str, str]:
    """Return reasoning under DeepSeek's name and vLLM's: clients look for one or the other."""
    return {"reasoning_content": reasoning, "reasoning": reasoning}


def call_object(call: ToolCall) -> dict[str, Any]:
    """Return a call as OpenAI has it, under an id of its own."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def event(data: Mapping[str, Any]) -> bytes:
    """Return a server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"
