"""Recipes: TOML files that say how a model is quantized and within which limits it must stay.

Data only. An unknown key is an error that names the file, the table, the key and the nearest
valid one: a misspelt option never silently does nothing. The resolved recipe and its digest
stand in every bundle's manifest. Field reference: ``recipes/README.md``.
"""

from __future__ import annotations

import difflib
import hashlib
import reprlib
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from edgekit.contracts.canonical import canonical_bytes
from edgekit.errors import RecipeError
from edgekit.quant.plan import Rule
from edgekit.quant.scheme import QuantScheme

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEMA_VERSION = 1
DEFAULT_RECIPE = "w4a16-g64"
MAX_RECIPE_BYTES = 64 * 1024
MIN_CONTEXT = 32
"""A golden sequence must fit the context; less holds no conversation either."""
MAX_CONTEXT = 1 << 24

Method = Literal["rtn", "gptq", "awq", "awq-gptq"]
HeadType = Literal["int4", "int8", "float16"]
EmbeddingType = Literal["float16", "int8"]

_CHOICES: dict[str, tuple[Any, ...]] = {
    "bits": (4, 8),
    "group_size": (0, 32, 64, 128),
    "scale_search": ("absmax", "mse"),
    "algorithm": ("rtn", "gptq", "awq", "awq-gptq"),
    "dtype": ("float16", "int4", "int8"),
}
_LARGEST = 2**53
"""Other readers of a manifest round larger numbers."""
_RANGES: dict[str, tuple[float, float]] = {
    "max_context": (MIN_CONTEXT, MAX_CONTEXT),
    "max_sequences": (1, MAX_CONTEXT),
    "tokens": (1, _LARGEST),
    "window": (1, _LARGEST),
    "mixed_bits_per_weight": (0, 16),
    "top1_agreement_min": (0, 1),
}


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How some linears are stored: ``dtype = "float16"``, or integer codes and scales."""

    dtype: HeadType = "int4"
    group_size: int = 64
    scale_search: Literal["absmax", "mse"] = "mse"

    def scheme(self, algorithm: Method) -> QuantScheme | None:
        """Return the scheme; None is a dense float16 weight."""
        if self.dtype == "float16":
            return None
        bits: Literal[4, 8] = 4 if self.dtype == "int4" else 8
        return QuantScheme(bits, self.group_size, self.scale_search, algorithm)


@dataclass(frozen=True, slots=True)
class Override:
    """A format for the linears whose name matches ``pattern`` (shell wildcards)."""

    pattern: str
    dtype: HeadType = "int8"
    group_size: int = 64
    scale_search: Literal["absmax", "mse"] = "mse"
    reason: str = "recipe override"

    def scheme(self, algorithm: Method) -> QuantScheme | None:
        """Return the scheme; None is a dense float16 weight."""
        return WeightFormat(self.dtype, self.group_size, self.scale_search).scheme(algorithm)


@dataclass(frozen=True, slots=True)
class Embedding:
    """How the token embedding is stored; int8 has one scale per token."""

    dtype: EmbeddingType = "float16"


@dataclass(frozen=True, slots=True)
class Quantization:
    """The ``[quant]`` table.

    Attributes:
        algorithm: ``rtn`` needs no data; ``gptq`` (arXiv 2210.17323), ``awq`` (arXiv 2306.00978)
            and both together need calibration data.
        mixed_bits_per_weight: Budget for giving sensitive linears smaller groups or 8 bits, by
            measured KL divergence; 0 leaves every linear as its table says. Needs data, too.
    """

    algorithm: Method = "rtn"
    mixed_bits_per_weight: float = 0.0
    linear: WeightFormat = field(default_factory=WeightFormat)
    lm_head: WeightFormat = field(default_factory=WeightFormat)
    embedding: Embedding = field(default_factory=Embedding)
    override: tuple[Override, ...] = ()


@dataclass(frozen=True, slots=True)
class Calibration:
    """Which calibration data an algorithm reads.

    Attributes:
        tokens: Tokens, in windows of ``window``.
        window: Tokens of a sequence.
        seed: Chooses among more text than is wanted.
        segment_tokens: ``[low, high]`` fills windows with random segments of that many tokens,
            for text the model knows by heart; ``[0, 0]`` keeps the text's order.
    """

    tokens: int = 32768
    window: int = 512
    seed: int = 0
    segment_tokens: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class GraphOptions:
    """Sizes of the exported graph; ``--max-context`` and ``--max-sequences`` override them."""

    max_context: int = 4096
    max_sequences: int = 8


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Limits the built bundle must keep on its golden sequences; 0 turns one off."""

    kl_divergence_nats_max: float = 0.0
    top1_agreement_min: float = 0.0


@dataclass(frozen=True, slots=True)
class Expected:
    """What ``edgekit plan`` gives for the recipe's model on its target; 0 where not stated.

    A record for people and tests: a build neither reads nor keeps it.

    Attributes:
        weights_bytes: Every stored tensor.
        memory_bytes: Weights, caches, activations and runtime together.
        decode_tokens_per_s: Projected, of one sequence at the plan's shortest context.
        prefill_tokens_per_s: Projected, of a prompt of that length.
    """

    weights_bytes: int = 0
    memory_bytes: int = 0
    decode_tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole recipe, defaults filled in.

    ``model`` (a hub id) and ``target`` say what a recipe was written for; they and ``expected``
    decide no byte of a bundle, and have no part in the digest.
    """

    name: str
    description: str = ""
    schema_version: int = SCHEMA_VERSION
    quant: Quantization = field(default_factory=Quantization)
    calibration: Calibration = field(default_factory=Calibration)
    graph: GraphOptions = field(default_factory=GraphOptions)
    acceptance: Acceptance = field(default_factory=Acceptance)
    model: str = ""
    target: str = ""
    expected: Expected = field(default_factory=Expected)

    @property
    def needs_calibration(self) -> bool:
        """Whether the recipe cannot be built without ``--calibration``."""
        quant = self.quant
        return quant.algorithm != "rtn" or quant.mixed_bits_per_weight > 0

    def resolved(self) -> dict[str, Any]:
        """Return every field that decides a bundle, defaults included, in JSON's types."""
        data = asdict(self)
        for key in ("model", "target", "expected"):
            del data[key]
        data["quant"]["override"] = list(data["quant"]["override"])
        data["calibration"]["segment_tokens"] = list(data["calibration"]["segment_tokens"])
        return data

    def digest(self) -> str:
        """Return the sha256 of the resolved recipe's canonical JSON, in hex."""
        return hashlib.sha256(canonical_bytes(self.resolved())).hexdigest()

    def rules(self) -> tuple[Rule, ...]:
        """Return the quantization rules, general ones first: the last match wins."""
        quant = self.quant
        algorithm = quant.algorithm
        head = quant.lm_head.scheme(algorithm)
        rules = [
            Rule("model.layers.*", quant.linear.scheme(algorithm), "quant.linear"),
            Rule("lm_head", head, "quant.lm_head"),
        ]
        rules += [Rule(o.pattern, o.scheme(algorithm), o.reason) for o in quant.override]
        return tuple(rules)


def parse_recipe(text: str, source: str) -> Recipe:
    """Parse a recipe's TOML.

    Args:
        text: The file's content.
        source: What to call it in errors.

    Raises:
        RecipeError: Not TOML, an unknown key, a wrong type or a value out of range.
    """
    try:
        data = tomllib.loads(text)
    except RecursionError as error:
        raise RecipeError(f"{source} nests its values too deeply") from error
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise RecipeError(f"{source} is not valid TOML: {error}") from error
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise RecipeError(
            f"{source} has schema_version {_show(version)}, this edgekit reads {SCHEMA_VERSION}",
            f"Put schema_version = {SCHEMA_VERSION} first",
        )
    recipe: Recipe = _read(Recipe, data, source, "")
    if not recipe.name:
        raise RecipeError(f"{source} has no name", 'Add name = "..."')
    return recipe


def _read(kind: Any, data: Any, source: str, table: str) -> Any:
    """Fill dataclass ``kind`` from a TOML table, strictly."""
    where = f"[{table}]" if table else "the top level"
    if not isinstance(data, dict):
        raise RecipeError(f"{source}: {where} must be a table")
    known = {f.name: f for f in fields(kind)}
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"Valid keys: {', '.join(known)}"
            raise RecipeError(f"{source}: {where} has an unknown key {_show(key)}", hint)
    values: dict[str, Any] = {}
    for key, value in data.items():
        path = f"{table}.{key}" if table else key
        values[key] = _value(kind, key, value, source, path)
    try:
        return kind(**values)
    except TypeError as error:
        missing = str(error).rsplit(":", 1)[-1].strip()
        raise RecipeError(f"{source}: {where} lacks {missing}") from error


_TABLES: dict[tuple[str, str], Any] = {
    ("Recipe", "quant"): Quantization,
    ("Recipe", "calibration"): Calibration,
    ("Recipe", "graph"): GraphOptions,
    ("Recipe", "acceptance"): Acceptance,
    ("Recipe", "expected"): Expected,
    ("Quantization", "linear"): WeightFormat,
    ("Quantization", "lm_head"): WeightFormat,
    ("Quantization", "embedding"): Embedding,
}
_TYPES = {"int": int, "float": float, "str": str, "bool": bool}


def _value(kind: Any, key: str, value: Any, source: str, path: str) -> Any:
    """Check one value against its field's type, choices and range."""
    table = _TABLES.get((kind.__name__, key))
    if table is not None:
        return _read(table, value, source, path)
    if key == "override":
        if not isinstance(value, list):
            raise RecipeError(f"{source}: {path} must be an array of tables [[{path}]]")
        return tuple(_read(Override, row, source, path) for row in value)
    if key == "segment_tokens":
        return _interval(value, source, path)
    if key in _CHOICES:
        choices = ("float16", "int8") if kind is Embedding else _CHOICES[key]
        # By type, too: 64.0 equals 64, and True equals 1.
        if not any(type(value) is type(c) and value == c for c in choices):
            names = ", ".join(str(c) for c in choices)
            raise RecipeError(f"{source}: {path} is {_show(value)}", f"Use one of: {names}")
        return value
    return _scalar(kind, key, value, source, path)


def _scalar(kind: Any, key: str, value: Any, source: str, path: str) -> Any:
    wanted = next(f.type for f in fields(kind) if f.name == key)
    expected = _TYPES[str(wanted)]
    if type(value) is not expected and (expected, type(value)) != (float, int):
        raise RecipeError(f"{source}: {path} must be of type {wanted}, got {_show(value)}")
    if isinstance(value, str):
        return value
    low, high = _RANGES.get(key, (0, _LARGEST))
    if not low <= value <= high:  # NaN is within no range
        raise RecipeError(
            f"{source}: {path} must be at least {low} and at most {high}, got {_show(value)}"
        )
    return expected(value)


def _interval(value: Any, source: str, path: str) -> tuple[int, int]:
    if not (isinstance(value, list) and [type(v) for v in value] == [int, int]):
        raise RecipeError(f"{source}: {path} must be two integers, got {_show(value)}")
    if not 0 <= value[0] <= value[1] <= _LARGEST:
        raise RecipeError(f"{source}: {path} must be [low, high], got {_show(value)}")
    return value[0], value[1]


def _show(value: Any) -> str:
    """Return a value as an error shows it: a line, whatever its size."""
    return reprlib.repr(value)


def load_recipe(name: str) -> Recipe:
    """Load a recipe by file path or by the name of one that ships with edgekit.

    Raises:
        RecipeError: No such recipe, or it is wrong.
    """
    path = Path(name)
    if path.suffix != ".toml":
        shipped = shipped_recipes()
        if name not in shipped:
            near = difflib.get_close_matches(name, shipped, n=1)
            hint = f"Did you mean {near[0]}?" if near else "`edgekit recipes` lists them"
            raise RecipeError(f"there is no recipe named {name!r}", hint)
        path = shipped[name]
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(f"{path} is larger than {MAX_RECIPE_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read recipe {path}: {error}") from error
    return parse_recipe(text, path.name)


def default_recipe(model: str, target: str) -> str:
    """Return the name of the recipe a build takes unless told otherwise.

    Args:
        model: The model's name, without an owner.
        target: The target's name.
    """
    own = f"{model}.{DEFAULT_RECIPE}.{target}"
    return own if own in shipped_recipes() else DEFAULT_RECIPE


def shipped_recipes() -> dict[str, Path]:
    """Return name to file of the recipes that ship with edgekit, sorted by name."""
    package = Path(__file__).parent
    folder = package / "_recipes"
    if not folder.is_dir():  # a checkout or an editable install
        folder = package.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}
