"""Bodies of requests, checked field by field; what is not served yet is refused, never ignored.

Source: OpenAI's published OpenAPI description (github.com/openai/openai-openapi), chat completions
and completions; ``top_k``, ``repetition_penalty``, ``ignore_eos`` and ``min_tokens`` as vLLM has
them.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from device.api.errors import ApiError
from device.api.messages import Message, ResponseFormat, Tool, ToolChoice
from device.runtime.adjust import Adjustment
from device.runtime.answer import Wishes
from device.runtime.grammar import ANY_OBJECT
from edgekit.engine.sampler import SamplingParams
from edgekit.errors import EngineError

Tokens = Annotated[int, msgspec.Meta(ge=1)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Bias = Annotated[float, msgspec.Meta(ge=-100, le=100)]
MAX_STOPS = 4
MAX_ANSWERS = 16
MAX_TOP_LOGPROBS = 20
MAX_DIGITS = 10
_UNKNOWN = "Object contains unknown field `"


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Of a streamed answer; ``continuous_usage_stats`` is vLLM's: usage so far in every chunk."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class _Common(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What both kinds of requests have."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    user: str | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_ANSWERS)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    # Less would divide logits beyond float32's range.
    repetition_penalty: Annotated[float, msgspec.Meta(ge=0.01, le=10)] | None = None
    logit_bias: dict[str, Bias] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None

    def params(self, own: SamplingParams, limit: int | None) -> SamplingParams:
        """Return how to sample: what is asked, else what the bundle says.

        Raises:
            ApiError: A value cannot be served.
        """
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MAX_STOPS or not all(stops):
            raise ApiError(400, f"stop takes 1 to {MAX_STOPS} strings, none empty", param="stop")
        if limit is not None and (self.min_tokens or 0) > limit:
            raise ApiError(400, f"min_tokens is more than max_tokens, {limit}", param="min_tokens")
        try:
            return SamplingParams(
                temperature=own.temperature if self.temperature is None else self.temperature,
                top_p=own.top_p if self.top_p is None else self.top_p,
                # vLLM's clients write -1 for all.
                top_k=own.top_k if self.top_k is None else max(self.top_k, 0),
                min_p=self.min_p or 0.0,
                seed=None if self.seed is None else self.seed % (1 << 64),
                max_tokens=limit,
                stop=tuple(stops),
            )
        except EngineError as error:
            raise ApiError(400, str(error)) from error

    def wishes(self, vocab_size: int) -> Wishes:
        """Return what is asked of an answer besides its sampling and its form.

        Args:
            vocab_size: Width of the logits.

        Raises:
            ApiError: A biased token is none of the model's.
        """
        return Wishes(
            self._adjustment(vocab_size),
            min_tokens=self.min_tokens or 0,
            ignores_end=bool(self.ignore_eos),
        )

    def _adjustment(self, vocab_size: int) -> Adjustment:
        """Return what is changed of the logits.

        Args:
            vocab_size: Width of the logits.

        Raises:
            ApiError: A biased token is none of the model's.
        """
        bias = {}
        for name, value in (self.logit_bias or {}).items():
            is_number = name.isdecimal() and name.isascii() and len(name) <= MAX_DIGITS
            if not (is_number and int(name) < vocab_size):
                raise ApiError(400, f"{name!r:.40} is no token of the model", param="logit_bias")
            bias[int(name)] = value
        return Adjustment(
            self.frequency_penalty or 0.0,
            self.presence_penalty or 0.0,
            1.0 if self.repetition_penalty is None else self.repetition_penalty,
            bias,
        )

    def refuse_unserved(self) -> None:
        """Refuse what would change the answer and is not served.

        Raises:
            ApiError: Names the field.
        """
        for name, harmless in self.unserved().items():
            value = getattr(self, name)
            if value not in harmless:
                raise ApiError(
                    400,
                    f"{name} {reprlib.repr(value)} is not served by this version",
                    param=name,
                    code="unsupported_parameter",
                )

    def unserved(self) -> dict[str, tuple[Any, ...]]:
        """Return further fields that are not served, and their values that change nothing."""
        return {}


class ChatRequest(_Common, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: str | None = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    moderation: Any = None
    prediction: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    safety_identifier: str | None = None

    @property
    def answer_schema(self) -> Mapping[str, Any] | None:
        """The JSON Schema that the answer is held to; None: it is free.

        Raises:
            ApiError: It is missing.
        """
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return ANY_OBJECT
        if wanted.json_schema is None or wanted.json_schema.schema is None:
            raise ApiError(400, "json_schema has no schema", param="response_format")
        return wanted.json_schema.schema

    def wishes(self, vocab_size: int) -> Wishes:
        """See the base; what binds the answer is yet to come."""
        told = (self.top_logprobs or 0) if self.logprobs else None
        return replace(super().wishes(vocab_size), top_logprobs=told)

    def refuse_endless(self) -> None:
        """Refuse to go on where a grammar says that the answer ends.

        Raises:
            ApiError: It is asked for.
        """
        for name in ("ignore_eos", "min_tokens"):
            if getattr(self, name):
                said = f"{name} is not kept beside tools or response_format, which end an answer"
                raise ApiError(400, said, param=name)

    def refuse_unserved(self) -> None:
        """See the base; and tokens beside log probabilities that nobody asked for."""
        super().refuse_unserved()
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")

    def unserved(self) -> dict[str, tuple[Any, ...]]:
        """See the base."""
        idle: dict[str, tuple[Any, ...]] = {
            "store": (None, False),
            "function_call": (None, "none"),
            "functions": (None, []),
            "modalities": (None, ["text"]),
            "prompt_cache_retention": (None, "in_memory", "in-memory"),
            "verbosity": (None, "medium"),
        }
        others = ("audio", "moderation", "prediction", "prompt_cache_options")
        return idle | dict.fromkeys((*others, "reasoning_effort", "web_search_options"), (None,))


class CompletionRequest(_Common, kw_only=True):
    """``POST /v1/completions``."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    def wishes(self, vocab_size: int) -> Wishes:
        """See the base; a continuation is text as the model writes it, tags of reasoning too."""
        base = super().wishes(vocab_size)
        return replace(base, top_logprobs=self.logprobs, is_plain=True)

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or tokens.

        Raises:
            ApiError: There is none, or too many.
        """
        prompts: list[Any] = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if prompts and all(isinstance(item, int) for item in prompts):
            prompts = [prompts]
        if any(isinstance(item, int) for item in prompts):
            raise ApiError(400, "prompt mixes tokens and texts", param="prompt")
        if not 1 <= len(prompts) * (self.n or 1) <= MAX_ANSWERS:
            raise ApiError(400, f"prompt and n give 1 to {MAX_ANSWERS} answers", param="prompt")
        return prompts

    def unserved(self) -> dict[str, tuple[Any, ...]]:
        """See the base."""
        return {"echo": (None, False), "suffix": (None, ""), "best_of": (None, 1)}


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """``POST /tokenize``, as vLLM has it: a text, or a conversation as the template writes it."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None

    def refuse_unserved(self) -> None:
        """Refuse a request of both or of neither."""
        if (self.prompt is None) == (self.messages is None):
            raise ApiError(400, "give either prompt or messages", param="prompt")


class DetokenizeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """``POST /detokenize``."""

    tokens: list[Annotated[int, msgspec.Meta(ge=0)]]
    model: str | None = None

    def refuse_unserved(self) -> None:
        """Refuse nothing."""


R = TypeVar("R", ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest)


def seeded(params: SamplingParams, count: int) -> list[SamplingParams]:
    """Return parameters of some answers to one question: a seed that is given counts up."""
    if params.seed is None:
        return [params] * count
    return [replace(params, seed=(params.seed + index) % (1 << 64)) for index in range(count)]


def read_body(data: bytes, kind: type[R]) -> R:
    """Return a request's body.

    Raises:
        ApiError: It is no JSON, has a field of another type, or one that OpenAI does not know.
    """
    try:
        request = msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        said = str(error)
        if said.startswith(_UNKNOWN):
            name = said.removeprefix(_UNKNOWN).partition("`")[0]
            raise ApiError(
                400, f"Unrecognized request argument supplied: {name}", param=name
            ) from error
        # "Expected `int`, got `str` - at `$.max_tokens`"
        where = said.partition(" - at `$.")[2].rstrip("`") or None
        raise ApiError(400, said, param=where) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    request.refuse_unserved()
    return request
