"""``edgekit run``: chat with a bundle in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from edgekit.cli.figures import Figure
from edgekit.cli.idle import refuse_idle
from edgekit.cli.render import StageProgress, console, error_console, print_json
from edgekit.power import read_machine


@click.command("run")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("--system", help="System message.")
@click.option("--temperature", type=Figure(0, 2), help="0 is greedy. [default: bundle's]")
@click.option("--top-p", type=Figure(0, 1), help="Nucleus. [default: bundle's]")
@click.option("--top-k", type=click.IntRange(0), help="0 keeps every token. [default: bundle's]")
@click.option("--seed", type=click.IntRange(0), help="The same seed gives the same text.")
@click.option("--max-tokens", type=click.IntRange(1), help="Most tokens to generate.")
@click.option("--hide-reasoning", is_flag=True, help="Show the answer only.")
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda", "tensorrt", "auto"]),
    default="cpu",
    show_default=True,
    help="Where to run; auto is what `edgekit engine choose` chose.",
)
@click.option(
    "--fallback",
    type=click.Choice(["cpu", "cuda"]),
    help="Where to run if --provider tensorrt cannot, with a warning. [default: nowhere]",
)
@click.option(
    "--dialect",
    type=click.Choice(["standard", "ort"]),
    help="Which of the bundle's graphs to run. [default: ort where there is one, the faster]",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads. [default: cores]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document when it is done.")
@click.option("--no-digests", is_flag=True, help="Start without checking the bundle's bytes.")
def command(bundle: Path, prompt: str | None, **options: Any) -> None:
    r"""Ask BUNDLE one PROMPT, or chat with it when no PROMPT is given.

    The model's reasoning is shown dimmed, its answer plain; the line after it has the speed. In a
    chat, an empty line or Ctrl-D ends. A PROMPT of - reads standard input. With --json nothing is
    streamed: one document has the text and the figures.

    \b
    edgekit run model.bundle "What is 58 + 67?" --temperature 0
    """  # fmt: skip
    if options["as_json"] and prompt is None:
        raise click.UsageError("--json needs a PROMPT: a chat is not one document")
    text = None if prompt is None else read_prompt(prompt)
    if options["provider"] == "auto":
        refuse_idle("with --provider auto", "dialect")
    if options["provider"] not in {"tensorrt", "auto"}:
        refuse_idle(f"with --provider {options['provider']}", "fallback")
    from edgekit.engine.generate import TextGenerator  # noqa: PLC0415

    model = load(bundle, options)
    generator = TextGenerator(
        model.session,
        model.tokenizer,
        eos_ids=model.config.eos_token_ids,
        add_bos=model.adds_bos,
    )
    params = sampling_params(model, options)
    messages: list[Any] = []
    if options["system"]:
        messages.append({"role": "system", "content": options["system"]})
    hide = options["hide_reasoning"]
    if text is not None:
        rendered = model.prompt([*messages, {"role": "user", "content": text}])
        if options["as_json"]:
            done = generator.complete(rendered, params)
            print_json(describe_answer(model, done, hide_reasoning=hide))
        else:
            warn(model.warnings)
            answer_aloud(generator, rendered, params, hide_reasoning=hide)
            warn(read_machine().warnings())
        return
    chat(model, generator, params, messages, hide_reasoning=hide)


def read_prompt(prompt: str) -> str:
    """Return what is asked: PROMPT, or where it is ``-`` standard input.

    Raises:
        UsageError: There is nothing in it, or it is no text.
    """
    where = "PROMPT"
    try:
        if prompt == "-":
            where = "standard input"
            # The newline that ends the input is the shell's, not the prompt's.
            prompt = sys.stdin.read().removesuffix("\n")
        prompt.encode()  # Python hands bytes that are no text over as lone surrogates
    except UnicodeError as error:
        raise click.UsageError(f"{where} is not UTF-8 text") from error
    if not prompt.strip():
        raise click.UsageError(f"{where} is empty: ask something, or leave PROMPT out to chat")
    return prompt


def load(bundle: Path, options: dict[str, Any]) -> Any:
    """Return the bundle loaded as the options say."""
    from edgekit.bundle.reader import open_bundle  # noqa: PLC0415
    from edgekit.engine.load import load_bundle  # noqa: PLC0415

    opened, warnings = open_bundle(bundle), tuple[str, ...]()
    if options["provider"] == "auto":
        from edgekit.choice.kept import chosen_options  # noqa: PLC0415
        from edgekit.trt.engine_cache import default_folder  # noqa: PLC0415

        chosen, warnings = chosen_options(default_folder(), opened, options["threads"])
        options = {**options, **chosen}
    with StageProgress(quiet=True) as progress:
        model = load_bundle(
            opened,
            provider=options["provider"],
            fallback=options["fallback"],
            threads=options["threads"],
            dialect=options["dialect"],
            digests=not options["no_digests"],
            progress=progress,
        )
    return replace(model, warnings=(*model.warnings, *warnings))


def chat(
    model: Any, generator: Any, params: Any, messages: list[Any], *, hide_reasoning: bool
) -> None:
    """Answer what is asked in the terminal until it ends; warns of the speed once."""
    warn(model.warnings)
    warned = False
    while text := ask():
        messages.append({"role": "user", "content": text})
        rendered = model.prompt(messages)
        answer = answer_aloud(generator, rendered, params, hide_reasoning=hide_reasoning)
        if not warned:
            warn(read_machine().warnings())
            warned = True
        messages.append({"role": "assistant", "content": answer})


def sampling_params(model: Any, options: dict[str, Any]) -> Any:
    """Return how to sample: the options, else the checkpoint's own generation_config.json."""
    names = ("temperature", "top_p", "top_k", "seed", "max_tokens")
    chosen = {name: options[name] for name in names if options[name] is not None}
    return replace(model.own_sampling, **chosen)


def describe_answer(model: Any, done: Any, *, hide_reasoning: bool) -> dict[str, Any]:
    """Return a finished generation as JSON (``docs/schemas/run.schema.json``).

    Args:
        model: What generated it.
        done: The generation.
        hide_reasoning: Whether ``reasoning`` is null.
    """
    stats, first_s = done.stats, done.stats.time_to_first_token_s
    machine = read_machine()
    return {
        "bundle": str(model.bundle.path),
        "digest": f"sha256:{model.bundle.digest}",
        # Templates put blank lines after the reasoning; they are not the answer's.
        "text": done.answer.lstrip() if done.reasoning else done.answer,
        "reasoning": None if hide_reasoning else done.reasoning,
        "finish_reason": stats.finish_reason,
        "seed": stats.seed,
        "prompt_tokens": stats.prompt_tokens,
        "generated_tokens": stats.generated_tokens,
        "time_to_first_token_s": round(first_s, 6),
        "prefill_tokens_per_s": round(stats.prompt_tokens / first_s, 3) if first_s > 0 else 0.0,
        "decode_tokens_per_s": round(stats.decode_tokens_per_s, 3),
        "machine": machine.to_dict(),
        "warnings": [*model.warnings, *machine.warnings()],
    }


def warn(warnings: Iterable[str]) -> None:
    """Say on stderr what the user is to know: another engine, or a speed below the board's best."""
    for warning in warnings:
        line = Text.assemble(("warning", "bold yellow"), " ", warning)
        error_console().print(line, soft_wrap=True)


def ask() -> str:
    """Read one line from the person; empty ends the chat."""
    try:
        return console().input("[bold]> [/]").strip()
    except EOFError:
        console().print()
        return ""


def answer_aloud(generator: Any, prompt: str, params: Any, *, hide_reasoning: bool) -> str:
    """Stream one answer to stdout; returns the answer without its reasoning."""
    out = console()
    generation = generator.stream(prompt, params)
    reasoning, answering = False, False
    for piece in generation:
        if piece.is_reasoning:
            reasoning = True
            if not hide_reasoning:
                write(out, piece.text, dim=True)
            continue
        # Templates put blank lines after the reasoning; one is enough.
        text = piece.text if answering else piece.text.lstrip()
        if text and not answering and reasoning and not hide_reasoning:
            out.print()
        answering = answering or bool(text)
        write(out, text, dim=False)
    out.print()
    stats = generation.stats
    cut = " (cut off: --max-tokens or the context's end)" if stats.finish_reason == "length" else ""
    error_console().print(
        f"{stats.prompt_tokens} prompt tokens, first token after "
        f"{1000 * stats.time_to_first_token_s:.0f} ms, {stats.generated_tokens} tokens at "
        f"{stats.decode_tokens_per_s:.1f} tokens/s{cut}",
        style="dim",
        soft_wrap=True,
    )
    return str(generation.answer)


def write(out: Console, text: str, *, dim: bool) -> None:
    """Write a piece as it is: a model's text is never markup, and never wrapped."""
    out.print(text, style="dim" if dim else None, end="", markup=False, soft_wrap=True)
    out.file.flush()
