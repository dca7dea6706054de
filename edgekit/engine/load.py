"""From a bundle to something that answers: session, tokenizer and chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekit.bundle.layout import TOKENIZER_FOLDER
from edgekit.bundle.reader import Bundle
from edgekit.engine.ort import OrtSession, Provider
from edgekit.models.config import ModelConfig
from edgekit.text.chat_template import ChatTemplate, Message
from edgekit.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A bundle ready to run.

    Attributes:
        bundle: Where it came from.
        config: Its architecture.
        session: The engine.
        tokenizer: Its tokenizer.
        template: Its chat template; None for a base model.
    """

    bundle: Bundle
    config: ModelConfig
    session: OrtSession
    tokenizer: Tokenizer
    template: ChatTemplate | None

    def prompt(self, messages: list[Message]) -> str:
        """Render a conversation; a base model continues the last message's text."""
        if self.template is None:
            return str(messages[-1]["content"])
        return self.template.render(messages)


def load_bundle(
    bundle: Bundle,
    *,
    provider: Provider = "cpu",
    threads: int | None = None,
    max_sequences: int = 1,
    **options: Any,
) -> LoadedModel:
    """Load a bundle in ONNX Runtime: its host graph on a CPU, its target graph on CUDA.

    Args:
        bundle: An opened bundle.
        provider: ``cpu`` or ``cuda``.
        threads: Threads on a CPU; None is the number of cores.
        max_sequences: Cache slots.
        options: Further arguments of :class:`~edgekit.engine.ort.OrtSession`.

    Raises:
        EngineError: The engine is missing or refuses the graph.
    """
    entry = bundle.graph("host" if provider == "cpu" else "target")
    config = ModelConfig.from_dict(dict(bundle.manifest.model["config"]))
    folder = bundle.path / TOKENIZER_FOLDER
    dtype: Any = entry.activation_dtype
    session = OrtSession(
        bundle.path / entry.path,
        config=config,
        max_context=bundle.manifest.limits["max_context"],
        max_sequences=max_sequences,
        activation_dtype=dtype,
        provider=provider,
        threads=threads,
        **options,
    )
    return LoadedModel(
        bundle,
        config,
        session,
        Tokenizer.from_folder(folder),
        ChatTemplate.from_folder(folder),
    )
