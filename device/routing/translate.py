"""Requests and answers as another endpoint knows them: its model's name there, ours here."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from device.routing.errors import CloudError

PLAIN: Final = frozenset(
    {
        "frequency_penalty",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "n",
        "parallel_tool_calls",
        "presence_penalty",
        "prompt",
        "response_format",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
    }
)
"""OpenAI's fields that are sent on. Not among them are those that say who asks and what for
(``user``, ``metadata``, ``store``), and ``logit_bias``, whose tokens are of this model."""
PLAIN_MESSAGE: Final = frozenset(
    {"content", "name", "refusal", "role", "tool_call_id", "tool_calls"}
)
"""Those of a message: not what other servers call reasoning, which some endpoints refuse."""
MAX_LINE_BYTES: Final = 1 << 20
"""A longer line of a stream is no event of a chat."""


def outgoing(body: msgspec.Struct, model: str) -> bytes:
    """Return the body that the cloud gets.

    Args:
        body: The client's request.
        model: The cloud's name of its model.
    """
    fields = {
        name: value
        for name, value in msgspec.to_builtins(body).items()
        if name in PLAIN and value is not None
    }
    if "messages" in fields:
        fields["messages"] = [_message(message) for message in fields["messages"]]
    if (told := fields.get("response_format")) is not None:
        # Nothing below: null is a value in a schema.
        fields["response_format"] = {
            name: _without_none(value) if isinstance(value, dict) else value
            for name, value in _without_none(told).items()
        }
    options = fields.pop("stream_options", None) or {}
    if options.get("include_usage"):
        fields["stream_options"] = {"include_usage": True}
    return msgspec.json.encode({**fields, "model": model})


def incoming(data: bytes, name: str) -> bytes:
    """Return a whole answer under our model's name.

    Args:
        data: The cloud's.
        name: Our model's.

    Raises:
        CloudError: It is no answer.
    """
    answer = _object(data)
    if not isinstance(answer.get("choices"), list):
        raise CloudError("the cloud's answer has no choices")
    return msgspec.json.encode({**answer, "model": name})


class EventStream:
    """Server-sent events under our model's name, line by line as they come.

    Args:
        name: Our model's.

    Attributes:
        events: Events that were whole so far, ``[DONE]`` among them.
        is_done: Whether ``[DONE]`` came.
        error: What the cloud says went wrong; None while nothing.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest = bytearray()
        self.events = 0
        self.is_done = False
        self.error: str | None = None

    def feed(self, data: bytes) -> bytes:
        """Take some bytes; returns the lines that they made whole.

        Raises:
            CloudError: They are no events.
        """
        self._rest += data
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        if len(rest) > MAX_LINE_BYTES:
            raise CloudError(f"a line of the cloud's stream has more than {MAX_LINE_BYTES} bytes")
        return b"".join(self._line(line.rstrip(b"\r")) + b"\n" for line in lines)

    def _line(self, line: bytes) -> bytes:
        if not line.startswith(b"data:"):
            return line
        data = line.removeprefix(b"data:").strip()
        self.events += 1
        if data == b"[DONE]":
            self.is_done = True
            return line
        event = _object(data)
        if "error" in event:
            self.error = error_message(data)
        if "model" in event:
            event["model"] = self._name
        return b"data: " + msgspec.json.encode(event)


def error_message(data: bytes) -> str:
    """Return what an error's body says, a line at most; nothing if it is no such body."""
    try:
        error = _object(data).get("error")
    except CloudError:
        return ""
    message = error.get("message") if isinstance(error, dict) else error
    return message.partition("\n")[0][:200] if isinstance(message, str) else ""


def _object(data: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise CloudError("the cloud's answer is no JSON object") from error


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message of OpenAI's fields, without those that say nothing."""
    made = {k: v for k, v in _without_none(message).items() if k in PLAIN_MESSAGE}
    if isinstance(made.get("content"), list):
        made["content"] = [{"type": x["type"], x["type"]: x[x["type"]]} for x in made["content"]]
    if "tool_calls" in made:
        made["tool_calls"] = [_call(call) for call in made["tool_calls"]]
    return made


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """Return a call without what clients' libraries add to it."""
    function = {name: call["function"][name] for name in ("name", "arguments")}
    return _without_none({"id": call["id"], "type": call["type"], "function": function})


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
