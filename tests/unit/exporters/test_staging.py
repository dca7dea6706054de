"""The configuration handed to Optimum says in transformers 4's words what the checkpoint's says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from optimum_graph import write_source

from edgekit.errors import CheckpointError, EdgekitError, UnsupportedModelError
from edgekit.exporters.source import context_limit, open_source
from edgekit.exporters.staging import rewrite_config, stage_checkpoint


def test_rope_parameters_become_top_level_keys() -> None:
    """The rotary base reaches the key transformers 4 reads, and code references do not."""
    section = {"rope_type": "default", "rope_theta": 5e5}
    config = {"model_type": "mistral", "rope_parameters": section, "auto_map": {"AutoModel": "x.X"}}
    staged = rewrite_config(config)
    assert staged == {"model_type": "mistral", "rope_theta": 5e5, "rope_scaling": None}


def test_scaling_becomes_rope_scaling() -> None:
    """What is neither base nor fraction is the scaling."""
    section = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": None}
    staged = rewrite_config({"rope_parameters": section})
    assert staged["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0}


def test_gpt_neox_has_its_own_names() -> None:
    """GPT-NeoX reads rotary_emb_base and rotary_pct."""
    section = {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.25}
    staged = rewrite_config({"model_type": "gpt_neox", "rope_parameters": section})
    assert (staged["rotary_emb_base"], staged["rotary_pct"]) == (2e4, 0.25)


def test_published_layout_is_left_alone() -> None:
    """A configuration in transformers 4's layout is handed on as it is."""
    config = {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert rewrite_config(config) == config


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, UnsupportedModelError,
         "for each kind of layer"),
        ({"rope_parameters": {"rope_type": "longrope"}}, UnsupportedModelError, "longrope"),
        ({"rope_parameters": {"rope_type": "linear", "odd": 1}}, UnsupportedModelError, "odd = 1"),
        ({"rope_scaling": {"type": "yarn", "attn_factor": 0.9}}, UnsupportedModelError,
         "attn_factor"),
        ({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}}, CheckpointError,
         "rope_theta 1.0"),
        ({"rope_scaling": {"type": "linear"}, "rope_parameters": {"rope_theta": 2.0}},
         CheckpointError, "another rope_scaling"),
        ({"rope_parameters": "x"}, CheckpointError, "must be an object"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_refused(
    config: dict[str, Any], kind: type[EdgekitError], message: str
) -> None:
    """Nothing is dropped silently."""
    with pytest.raises(kind, match=message):
        rewrite_config(config)


def test_staged_folder_has_links_and_a_new_config(tmp_path: Path) -> None:
    """Weights are linked, not copied; neither tokenizer nor code is there to be run."""
    source = open_source(write_source(tmp_path / "checkpoint"))
    (source.path / "modeling.py").write_text("raise SystemExit")
    stage_checkpoint(source, tmp_path / "staged")
    assert {p.name for p in (tmp_path / "staged").iterdir()} == {"config.json", "model.safetensors"}
    assert (tmp_path / "staged/model.safetensors").is_symlink()
    config = json.loads((tmp_path / "staged/config.json").read_text())
    assert config["rope_theta"] == 500000.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"model_type": "deepseek_v3"}, "latent attention"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
    ],
)
def test_sparse_and_quantized_are_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    """What edgekit does not build natively for a reason is not built this way either."""
    with pytest.raises(UnsupportedModelError, match=message):
        open_source(write_source(tmp_path / "c", **config))


def test_13_b_are_refused_by_the_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters are counted in the files, not believed of the configuration."""
    path = write_source(tmp_path / "c")
    monkeypatch.setattr("edgekit.models.families.MAX_PARAMETERS", 64)
    with pytest.raises(UnsupportedModelError, match="under 13 B"):
        open_source(path)


def test_context_stays_within_window_and_positions() -> None:
    """A sequence never gets longer than a sliding window: the graph attends to everything."""
    assert context_limit({"max_position_embeddings": 8192, "sliding_window": 4096}, 9999) == 4096
    config = {"max_position_embeddings": 8192, "sliding_window": 64, "use_sliding_window": False}
    assert context_limit(config, 9999) == 8192
    assert context_limit({"sliding_window": None, "n_positions": 1024}, 512) == 512
