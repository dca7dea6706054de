"""``edgekit inspect``: what a checkpoint or a bundle holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from edgekit.cli.idle import refuse_idle
from edgekit.cli.render import StageProgress, console, facts_table, grid_table, print_json
from edgekit.units import format_bytes

WORST_SHOWN = 8


@click.command("inspect")
@click.argument("what", metavar="MODEL|BUNDLE")
@click.option("--revision", help="Commit, tag or branch of a hub id.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(what: str, *, revision: str | None, as_json: bool) -> None:
    r"""Show what MODEL, a checkpoint folder or a hub id, or a BUNDLE holds.

    Of a hub id only the configuration and the headers of the weights are fetched.

    \b
    edgekit inspect deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B
    """  # fmt: skip
    from edgekit.bundle.reader import is_bundle  # noqa: PLC0415
    from edgekit.checkpoint.hub import local_folder  # noqa: PLC0415

    path = Path(what).expanduser()
    if local_folder(what) is not None:
        refuse_idle("with a folder", "revision")
    facts = _bundle_facts(path) if is_bundle(path) else _checkpoint_facts(what, revision)
    if as_json:
        print_json(facts)
        return
    out = console()
    shown = {k: v for k, v in facts.items() if k != "worst_tensors" and v is not None}
    rows = [(k.replace("_", " "), _text(k, v)) for k, v in shown.items()]
    out.print(facts_table(what, rows))
    worst = facts.get("worst_tensors")
    if worst:
        columns = ("worst tensors", "scheme", "relative RMSE", "SQNR dB")
        cells = [
            (row["name"], row["scheme"], str(row["relative_rmse"]), str(row["sqnr_db"]))
            for row in worst
        ]
        out.print()
        out.print(grid_table(columns, cells, numbers=columns[2:]))


def _checkpoint_facts(model: str, revision: str | None) -> dict[str, Any]:
    from edgekit.checkpoint.outline import read_outline  # noqa: PLC0415
    from edgekit.models.config import count_parameters  # noqa: PLC0415

    with StageProgress(quiet=True) as progress:
        progress.start("open", 0)
        outline = read_outline(model, revision=revision, progress=progress)
        progress.finish()
    config = outline.config
    return {
        "kind": "checkpoint",
        "revision": outline.revision,
        "model_type": config.model_type,
        "parameters": count_parameters(config),
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "heads": f"{config.num_attention_heads} / {config.num_key_value_heads} key-value",
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_type": config.rope.rope_type,
        "rope_theta": config.rope.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "weights_bytes": outline.weights_bytes,
        "shards": outline.shards,
        "tensors_checked": outline.tensors_checked,
        "cache_bytes_per_token": _cache_bytes(config),
    }


def _bundle_facts(path: Path) -> dict[str, Any]:
    from edgekit.bundle.reader import open_bundle  # noqa: PLC0415
    from edgekit.models.exported import stored_config  # noqa: PLC0415

    bundle = open_bundle(path)
    manifest = bundle.manifest
    config = stored_config(manifest.model["config"])
    quality = manifest.quality
    return {
        "kind": "bundle",
        "name": manifest.name,
        "digest": f"sha256:{bundle.digest}",
        "model_type": config.model_type,
        "parameters": manifest.model["parameters"],
        "target": manifest.target["title"],
        "recipe": manifest.recipe["name"],
        "bits_per_linear_weight": manifest.size["bits_per_linear_weight"],
        "full_bytes": bundle.total_bytes,
        "weights_bytes": manifest.size["weights_bytes"],
        "max_context": manifest.limits["max_context"],
        "max_sequences": manifest.limits["max_sequences"],
        "cache_bytes_per_token": _cache_bytes(config),
        "graphs": ", ".join(f"{g.name} ({g.purpose})" for g in manifest.graphs),
        "tensors": len(manifest.tensors),
        "f16_exponents": manifest.f16_exponents,
        "kl_divergence_nats": quality.get("kl_divergence_nats"),
        "top1_agreement": quality.get("top1_agreement"),
        "worst_tensors": quality["tensors"][:WORST_SHOWN],
    }


def _cache_bytes(config: Any) -> int:
    """Return float16 key and value bytes a token takes."""
    return int(4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim)


def _text(key: str, value: Any) -> str:
    if key.endswith("bytes"):
        return f"{format_bytes(value)} ({value})"
    if key == "tensors_checked":
        return "yes" if value else "no: such weights are looked into once they are fetched"
    if key == "parameters":
        return f"{value / 1e6:.1f} M"
    if key == "f16_exponents":
        shown = [f"{name} {exponent}" for name, exponent in value.items() if np.any(exponent)]
        return ", ".join(shown) or "none needed"
    return str(value)
