"""The manifest of a bundle, format version 1 (``docs/bundle-format.md``).

Frozen dataclasses over canonical JSON. Unknown fields are kept and written back, so an older
reader passes a newer writer's manifest on unchanged; a newer ``schema_version`` is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, Literal

from edgekit.contracts.canonical import canonical_bytes, parse_document
from edgekit.contracts.engine_plan import check_plan
from edgekit.contracts.fields import check_choice, check_fields, check_rows
from edgekit.errors import BundleError

FORMAT = "edgekit-bundle"
SCHEMA_VERSION = 1
MAX_PATH_CHARS = 255
MAX_ENTRIES = 100_000
MAX_DIMENSIONS = 8

Dtype = Literal["int4", "int8", "float16", "float32"]
Role = Literal["codes", "scales", "dense"]
BITS: dict[str, int] = {"int4": 4, "int8": 8, "float16": 16, "float32": 32}
_SHA256 = re.compile(r"[0-9a-f]{64}")

_FILE = {"path": "text", "size_bytes": "count", "sha256": "text"}
_GRAPH = {
    **dict.fromkeys(("name", "path", "dialect", "activation_dtype", "purpose"), "text"),
    "opset": "positive",
}
_TENSOR = {
    **dict.fromkeys(("name", "role", "dtype", "sha256"), "text"),
    "shape": "counts",
    "size_bytes": "count",
    "scheme": "text?",
}
_ERROR = {"name": "text", "scheme": "text", "relative_rmse": "number", "sqnr_db": "number?"}
_PARTS: dict[str, dict[str, str]] = {
    "model": {
        **dict.fromkeys(("source", "model_type"), "text"),
        "revision": "text?",
        "parameters": "count",
        "config": "object",
    },
    "recipe": {**dict.fromkeys(("name", "sha256"), "text"), "resolved": "object"},
    "target": {"name": "text", "title": "text"},
    "requirements": {
        **dict.fromkeys(("l4t", "tensorrt", "onnxruntime"), "text"),
        **dict.fromkeys(("memory_bytes", "disk_bytes"), "count"),
    },
    "limits": {"max_context": "positive", "max_sequences": "positive"},
    "tools": {},
    "f16_exponents": {},
    "golden": {"path": "text", "sequences": "count", "tokens": "count", "scored_by": "text"},
    "quality": {"checked": "flag", "tensors": "list"},
    "size": {
        **dict.fromkeys(("weights_bytes", "linear_bytes"), "count"),
        "bits_per_linear_weight": "number",
    },
}
"""The mappings of a manifest, and what of each a reader may rely on."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A plain file of the bundle (graph, tokenizer, golden sequences), or of the checkpoint."""

    path: str
    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        check_path(self.path)
        _check_digest(self.sha256, self.path)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One stored tensor; its bytes are the blob ``blobs/<2 hex>/<sha256>``.

    Attributes:
        name: Initializer name in the graphs.
        role: ``codes`` and ``scales`` of a quantized weight, or ``dense``.
        dtype: Element type as stored.
        shape: Logical shape; int4 counts elements.
        size_bytes: Length of the blob.
        sha256: Digest of the blob, hex.
        scheme: ``w4-g64`` and the like for codes and scales; None for dense tensors.
    """

    name: str
    role: Role
    dtype: Dtype
    shape: tuple[int, ...]
    size_bytes: int
    sha256: str
    scheme: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in BITS or self.role not in {"codes", "scales", "dense"}:
            raise BundleError(f"tensor {self.name} has dtype {self.dtype!r}, role {self.role!r}")
        if len(self.shape) > MAX_DIMENSIONS:
            raise BundleError(f"tensor {self.name} has {len(self.shape)} dimensions")
        elements = 1
        for dim in self.shape:
            elements *= dim
        if elements * BITS[self.dtype] != 8 * self.size_bytes or min(self.shape, default=1) < 1:
            raise BundleError(
                f"tensor {self.name} has {self.size_bytes} bytes, "
                f"its shape {list(self.shape)} of {self.dtype} does not"
            )
        _check_digest(self.sha256, self.name)


@dataclass(frozen=True, slots=True)
class GraphEntry:
    """One ONNX graph over the bundle's tensors.

    Attributes:
        name: ``<dialect>.<activation dtype>``.
        path: Its file, also listed among the files.
        purpose: ``target`` runs on the device, ``host`` is for checking on a CPU; a graph that
            serves both is a ``target``.
    """

    name: str
    path: str
    dialect: str
    opset: int
    activation_dtype: str
    purpose: Literal["target", "host"]

    def __post_init__(self) -> None:
        check_path(self.path)
        where = f"graph {self.name}"
        check_choice(self.activation_dtype, ("float16", "float32"), f"{where}: activation_dtype")
        check_choice(self.purpose, ("target", "host"), f"{where}: purpose")


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a reader must know before it opens a blob.

    The mappings are documented key by key in ``docs/bundle-format.md``: ``model``, ``recipe``,
    ``target``, ``requirements``, ``limits``, ``tools``, ``f16_exponents``, ``golden``,
    ``quality``, ``size``, ``engine_plans``, ``compile_check`` (None in bundles of before it).
    """

    name: str
    model: Mapping[str, Any]
    checkpoint_files: tuple[FileEntry, ...]
    recipe: Mapping[str, Any]
    target: Mapping[str, Any]
    requirements: Mapping[str, Any]
    limits: Mapping[str, int]
    tools: Mapping[str, str]
    files: tuple[FileEntry, ...]
    graphs: tuple[GraphEntry, ...]
    tensors: tuple[TensorEntry, ...]
    f16_exponents: Mapping[str, Any]
    golden: Mapping[str, Any]
    quality: Mapping[str, Any]
    size: Mapping[str, Any]
    engine_plans: tuple[Mapping[str, Any], ...] = ()
    compile_check: Mapping[str, Any] | None = None
    schema_version: int = SCHEMA_VERSION
    unrecognized: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, unknown fields included."""
        data: dict[str, Any] = {"format": FORMAT, **self.unrecognized}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "unrecognized" and value is not None:
                data[item.name] = _plain(value)
        return data

    def to_bytes(self) -> bytes:
        """Return the canonical bytes that are stored as ``manifest.json``."""
        return canonical_bytes(self.to_dict())

    def digest(self) -> str:
        """Return the sha256 of :meth:`to_bytes`, hex: the identity of the bundle."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Parse a stored manifest.

        Raises:
            BundleError: Not a manifest, not canonical, or of a newer version.
        """
        values = parse_document(data, "manifest.json")
        if values.get("format") != FORMAT:
            raise BundleError(f"manifest.json is not of format {FORMAT!r}")
        version = values.get("schema_version")
        if type(version) is not int or version != SCHEMA_VERSION:
            raise BundleError(
                f"the bundle has schema_version {version!r}, this edgekit reads {SCHEMA_VERSION}",
                "Upgrade edgekit, or build the bundle again with this version",
            )
        if canonical_bytes(values) != data:
            raise BundleError("manifest.json is not canonical JSON: it has been edited")
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """Read what :meth:`to_dict` wrote.

        Raises:
            BundleError: A field is missing or wrong, or a graph or the golden sequences are not
                among the files.
        """
        _check_values(values)
        known = {item.name for item in fields(cls)} - {"unrecognized"}
        data = {key: value for key, value in values.items() if key in known}
        data["checkpoint_files"] = _entries(FileEntry, data["checkpoint_files"])
        data["files"] = _entries(FileEntry, data["files"])
        data["graphs"] = _entries(GraphEntry, data["graphs"])
        data["tensors"] = _entries(TensorEntry, data["tensors"])
        data["engine_plans"] = tuple(data["engine_plans"])
        rest = {k: v for k, v in values.items() if k not in known and k != "format"}
        manifest = cls(**data, unrecognized=rest)
        _check_unique([e.path for e in manifest.files], "file")
        _check_unique([e.name for e in manifest.tensors], "tensor")
        _check_unique([e.name for e in manifest.graphs], "graph")
        _check_listed(manifest)
        return manifest


def blob_bytes(tensors: Iterable[TensorEntry]) -> int:
    """Return the bytes of the blobs that hold ``tensors``; equal content is stored once."""
    return sum({entry.sha256: entry.size_bytes for entry in tensors}.values())


def check_path(path: str) -> None:
    """Refuse a path that could leave the bundle or differs between systems.

    Raises:
        BundleError: Absolute, with ``..``, a backslash, a control character, or too long.
    """
    pure = PurePosixPath(path)
    plain = bool(path) and len(path) <= MAX_PATH_CHARS and "\\" not in path
    if not plain or pure.is_absolute() or ".." in pure.parts or str(pure) != path:
        raise BundleError(f"path {path!r} is not a plain relative path")
    if not path.isprintable():
        raise BundleError(f"path {path!r} has a control character")


def _entries(kind: Any, rows: list[Mapping[str, Any]]) -> tuple[Any, ...]:
    known = {item.name for item in fields(kind)}
    entries = []
    for row in rows:
        values = {key: value for key, value in row.items() if key in known}
        if "shape" in values:
            values["shape"] = tuple(values["shape"])
        entries.append(kind(**values))
    return tuple(entries)


def _check_values(values: Mapping[str, Any]) -> None:
    """Check every value that a reader of a manifest relies on."""
    check_fields(values, {"name": "text", **dict.fromkeys(_PARTS, "object")}, "manifest.json")
    for name, kinds in _PARTS.items():
        check_fields(values[name], kinds, f"manifest.json: {name}")
    check_fields(values["tools"], dict.fromkeys(values["tools"], "text"), "manifest.json: tools")
    exponents = values["f16_exponents"]
    kinds = dict.fromkeys(exponents, "integers")
    check_fields(exponents, kinds, "manifest.json: f16_exponents")
    check_rows(values["quality"]["tensors"], _ERROR, "quality.tensors", MAX_ENTRIES)
    if "compile_check" in values:
        check_fields(values["compile_check"], {"status": "text"}, "manifest.json: compile_check")
    lists = {"checkpoint_files": _FILE, "files": _FILE, "graphs": _GRAPH, "tensors": _TENSOR}
    for name, kinds in {**lists, "engine_plans": {}}.items():
        check_rows(values.get(name), kinds, f"manifest.json: {name}", MAX_ENTRIES)
    for index, plan in enumerate(values["engine_plans"]):
        check_plan(plan, f"manifest.json: engine_plans[{index}]")


def _check_listed(manifest: Manifest) -> None:
    """Refuse what would be read without its digest having been checked."""
    listed = {entry.path for entry in manifest.files}
    graphs = {graph.name for graph in manifest.graphs}
    for plan in manifest.engine_plans:
        if plan["graph"] not in graphs:
            raise BundleError(
                f"manifest.json plans an engine of {plan['graph']}, which is none of its graphs",
                "Fetch or build the bundle again",
            )
    for path in (*(graph.path for graph in manifest.graphs), manifest.golden["path"]):
        if path not in listed:
            raise BundleError(
                f"manifest.json names {path} but does not list it among its files",
                "Fetch or build the bundle again",
            )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    return value


def _check_digest(digest: str, what: str) -> None:
    if not _SHA256.fullmatch(digest):
        raise BundleError(f"{what} has no sha256 digest of 64 hex digits")


def _check_unique(names: list[str], what: str) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BundleError(f"manifest.json lists {what} {twice} twice")
