"""The published dense DeepSeek models under 13 B parameters, and how each is built by default.

Shapes are those of the models' ``config.json`` (fixtures under ``tests/data/configs``); parameters
are counted from them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """One published model.

    Attributes:
        hub_id: Repository on the Hugging Face hub.
        family: ``model_type``.
        parameters: All weights.
        context: ``max_position_embeddings``.
        cache_bytes_per_token: float16 keys and values of all layers.
        recipe: Default recipe.
        note: What sets it apart.
    """

    hub_id: str
    family: str
    parameters: int
    context: int
    cache_bytes_per_token: int
    recipe: str = "w4a16-g64"
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


_LLAMA_7B = ("llama", 6_910_365_696, 4096, 491_520)
_MHA = "multi-head attention: caches are large"
_LINEAR = f"linear rope scaling; {_MHA}"

PUBLISHED: tuple[PublishedModel, ...] = (
    PublishedModel(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "qwen2", 1_777_088_000, 131_072, 28_672
    ),
    PublishedModel(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "qwen2", 7_615_616_512, 131_072, 57_344
    ),
    PublishedModel(
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        "llama",
        8_030_261_248,
        131_072,
        131_072,
        note="llama3 rope scaling",
    ),
    PublishedModel(
        "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B",
        "qwen3",
        8_190_735_360,
        131_072,
        147_456,
        note="q/k norm, YaRN with attn_factor",
    ),
    PublishedModel("deepseek-ai/deepseek-llm-7b-base", *_LLAMA_7B, note=_MHA),
    PublishedModel("deepseek-ai/deepseek-llm-7b-chat", *_LLAMA_7B, note=_MHA),
    PublishedModel(
        "deepseek-ai/deepseek-coder-1.3b-base",
        "llama",
        1_346_471_936,
        16_384,
        196_608,
        note=_LINEAR,
    ),
    PublishedModel(
        "deepseek-ai/deepseek-coder-1.3b-instruct",
        "llama",
        1_346_471_936,
        16_384,
        196_608,
        note=_LINEAR,
    ),
    PublishedModel(
        "deepseek-ai/deepseek-coder-6.7b-base",
        "llama",
        6_740_512_768,
        16_384,
        524_288,
        note=_LINEAR,
    ),
    PublishedModel(
        "deepseek-ai/deepseek-coder-6.7b-instruct",
        "llama",
        6_740_512_768,
        16_384,
        524_288,
        note=_LINEAR,
    ),
    PublishedModel(
        "deepseek-ai/deepseek-coder-5.7bmqa-base",
        "llama",
        5_700_325_376,
        16_384,
        16_384,
        note="linear rope scaling; one key/value head",
    ),
    PublishedModel("deepseek-ai/deepseek-coder-7b-base-v1.5", *_LLAMA_7B, note=_MHA),
    PublishedModel("deepseek-ai/deepseek-coder-7b-instruct-v1.5", *_LLAMA_7B, note=_MHA),
    PublishedModel("deepseek-ai/deepseek-math-7b-base", *_LLAMA_7B, note=_MHA),
    PublishedModel("deepseek-ai/deepseek-math-7b-instruct", *_LLAMA_7B, note=_MHA),
    PublishedModel("deepseek-ai/deepseek-math-7b-rl", *_LLAMA_7B, note=_MHA),
    PublishedModel("deepseek-ai/DeepSeek-Prover-V1", *_LLAMA_7B, note=_MHA),
    PublishedModel("deepseek-ai/DeepSeek-Prover-V1.5-Base", *_LLAMA_7B, note=_MHA),
    PublishedModel("deepseek-ai/DeepSeek-Prover-V1.5-SFT", *_LLAMA_7B, note=_MHA),
    PublishedModel("deepseek-ai/DeepSeek-Prover-V1.5-RL", *_LLAMA_7B, note=_MHA),
    PublishedModel(
        "deepseek-ai/DeepSeek-Prover-V2-7B",
        "llama",
        6_910_365_696,
        65_536,
        491_520,
        note=f"YaRN; {_MHA}",
    ),
)
