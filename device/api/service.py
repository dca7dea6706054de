"""What the routes share: the model and its engine's loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from device.api.aside import in_thread
from device.api.errors import ApiError
from device.api.messages import Message, Tool, render, usable_tools
from device.api.metrics import Metrics
from device.api.record import current
from device.api.schema import ChatRequest
from device.api.settings import Settings
from device.runtime.answer import Answer, Prompt, Wishes
from device.runtime.constraint import Grammars
from device.runtime.grammar import ANY_OBJECT, calls_grammar, is_triggered, json_grammar
from device.runtime.loop import EngineLoop
from device.runtime.scheduler import Scheduler
from edgekit.engine.load import LoadedModel
from edgekit.engine.sampler import SamplingParams
from edgekit.errors import CheckpointError, EngineError
from edgekit.text.reasoning import THINK_OPEN, prompt_opens_reasoning


class Service:
    """One model that is served.

    Args:
        model: Loaded with as many slots as are to be served at once.
        own: How the model samples where nobody says.
        settings: How it behaves.
        metrics: Where it is counted; None counts it apart.

    Attributes:
        aliases: Further names that are accepted, each until a time of ``time.monotonic``.
    """

    def __init__(
        self,
        model: LoadedModel,
        own: SamplingParams,
        settings: Settings,
        metrics: Metrics | None = None,
    ) -> None:
        self.model = model
        self.own = own
        self.settings = settings
        self.name = str(model.bundle.manifest.name)
        self.created = int(time.time())
        self.aliases: dict[str, float] = {}
        self.metrics = (metrics or Metrics()).of(self.name, model.bundle.digest)
        scheduler = Scheduler(
            model.session, queue_limit=settings.queue_limit, gaps=self.metrics.gaps
        )
        self.metrics.watch(scheduler)
        self.engine = EngineLoop(scheduler)
        self._ends = frozenset(model.config.eos_token_ids)
        self.grammars = Grammars(model.tokenizer, model.session.vocab_size, self._ends)

    def stop(self, drain_s: float) -> None:
        """Take nothing more, let what runs end in its time, and free the engine.

        Args:
            drain_s: Seconds after which requests that still run are cancelled.
        """
        self.engine.stop(drain_s)
        self.metrics.close()
        self.model.session.close()

    def require_model(self, name: str) -> None:
        """Refuse a request for another model.

        Raises:
            ApiError: It is.
        """
        if name != self.name and self.aliases.get(name, 0) < time.monotonic():
            raise ApiError(
                404,
                f"The model {name!r} does not exist; this server has {self.name!r}",
                param="model",
                code="model_not_found",
            )

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """Return a conversation as the model's chat template writes it.

        Args:
            messages: The conversation.
            tools: What the model is told that it may call.
            variables: Further ones of the template.

        Raises:
            ApiError: The model has no template, or it refuses the conversation.
        """
        if self.model.template is None:
            raise ApiError(
                400, f"{self.name} is a base model without a chat template: use /v1/completions"
            )
        try:
            text = render(self.model.template, messages, tools, variables or {})
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
        free = body.wishes(self.model.session.vocab_size)
        tools = usable_tools(
            body.tools or (),
            body.tool_choice,
            self.model.template,
            parallel=body.parallel_tool_calls is not False,
        )
        schema, thinks = body.answer_schema, prompt_opens_reasoning(prompt.text)
        # Blank lines follow the reasoning, the model's own, too.
        leading = thinks or self.model.tokenizer.token_id(THINK_OPEN) is not None
        if tools is None and schema is None:
            return lambda: free
        body.refuse_endless()
        param = "tools" if schema is None else "response_format"
        trigger = ""
        if tools is not None and is_triggered(tools, schema):
            trigger = tools.form.trigger

        def compiled() -> str:
            if tools is not None:
                grammar = calls_grammar(tools, self.model.tokenizer, leading=leading, schema=schema)
            else:
                grammar = json_grammar(schema or ANY_OBJECT, leading=leading)
            self.grammars.constrain(grammar)  # kept, or refused
            return grammar

        try:
            grammar = await in_thread(compiled)
        except EngineError as error:
            raise ApiError(400, str(error), param=param) from error

        def make() -> Wishes:
            bound = self.grammars.constrain(grammar, in_reasoning=thinks, trigger=trigger)
            return replace(free, constraint=bound, calls=None if tools is None else tools.form)

        return make

    def ask(self, prompt: Prompt, params: SamplingParams, wishes: Wishes, client: str) -> Answer:
        """Return an answer that is yet to come; nothing runs before it is iterated over."""
        record = current()
        deadline_s = None if record is None else record.deadline_s
        answer = Answer(
            prompt,
            params,
            self.model.tokenizer,
            self._ends,
            client=client,
            deadline_s=deadline_s or time.monotonic() + self.settings.timeout_s,
            wishes=wishes,
        )
        if record is not None:
            record.model = self.name
            record.requests.append(answer.request)
        return answer
