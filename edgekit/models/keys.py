"""Reading ``config.json`` so that no key is overlooked.

Every key is *modelled* (it fills a field), *inert* (it cannot change the logits, at least not at
the value it has) or refused. Silently ignoring an unknown key is how exporters ship wrong models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from edgekit.errors import CheckpointError, UnsupportedModelError

Check = Callable[[Any], bool]
MAX_INTEGER = 2**63
"""Larger integers are no numbers of a model, and overflow a float sooner or later."""


def anything(value: Any) -> bool:
    """Accept every value: the key never changes the logits of a forward pass."""
    del value
    return True


def exactly(*allowed: Any) -> Check:
    """Accept only values at which the key changes nothing."""

    def check(value: Any) -> bool:
        return any(value is a or (type(value) is type(a) and value == a) for a in allowed)

    return check


def _all_full_attention(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and all(kind == "full_attention" for kind in value)
    )


_TOOLING = (
    *("finetuning_task", "id2label", "label2id", "prefix", "problem_type", "task_specific_params"),
    *("output_attentions", "output_hidden_states", "return_dict", "tf_legacy_loss", "torchscript"),
    *("tokenizer_class", "use_bfloat16"),
    # Sampling, which transformers 4 kept in config.json; generation_config.json decides.
    *("bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty"),
    *("do_sample", "early_stopping", "encoder_no_repeat_ngram_size"),
    *("exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id"),
    *("length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups"),
    *("num_beams", "num_return_sequences", "output_scores", "remove_invalid_values"),
    *("repetition_penalty", "return_dict_in_generate", "sep_token_id", "suppress_tokens"),
    *("temperature", "top_k", "top_p", "typical_p"),
)
"""Keys for the tools around a model: labels, output formats, sampling."""

INERT: dict[str, Check] = {
    "_attn_implementation": anything,
    "_attn_implementation_autoset": anything,
    "_name_or_path": anything,
    "architectures": anything,
    "attention_dropout": anything,
    "auto_map": exactly(None),
    "bos_token_id": anything,
    "dtype": anything,
    "eos_token_id": anything,
    "hidden_dropout": anything,
    "initializer_range": anything,
    "layer_types": _all_full_attention,
    "max_window_layers": anything,
    "model_type": anything,
    "pad_token_id": anything,
    "partial_rotary_factor": exactly(None, 1, 1.0),
    "pretraining_tp": exactly(None, 1),
    "quantization_config": anything,  # read by the checkpoint, which decodes the weights
    "rope_parameters": anything,  # modelled by rope_config
    "rope_scaling": anything,
    "rope_theta": anything,
    "torch_dtype": anything,
    "transformers_version": anything,
    "unsloth_fixed": anything,
    "use_cache": anything,
    "use_mrope": exactly(None, False),
    "use_sliding_window": exactly(None, False),
    # What transformers' full dumps (``to_json_string(use_diff=False)``) add of other architectures.
    "add_cross_attention": exactly(None, False),
    "chunk_size_feed_forward": exactly(None, 0),
    "cross_attention_hidden_size": exactly(None),
    "is_decoder": anything,
    "is_encoder_decoder": exactly(None, False),
    "moe_intermediate_size": anything,  # the published DeepSeekMath has it; there are no experts
    "pruned_heads": exactly(None, {}),
    "tie_encoder_decoder": exactly(None, False),
    "unsloth_version": anything,
    **dict.fromkeys(_TOOLING, anything),
}
"""Keys every family treats alike, and the values at which they are inert."""


class ConfigReader:
    """Takes keys out of a ``config.json`` mapping and refuses what is left over.

    Args:
        data: The parsed file.
        inert: Further inert keys of the family.
    """

    def __init__(self, data: Mapping[str, Any], inert: Mapping[str, Check] | None = None) -> None:
        self._data = data
        self._inert = {**INERT, **(inert or {})}
        self._taken: set[str] = set()

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """Return a modelled key of type ``kind``, or ``default`` when absent or null.

        Raises:
            CheckpointError: The value has another type.
        """
        self._taken.add(key)
        value = self._data.get(key)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < MAX_INTEGER else math.inf
        if type(value) is not kind:
            raise CheckpointError(
                f"config.json: {key} must be of type {kind.__name__}, is {value!r:.60}"
            )
        return value

    def need(self, key: str, kind: type) -> Any:
        """Return a modelled key that must be there."""
        value = self.get(key, kind)
        if value is None:
            raise CheckpointError(f"config.json lacks {key}", "The checkpoint is incomplete")
        return value

    def size(self, key: str, default: int | None = None, most: int = 2**24) -> int:
        """Return a modelled size: an integer from 1 to ``most``."""
        value = self.get(key, int, default)
        if value is None:
            raise CheckpointError(f"config.json lacks {key}", "The checkpoint is incomplete")
        if not 1 <= value <= most:
            raise CheckpointError(f"config.json: {key} is {value!s:.60}, outside 1 to {most}")
        return int(value)

    def finish(self) -> None:
        """Refuse every key that is neither modelled nor inert.

        Raises:
            UnsupportedModelError: Names the key, its value and what to do.
        """
        for key, value in self._data.items():
            if key in self._taken:
                continue
            check = self._inert.get(key)
            if check is None:
                raise UnsupportedModelError(
                    f"config.json has {key} = {value!r}, which edgekit does not model",
                    "If it does not change the logits, remove it from config.json; otherwise use a "
                    "checkpoint without it",
                )
            if not check(value):
                raise UnsupportedModelError(
                    f"config.json has {key} = {value!r}, which changes the model in a way edgekit "
                    "does not build",
                    "Use a checkpoint without it",
                )
