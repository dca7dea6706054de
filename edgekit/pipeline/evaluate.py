"""``edgekit eval``: exact match, divergence and perplexity of a bundle on the user's data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle.reader import Bundle
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.engine.load import LoadedModel, load_bundle
from edgekit.engine.ort import Provider
from edgekit.errors import CalibrationError, UnsupportedModelError
from edgekit.evaluate.exact_match import (
    EvalRow,
    chat_encoder,
    evaluate_exact_match,
    read_rows,
)
from edgekit.evaluate.reference import ReferenceModel, Tokens
from edgekit.evaluate.text_quality import TextSample, measure_session, split_windows
from edgekit.models.families import FAMILIES
from edgekit.progress import SILENT, Progress
from edgekit.quant.calibration import Messages, reasoned_text

MAX_TEXT_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """One ``edgekit eval``; at least one of ``data`` and ``text`` is given.

    Attributes:
        data: Rows of prompt, reasoning and answer.
        text: Plain text.
        reference: Unquantized checkpoint folder.
        limit: Rows of ``data`` to ask; None is all.
        window: Tokens of a window of text.
        text_tokens: Tokens of text used.
        sequences: Prompts answered at once.
        provider: Where to run.
        threads: CPU threads.
    """

    data: Path | None = None
    text: Path | None = None
    reference: Path | None = None
    limit: int | None = None
    window: int = 512
    text_tokens: int = 8192
    sequences: int = 8
    provider: Provider = "cpu"
    threads: int = 2


def evaluate_bundle(
    bundle: Bundle, request: EvalRequest, progress: Progress = SILENT
) -> dict[str, Any]:
    """Measure a bundle; the keys are those of ``docs/schemas/eval.schema.json``.

    Raises:
        CalibrationError: The data has the wrong form.
        UnsupportedModelError: There is no reference model of the family.
        EngineError: The engine fails.
    """
    if request.reference:
        _require_reference(bundle)
    rows = read_rows(request.data, request.limit) if request.data else []
    model = load_bundle(
        bundle,
        provider=request.provider,
        threads=request.threads,
        max_sequences=request.sequences,
    )
    report: dict[str, Any] = {"bundle": str(bundle.path), "digest": f"sha256:{bundle.digest}"}
    if rows:
        report |= _exact_match(model, rows, progress)
    windows = _windows(model, request, rows)
    if windows:
        report |= _divergence(model, windows, request, progress)
    model.session.close()
    return report


def _require_reference(bundle: Bundle) -> None:
    """Refuse --reference for a family whose unquantized model edgekit cannot run."""
    kind = bundle.manifest.model["model_type"]
    if kind not in FAMILIES:
        raise UnsupportedModelError(
            f"edgekit has no reference model of family {kind!r}, so --reference measures nothing",
            "Leave it out; the build's own check against the exported graph is in `inspect`",
        )


def _exact_match(model: LoadedModel, rows: list[EvalRow], progress: Progress) -> dict[str, Any]:
    if model.template is None:
        raise CalibrationError(
            "the model has no chat template, so it answers no prompts", "Use --text instead"
        )
    progress.start("answer", sum(len(row.prompt.encode()) for row in rows))
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


def _windows(model: LoadedModel, request: EvalRequest, rows: list[EvalRow]) -> tuple[Tokens, ...]:
    """Return what divergence is measured on: the text, else the rows as conversations."""
    if request.text:
        try:
            if request.text.stat().st_size > MAX_TEXT_BYTES:
                raise CalibrationError(f"{request.text} is larger than {MAX_TEXT_BYTES} bytes")
            text = request.text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CalibrationError(f"cannot read {request.text} as text: {error}") from error
        ids = model.tokenizer.encode(text)
        return split_windows(ids, request.window, request.text_tokens)
    template = model.template
    if not request.reference or template is None:
        return ()

    def render(messages: Messages) -> str:
        return template.render(list(messages))

    windows = []
    for row in rows:
        whole = reasoned_text(row.prompt, row.reasoning, row.answer, render)
        windows.append(np.array(model.tokenizer.encode(whole)[: request.window], np.int64))
    return tuple(windows)


def _divergence(
    model: LoadedModel, windows: tuple[Tokens, ...], request: EvalRequest, progress: Progress
) -> dict[str, Any]:
    sample = TextSample(windows)
    if request.reference:
        checkpoint = open_checkpoint(request.reference)
        progress.start("reference", checkpoint.stored_bytes)
        reference = ReferenceModel(checkpoint.config, checkpoint.tensor, threads=request.threads)
        states = reference.hidden_states(windows, progress=progress)
        sample = TextSample(windows, reference, states)
        progress.finish(f"{sum(map(len, windows))} tokens through the unquantized model")
    progress.start("measure", 0)
    quality = measure_session(model.session, sample)
    progress.finish(f"{quality.tokens} tokens through the bundle")
    return quality.to_dict()
