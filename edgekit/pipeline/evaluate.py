"""``edgekit eval``: exact match, divergence and perplexity of a bundle on the user's data.

All input is read, tokenized and held to the bundle before the first prompt is answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle.reader import Bundle
from edgekit.contracts.data_files import read_text
from edgekit.engine.load import LoadedModel, load_bundle
from edgekit.engine.ort import Provider
from edgekit.errors import CalibrationError, ContextOverflowError
from edgekit.evaluate.exact_match import (
    EvalRow,
    chat_encoder,
    evaluate_exact_match,
    read_rows,
)
from edgekit.evaluate.reference import ReferenceModel, Tokens
from edgekit.evaluate.text_quality import TextSample, measure_session, split_windows
from edgekit.pipeline.compared import Compared, open_reference
from edgekit.power import read_machine
from edgekit.progress import SILENT, Progress
from edgekit.quant.calibration import Messages, reasoned_text


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """One ``edgekit eval``; at least one of ``data`` and ``text`` is given.

    Attributes:
        data: Rows of prompt, reasoning and answer.
        text: Plain text.
        reference: Unquantized checkpoint, a folder or a hub id.
        limit: Rows of ``data`` to ask; None is all.
        window: Tokens of a window of text.
        text_tokens: Tokens of text used.
        sequences: Prompts answered at once.
        provider: Where to run.
        threads: CPU threads.
        dialect: Which of the bundle's graphs to run; None is the fastest.
        digests: Check the bundle's bytes, and compare the reference's with those it was built from.
    """

    data: Path | None = None
    text: Path | None = None
    reference: str | None = None
    limit: int | None = None
    window: int = 512
    text_tokens: int = 8192
    sequences: int = 8
    provider: Provider = "cpu"
    threads: int = 2
    dialect: str | None = None
    digests: bool = True


def evaluate_bundle(
    bundle: Bundle, request: EvalRequest, progress: Progress = SILENT
) -> dict[str, Any]:
    """Measure a bundle; the keys are those of ``docs/schemas/eval.schema.json``.

    Raises:
        CalibrationError: The data has the wrong form.
        CheckpointError: The reference is damaged, or another model.
        UnsupportedModelError: There is no reference model of the family.
        BundleError: The bundle is damaged.
        ContextOverflowError: A window or a prompt does not fit the bundle's context.
        EngineError: The engine fails.
    """
    rows = read_rows(request.data, request.limit) if request.data else []
    text = read_text(request.text) if request.text else None
    compared = None
    if request.reference is not None:
        compared = open_reference(
            bundle,
            request.reference,
            threads=request.threads,
            digests=request.digests,
            progress=progress,
        )
    model = load_bundle(
        bundle,
        provider=request.provider,
        threads=request.threads,
        dialect=request.dialect,
        max_sequences=request.sequences,
        digests=request.digests,
        progress=progress,
    )
    try:
        windows = _windows(model, request, text, rows)
        _require_room(model, windows)
        report: dict[str, Any] = {"bundle": str(bundle.path), "digest": f"sha256:{bundle.digest}"}
        if compared is not None:
            report["warnings"] = list(compared.warnings)
        if rows:
            report |= _exact_match(model, rows, progress)
        if windows:
            report |= _divergence(model, windows, compared, request.threads, progress)
    finally:
        model.session.close()
    report["machine"] = read_machine().to_dict()
    return report


def _exact_match(model: LoadedModel, rows: list[EvalRow], progress: Progress) -> dict[str, Any]:
    if model.template is None:
        raise CalibrationError(
            "the model has no chat template, so it answers no prompts", "Use --text instead"
        )
    progress.start("answer", len(rows), "prompts")
    result = evaluate_exact_match(
        model.session,
        rows,
        encode_chat=chat_encoder(model.tokenizer, model.template),
        decode=lambda ids: model.tokenizer.decode(ids, skip_special=False),
        eos_ids=model.config.eos_token_ids,
        progress=progress,
    )
    progress.finish(f"{result.correct} of {result.total} answers are exact")
    return result.to_dict()


def _windows(
    model: LoadedModel, request: EvalRequest, text: str | None, rows: list[EvalRow]
) -> tuple[Tokens, ...]:
    """Return what divergence is measured on: the text, else the rows as conversations.

    A base model's text begins with its BOS; later windows continue the text, as in published
    figures.
    """
    if text is not None:
        ids = model.tokenizer.encode(text, add_special=model.adds_bos)
        return split_windows(ids, request.window, request.text_tokens)
    template = model.template
    if request.reference is None or template is None:
        return ()

    def render(messages: Messages) -> str:
        return template.render(list(messages))

    windows = []
    for row in rows:
        whole = reasoned_text(row.prompt, row.reasoning, row.answer, render)
        windows.append(np.array(model.tokenizer.encode(whole)[: request.window], np.int64))
    return tuple(windows)


def _require_room(model: LoadedModel, windows: tuple[Tokens, ...]) -> None:
    """Refuse windows longer than the context now, not when their turn comes."""
    longest = max((len(window) for window in windows), default=0)
    if longest > model.session.max_context:
        raise ContextOverflowError(
            f"a window of {longest} tokens exceeds the context of {model.session.max_context}",
            "Give a smaller --window, or build with a larger --max-context",
        )


def _divergence(
    model: LoadedModel,
    windows: tuple[Tokens, ...],
    compared: Compared | None,
    threads: int,
    progress: Progress,
) -> dict[str, Any]:
    sample = TextSample(windows)
    tokens = sum(map(len, windows))
    if compared is not None:
        checkpoint = compared.checkpoint
        progress.start("reference", checkpoint.stored_bytes)
        reference = ReferenceModel(checkpoint.config, checkpoint.tensor, threads=threads)
        states = reference.hidden_states(windows, progress=progress)
        sample = TextSample(windows, reference, states)
        progress.finish(f"{tokens} tokens through the unquantized model")
    progress.start("measure", tokens, "tokens")
    quality = measure_session(model.session, sample, progress=progress)
    progress.finish(f"{quality.tokens} tokens through the bundle")
    return quality.to_dict()
