"""What the routes share: the model, its engine's loop, who may ask, and how much."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device.api.errors import ApiError
from device.api.messages import Message, Tool, render, usable_tools
from device.api.metrics import Metrics
from device.api.schema import ChatRequest
from device.runtime.answer import Answer, Prompt, Wishes
from device.runtime.constraint import Grammars
from device.runtime.grammar import ANY_OBJECT, calls_grammar, is_triggered, json_grammar
from device.runtime.loop import EngineLoop
from device.runtime.scheduler import QUEUE_LIMIT, Scheduler
from edgekit.engine.load import LoadedModel
from edgekit.engine.sampler import SamplingParams
from edgekit.errors import CheckpointError, EngineError, StorageError
from edgekit.text.reasoning import prompt_opens_reasoning

if TYPE_CHECKING:  # httpx takes memory, and most servers route nothing
    from device.routing.router import Router


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server behaves.

    Attributes:
        queue_limit: Requests that may wait for a slot.
        timeout_s: Seconds after which a request is given up.
        body_limit_bytes: Largest body that is read.
        drain_s: Seconds that running requests have when the server is told to stop.
        keys: Client by the sha256 (hex) of its API key; empty lets everyone ask.
        router: Sends requests elsewhere; None answers all here. The server closes it.
    """

    queue_limit: int = QUEUE_LIMIT
    timeout_s: float = 600.0
    body_limit_bytes: int = 4 << 20
    drain_s: float = 30.0
    keys: Mapping[str, str] | None = None
    router: Router | None = None


class Service:
    """One model that is served.

    Args:
        model: Loaded with as many slots as are to be served at once.
        own: How the model samples where nobody says.
        settings: How it behaves.
    """

    def __init__(self, model: LoadedModel, own: SamplingParams, settings: Settings) -> None:
        self.model = model
        self.own = own
        self.settings = settings
        self.name = str(model.bundle.manifest.name)
        self.created = int(time.time())
        scheduler = Scheduler(model.session, queue_limit=settings.queue_limit)
        self.metrics = Metrics(scheduler, self.name)
        self.engine = EngineLoop(scheduler)
        self._ends = frozenset(model.config.eos_token_ids)
        self.grammars = Grammars(model.tokenizer, model.session.vocab_size, self._ends)
        self._stopping = False

    @property
    def is_ready(self) -> bool:
        """Whether a request would be served."""
        return self.engine.is_alive and not self._stopping

    def stop(self) -> None:
        """Take nothing more, let what runs end in its time, and free the engine."""
        self._stopping = True
        self.engine.stop(self.settings.drain_s)
        self.model.session.close()

    def require_model(self, name: str) -> None:
        """Refuse a request for another model.

        Raises:
            ApiError: It is.
        """
        if name != self.name:
            raise ApiError(
                404,
                f"The model {name!r} does not exist; this server has {self.name!r}",
                param="model",
                code="model_not_found",
            )

    def render(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), **more: Any
    ) -> Prompt:
        """Return a conversation as the model's chat template writes it.

        Args:
            messages: The conversation.
            tools: What the model is told that it may call.
            more: Further variables of the template.

        Raises:
            ApiError: The model has no template, or it refuses the conversation.
        """
        if self.model.template is None:
            raise ApiError(
                400, f"{self.name} is a base model without a chat template: use /v1/completions"
            )
        try:
            text = render(self.model.template, messages, tools, more)
        except (EngineError, CheckpointError) as error:
            raise ApiError(400, str(error), param="messages") from error
        return Prompt(text, tuple(self.model.tokenizer.encode(text)))

    def continue_text(self, text: str | Sequence[int]) -> Prompt:
        """Return a text, or tokens, as it is continued: a base model gets its BOS before a text.

        Raises:
            ApiError: A token is none of the model's.
        """
        tokenizer = self.model.tokenizer
        if isinstance(text, str):
            return Prompt(text, tuple(tokenizer.encode(text, add_special=self.model.adds_bos)))
        self.require_tokens(text, "prompt")
        return Prompt(tokenizer.decode(text, skip_special=False), tuple(text))

    def require_tokens(self, tokens: Sequence[int], param: str) -> None:
        """Refuse tokens that the model does not have.

        Raises:
            ApiError: There is one, or none at all.
        """
        known = self.model.tokenizer.vocab_size
        wrong = next((token for token in tokens if not 0 <= token < known), None)
        if wrong is not None:
            raise ApiError(400, f"{wrong} is no token of the model", param=param)

    async def wishes(self, body: ChatRequest, prompt: Prompt) -> Callable[[], Wishes]:
        """Return what makes the wishes of each answer to a conversation.

        Raises:
            ApiError: A schema cannot be held to, or a tool has to be called that is not there.
        """
        adjustment = body.adjustment(self.model.session.vocab_size)
        tools = usable_tools(
            body.tools or (),
            body.tool_choice,
            self.model.template,
            parallel=body.parallel_tool_calls is not False,
        )
        schema, thinks = body.answer_schema, prompt_opens_reasoning(prompt.text)
        if tools is None and schema is None:
            return lambda: Wishes(adjustment, body.wanted_logprobs)
        trigger = ""
        if tools is not None:
            trigger = tools.form.trigger if is_triggered(tools, schema) else ""
            grammar = calls_grammar(tools, self.model.tokenizer, leading=thinks, schema=schema)
        else:
            grammar = json_grammar(schema or ANY_OBJECT, leading=thinks)

        def make() -> Wishes:
            bound = self.grammars.constrain(grammar, in_reasoning=thinks, trigger=trigger)
            form = None if tools is None else tools.form
            return Wishes(adjustment, body.wanted_logprobs, bound, form)

        param = "tools" if schema is None else "response_format"
        try:
            await asyncio.to_thread(make)  # compiled and kept, or refused
        except EngineError as error:
            raise ApiError(400, str(error), param=param) from error
        return make

    def ask(self, prompt: Prompt, params: SamplingParams, wishes: Wishes, client: str) -> Answer:
        """Return an answer that is yet to come; nothing runs before it is iterated over."""
        deadline_s = time.monotonic() + self.settings.timeout_s
        return Answer(
            prompt,
            params,
            self.model.tokenizer,
            self._ends,
            client=client,
            deadline_s=deadline_s,
            wishes=wishes,
        )

    def client_of(self, authorization: str | None, host: str) -> str:
        """Return whose a request is.

        Raises:
            ApiError: Keys are asked for and this is none.
        """
        keys = self.settings.keys
        if not keys:
            return host
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        for known, client in keys.items():
            if scheme.lower() == "bearer" and hmac.compare_digest(known, digest):
                return client
        raise ApiError(401, "Incorrect or missing API key", code="invalid_api_key")


def read_keys(path: Path) -> dict[str, str]:
    """Read a file of API keys: a line is ``CLIENT SHA256``, # begins a comment.

    Raises:
        StorageError: It cannot be read, or a line has another form; no key is shown.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise StorageError(f"cannot read {path}: {error}", "Choose another --api-keys") from error
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        digest = words[1].lower() if len(words) == 2 else ""
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise StorageError(
                f"line {number} of {path} is not a client's name and the sha256 of its key",
                "Make one with: printf %s KEY | sha256sum",
            )
        keys[digest] = words[0]
    if not keys:
        raise StorageError(f"{path} has no keys", "Leave --api-keys out to let everyone ask")
    return keys
