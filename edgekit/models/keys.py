"""Reading ``config.json`` so that no key is overlooked.

Every key is *modelled* (it fills a field), *inert* (it cannot change the logits, at least not at
the value it has) or refused. Silently ignoring an unknown key is how exporters ship wrong models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgekit.errors import CheckpointError, UnsupportedModelError

Check = Callable[[Any], bool]


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
    return value is None or (isinstance(value, list) and set(value) <= {"full_attention"})


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
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(
                f"config.json: {key} must be of type {kind.__name__}, is {value!r}"
            )
        return value

    def need(self, key: str, kind: type) -> Any:
        """Return a modelled key that must be there."""
        value = self.get(key, kind)
        if value is None:
            raise CheckpointError(f"config.json lacks {key}", "The checkpoint is incomplete")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """Return a modelled size: an integer from 1 to 2**24."""
        value = self.get(key, int, default)
        if value is None:
            raise CheckpointError(f"config.json lacks {key}", "The checkpoint is incomplete")
        if not 1 <= value <= 2**24:
            raise CheckpointError(f"config.json: {key} is {value}, outside 1 to 2**24")
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
