"""``edgekit inspect``: what a checkpoint or a bundle holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from edgekit.cli.render import console, facts_table, grid_table, print_json
from edgekit.units import format_bytes

WORST_SHOWN = 8


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(path: Path, *, as_json: bool) -> None:
    """Show what PATH, a checkpoint folder or a bundle, holds."""
    from edgekit.bundle.reader import is_bundle  # noqa: PLC0415

    facts = _bundle_facts(path) if is_bundle(path) else _checkpoint_facts(path)
    if as_json:
        print_json(facts)
        return
    out = console()
    rows = [(k.replace("_", " "), _text(k, v)) for k, v in facts.items() if k != "worst_tensors"]
    out.print(facts_table(str(path), rows))
    worst = facts.get("worst_tensors")
    if worst:
        columns = ("worst tensors", "scheme", "relative RMSE", "SQNR dB")
        shown = [
            (row["name"], row["scheme"], str(row["relative_rmse"]), str(row["sqnr_db"]))
            for row in worst
        ]
        out.print()
        out.print(grid_table(columns, shown, numbers=columns[2:]))


def _checkpoint_facts(path: Path) -> dict[str, Any]:
    from edgekit.checkpoint.checkpoint import open_checkpoint  # noqa: PLC0415
    from edgekit.models.config import count_parameters  # noqa: PLC0415

    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    return {
        "kind": "checkpoint",
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
        "weights_bytes": checkpoint.stored_bytes,
        "shards": len(checkpoint.shards),
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
    if key == "parameters":
        return f"{value / 1e6:.1f} M"
    if key == "f16_exponents":
        shown = [f"{name} {exponent}" for name, exponent in value.items() if np.any(exponent)]
        return ", ".join(shown) or "none needed"
    return str(value)
