"""From a bundle to something that answers: session, tokenizer and chat template."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgekit.bundle.layout import TOKENIZER_FOLDER
from edgekit.bundle.reader import Bundle
from edgekit.bundle.verify import check_digests
from edgekit.contracts import optimum_io
from edgekit.contracts.manifest import GraphEntry
from edgekit.engine.appending_cache import AppendingCacheSession
from edgekit.engine.checks import check_tables
from edgekit.engine.derived import make_derived
from edgekit.engine.growing_cache import GrowingCacheSession
from edgekit.engine.ort import OrtSession
from edgekit.engine.ort_open import Provider, newest_opset
from edgekit.engine.sampler import SamplingParams
from edgekit.engine.session import InferenceSession
from edgekit.errors import BundleError, EngineError, GraphError, MissingExtraError
from edgekit.models.config import ModelConfig
from edgekit.models.exported import AnyConfig, stored_config
from edgekit.models.generation import generation_defaults
from edgekit.progress import SILENT, Progress
from edgekit.text.chat_template import ChatTemplate, Message
from edgekit.text.tokenizer import GENERATION_CONFIG_FILE, Tokenizer, read_json_object

if TYPE_CHECKING:  # for a device only
    from edgekit.engine.tensorrt import TensorRTSession

AnyProvider = Literal["cpu", "cuda", "tensorrt"]
"""ONNX Runtime's, and TensorRT without it."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A bundle ready to run.

    Attributes:
        bundle: Where it came from.
        config: Its architecture.
        session: The engine.
        tokenizer: Its tokenizer.
        template: Its chat template; None for a base model.
        warnings: What the user is to know of the engine, a sentence each.
    """

    bundle: Bundle
    config: AnyConfig
    session: InferenceSession
    tokenizer: Tokenizer
    template: ChatTemplate | None
    warnings: tuple[str, ...] = ()

    @property
    def adds_bos(self) -> bool:
        """Whether text must get the tokenizer's BOS: a rendered chat template has its own."""
        return self.template is None

    @property
    def own_sampling(self) -> SamplingParams:
        """How the checkpoint's publisher samples (``generation_config.json``)."""
        path = self.bundle.path / TOKENIZER_FOLDER / GENERATION_CONFIG_FILE
        own = generation_defaults(read_json_object(path))
        return SamplingParams(**asdict(own))

    def prompt(self, messages: list[Message]) -> str:
        """Render a conversation; a base model continues the last message's text."""
        if self.template is None:
            return str(messages[-1]["content"])
        return self.template.render(messages)


def load_bundle(
    bundle: Bundle,
    *,
    provider: AnyProvider = "cpu",
    fallback: Provider | None = None,
    threads: int | None = None,
    max_sequences: int = 1,
    digests: bool = True,
    dialect: str | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> LoadedModel:
    """Load a bundle in ONNX Runtime with the graph of :func:`graph_to_run`, or in TensorRT.

    Args:
        bundle: An opened bundle.
        provider: ``cpu``, ``cuda`` or ``tensorrt``, which builds its engine if it must.
        fallback: Where ONNX Runtime runs the bundle if TensorRT does not; the model's ``warnings``
            say why. None lets the error be one.
        threads: Threads on a CPU; None is the number of cores.
        max_sequences: Cache slots.
        digests: Check every byte against the manifest first; off only where that was just done.
        dialect: Run the graph of this dialect; None is :func:`fastest_graph`.
        progress: Told about the stages ``digests`` and ``load``.
        options: Further arguments of the session that is opened; with ``fallback``, of TensorRT's.

    Raises:
        DigestMismatchError: The bundle is damaged.
        BundleError: It has no graph of ``dialect``.
        EngineError: The engine is missing or fails.
        GraphError: TensorRT refuses the graph.
        MissingExtraError: A package that the provider needs is not installed.
    """
    if digests:
        cores = len(os.sched_getaffinity(0))
        check_digests(bundle, threads=threads or cores, progress=progress)
    config = stored_config(bundle.manifest.model["config"])
    session: InferenceSession
    warnings: tuple[str, ...] = ()
    common = {"max_sequences": max_sequences, "threads": threads}
    if provider != "tensorrt":
        session = _open_graph(bundle, config, provider, dialect, {**options, **common}, progress)
    else:
        try:
            opened = open_engine(
                bundle, config, dialect, progress, max_sequences, stand_in=True, **options
            )
            session, warnings = opened, opened.warnings
        except (EngineError, GraphError, MissingExtraError) as error:
            if fallback is None:
                raise
            session = _open_graph(bundle, config, fallback, None, common, progress)
            warnings = (f"not run on TensorRT but in ONNX Runtime on {fallback}: {error}",)
    folder = bundle.path / TOKENIZER_FOLDER
    return LoadedModel(
        bundle,
        config,
        session,
        Tokenizer.from_folder(folder),
        ChatTemplate.from_folder(folder),
        warnings,
    )


def _open_graph(
    bundle: Bundle,
    config: AnyConfig,
    provider: Provider,
    dialect: str | None,
    options: dict[str, Any],
    progress: Progress,
) -> InferenceSession:
    """Open the graph of :func:`graph_to_run` in ONNX Runtime."""
    entry = graph_to_run(bundle, provider, dialect)
    progress.start("load", 0)
    session = open_session(bundle, entry, config, provider, options)
    progress.finish(f"{entry.name} on {provider}")
    return session


def open_engine(
    bundle: Bundle,
    config: AnyConfig,
    dialect: str | None,
    progress: Progress,
    max_sequences: int,
    **options: Any,
) -> TensorRTSession:
    """Open a bundle's TensorRT engine; see ``engine.tensorrt.open_tensorrt`` for the errors.

    Raises:
        EngineError: ``dialect`` is not the one that the bundle plans an engine of.
    """
    from edgekit.engine.tensorrt import open_tensorrt  # noqa: PLC0415 - for a device only

    if not isinstance(config, ModelConfig):
        raise EngineError(
            "bundles built with --exporter optimum do not run on tensorrt",
            "Run it with --provider cpu",
        )
    planned = {plan["graph"] for plan in bundle.manifest.engine_plans}
    if dialect is not None and bundle.graph("target", dialect).name not in planned:
        raise EngineError(
            f"the bundle plans no engine of its {dialect} graph", "Leave --dialect out"
        )
    return open_tensorrt(bundle, config, max_sequences=max_sequences, progress=progress, **options)


def graph_to_run(bundle: Bundle, provider: Provider, dialect: str | None = None) -> GraphEntry:
    """Return a bundle's fastest host graph on a CPU, its fastest target graph on CUDA.

    On a CPU, an ONNX Runtime too old for one gets an older one: JetPack 6.2's Python ends at 1.23,
    which refuses the standard graph's opset 24, takes 23 (``ort``) and 21 (``trt103``).

    Raises:
        BundleError: The bundle has no graph.
        EngineError: ONNX Runtime is too old for either.
        MissingExtraError: ONNX Runtime is not installed.
    """
    purpose = "host" if provider == "cpu" else "target"
    if dialect is not None:
        return bundle.graph(purpose, dialect)
    if provider != "cpu":
        return _fastest(bundle, purpose)
    newest, target = newest_opset(), bundle.graph("target")
    for entry in (_fastest(bundle, purpose), bundle.graph(purpose), target):
        if entry.opset <= newest:
            return entry
    raise EngineError(
        f"this ONNX Runtime takes opset {newest}, the bundle's graphs have {target.opset}",
        "Use ONNX Runtime 1.24 or newer (Python 3.11), or a bundle built with --target orin-jp62",
    )


def _fastest(bundle: Bundle, purpose: str) -> GraphEntry:
    """Return the graph that ONNX Runtime runs fastest: ``ort``, where the bundle has it."""
    dialects = {entry.dialect for entry in bundle.manifest.graphs}
    return bundle.graph(purpose, "ort" if "ort" in dialects else None)


def open_session(
    bundle: Bundle,
    entry: GraphEntry,
    config: AnyConfig,
    provider: Provider,
    options: dict[str, Any],
) -> InferenceSession:
    """Open a graph of a bundle with the session of its dialect.

    Raises:
        EngineError: The engine is missing or refuses the graph.
        BundleError: The graph's dialect, or a rotary table, does not go with the model.
    """
    graph, max_context = bundle.path / entry.path, bundle.manifest.limits["max_context"]
    if entry.dialect == optimum_io.DIALECT:
        if provider != "cpu":
            raise EngineError(
                f"bundles built with --exporter optimum do not run on {provider}",
                "Run it with --provider cpu",
            )
        return GrowingCacheSession(
            graph, max_context=max_context, vocab_size=config.vocab_size, **options
        )
    if not isinstance(config, ModelConfig):
        raise BundleError(f"{bundle.path} has a {entry.dialect} graph of another exporter's model")
    check_tables(bundle.manifest, config)
    dtype: Any = entry.activation_dtype
    if entry.dialect == "ort":
        cores = options.get("threads") or len(os.sched_getaffinity(0))
        options = {**options, "derived": make_derived(bundle, entry, cores)}
    if entry.dialect == "trt103" and provider == "cpu":
        return AppendingCacheSession(
            graph, config=config, max_context=max_context, activation_dtype=dtype, **options
        )
    return OrtSession(
        graph,
        config=config,
        max_context=max_context,
        activation_dtype=dtype,
        provider=provider,
        **options,
    )
