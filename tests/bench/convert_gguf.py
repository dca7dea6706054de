"""Run llama.cpp's own ``convert_hf_to_gguf.py`` on a checkpoint whose tokenizer it never saw.

The converter recognizes a tokenizer by a hash of what it makes of a test text and refuses any
other. The demonstration checkpoints have a tokenizer of their own, so this answers ``qwen2`` (the
same kind of byte-level BPE) in its place, and loads ``tokenizer.json`` as it is: transformers 5
adds a token of Qwen2's own to it, which the model's vocabulary has no room for. Weights are not
touched by either; the benchmarks give token ids, never text, to llama.cpp.

    python tests/bench/convert_gguf.py LLAMA_CPP_DIR CHECKPOINT --outtype bf16 --outfile F.gguf

Runs with the interpreter that has the converter's requirements; imports nothing of edgekit.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

PRE_TOKENIZER = "qwen2"


def answer_pre_tokenizer(owner: Any) -> None:
    """Make ``owner.get_vocab_base_pre`` answer :data:`PRE_TOKENIZER`; fail if it has none."""
    if not hasattr(owner, "get_vocab_base_pre"):
        sys.exit("this llama.cpp's converter has no get_vocab_base_pre: try a newer one")

    def get_vocab_base_pre(model: Any, tokenizer: Any) -> str:
        del model, tokenizer
        return PRE_TOKENIZER

    owner.get_vocab_base_pre = get_vocab_base_pre


def load_tokenizer_json(transformers: Any) -> None:
    """Make ``AutoTokenizer`` read ``tokenizer.json`` without a model family's additions."""
    transformers.AutoTokenizer.from_pretrained = (
        transformers.PreTrainedTokenizerFast.from_pretrained
    )


def main() -> int:
    """Patch, then run the converter with the remaining arguments."""
    if len(sys.argv) < 3:
        sys.exit(f"usage: {Path(__file__).name} LLAMA_CPP_DIR CHECKPOINT [converter's options]")
    source = Path(sys.argv[1]).resolve()
    script = source / "convert_hf_to_gguf.py"
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    answer_pre_tokenizer(importlib.import_module("conversion.base").TextModel)
    load_tokenizer_json(importlib.import_module("transformers"))
    sys.argv = [str(script), *sys.argv[2:]]
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
