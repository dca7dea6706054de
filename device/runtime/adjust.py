"""Changes to logits that a request asks for: penalties of what was said, and biases of tokens.

Sources: OpenAI's API reference for ``frequency_penalty``, ``presence_penalty`` and ``logit_bias``:
``logit - count * frequency - (count > 0) * presence + bias``, counting generated tokens;
``repetition_penalty`` from Keskar et al., "CTRL" (2019), section 4.1: positive logits of tokens of
prompt or answer are divided by it, others multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What a request changes of its logits; the defaults change nothing.

    Attributes:
        frequency: Taken off for each time a token was generated.
        presence: Taken off once a token was generated.
        repetition: Weakens tokens of the prompt and the answer; 1 does not.
        bias: Added, by token.
    """

    frequency: float = 0.0
    presence: float = 0.0
    repetition: float = 1.0
    bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def changes_nothing(self) -> bool:
        """Whether logits can be left where they are."""
        return not (self.frequency or self.presence or self.bias) and self.repetition == 1

    def apply(
        self, logits: npt.NDArray[np.float32], prompt: Sequence[int], generated: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Return changed logits [V]; the given ones are left as they are.

        Args:
            logits: float32 [V].
            prompt: Ids of the prompt.
            generated: Ids generated so far.
        """
        changed = logits.copy()
        if self.repetition != 1:
            said = np.unique(np.asarray([*prompt, *generated], np.int64))
            own = changed[said]
            changed[said] = np.where(own > 0, own / self.repetition, own * self.repetition)
        if generated and (self.frequency or self.presence):
            said, counts = np.unique(np.asarray(generated, np.int64), return_counts=True)
            changed[said] -= (counts * self.frequency + self.presence).astype(np.float32)
        for token, bias in self.bias.items():
            changed[token] += bias
        return changed
