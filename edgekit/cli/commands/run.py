"""``edgekit run``: chat with a bundle in the terminal."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from edgekit.cli.render import console, error_console


@click.command("run")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("--system", help="System message.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 is greedy. [default: bundle's]")
@click.option("--top-p", type=click.FloatRange(0, 1), help="Nucleus. [default: bundle's]")
@click.option("--top-k", type=click.IntRange(0), help="0 keeps every token. [default: bundle's]")
@click.option("--seed", type=click.IntRange(0), help="The same seed gives the same text.")
@click.option("--max-tokens", type=click.IntRange(1), help="Most tokens to generate.")
@click.option("--hide-reasoning", is_flag=True, help="Show the answer only.")
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where to run.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads. [default: cores]")
def command(bundle: Path, prompt: str | None, **options: Any) -> None:
    r"""Ask BUNDLE one PROMPT, or chat with it when no PROMPT is given.

    The model's reasoning is shown dimmed, its answer plain; the line after it has the speed. In a
    chat, an empty line or Ctrl-D ends. A PROMPT of - reads standard input.

    \b
    edgekit run model.bundle "What is 58 + 67?" --temperature 0
    """  # fmt: skip
    from edgekit.bundle.reader import open_bundle  # noqa: PLC0415
    from edgekit.engine.generate import TextGenerator  # noqa: PLC0415
    from edgekit.engine.load import load_bundle  # noqa: PLC0415

    model = load_bundle(
        open_bundle(bundle), provider=options["provider"], threads=options["threads"]
    )
    generator = TextGenerator(model.session, model.tokenizer, eos_ids=model.config.eos_token_ids)
    params = sampling_params(model, options)
    messages: list[Any] = []
    if options["system"]:
        messages.append({"role": "system", "content": options["system"]})
    one_shot = prompt is not None
    text = sys.stdin.read() if prompt == "-" else prompt
    while text := text or ask():
        messages.append({"role": "user", "content": text})
        answer = answer_aloud(
            generator, model.prompt(messages), params, hide_reasoning=options["hide_reasoning"]
        )
        messages.append({"role": "assistant", "content": answer})
        text = None
        if one_shot:
            break


def sampling_params(model: Any, options: dict[str, Any]) -> Any:
    """Return how to sample: the options, else the checkpoint's own generation_config.json."""
    from edgekit.bundle.layout import TOKENIZER_FOLDER  # noqa: PLC0415
    from edgekit.engine.sampler import SamplingParams  # noqa: PLC0415
    from edgekit.models.generation import generation_defaults  # noqa: PLC0415
    from edgekit.text.tokenizer import read_json_object  # noqa: PLC0415

    path = model.bundle.path / TOKENIZER_FOLDER / "generation_config.json"
    own = generation_defaults(read_json_object(path))
    defaults: dict[str, Any] = {
        **asdict(own),
        "seed": None,
        "max_tokens": None,
    }
    chosen: dict[str, Any] = {
        k: v if options[k] is None else options[k] for k, v in defaults.items()
    }
    return SamplingParams(**chosen)


def ask() -> str:
    """Read one line from the person; empty ends the chat."""
    try:
        return console().input("[bold]> [/]").strip()
    except EOFError:
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
