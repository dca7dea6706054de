"""The pickle inside a PyTorch checkpoint, read for what it says and never run.

``torch.save`` writes a dictionary of tensors as a pickle that calls a handful of functions. Its
opcodes are walked first, without an unpickler: only those that such a dictionary needs are let
through, nothing may be nested deeply or point outside the memo. What is left goes through an
unpickler whose every name leads to a recorder of this module; nothing is imported, and no function
of another module is called.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

MAX_PICKLE_BYTES = 4 * 1024 * 1024
"""A 7 B model's shard has 40 kB."""
MAX_DEPTH = 8
MAX_RANK = 8

STORAGES: dict[str, str] = {
    "BFloat16Storage": "BF16",
    "HalfStorage": "F16",
    "FloatStorage": "F32",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
"""PyTorch's storage classes, and the stored types of the safetensors reader they are."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage: an entry ``data/<key>`` of the archive, and how many elements it has."""

    key: str
    dtype: str
    elements: int


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: a contiguous part of a storage.

    Attributes:
        storage: Where its elements are.
        offset: Its first element in the storage.
        shape: Its shape.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]


def read_views(data: bytes) -> dict[str, View]:
    """Return the tensors of a pickled state dictionary by name.

    Raises:
        ValueError: It is not one, or holds anything but contiguous tensors; the message says why.
    """
    if len(data) > MAX_PICKLE_BYTES:
        _refuse(f"it has {len(data)} bytes, more than {MAX_PICKLE_BYTES}")
    _Walk().check(data)
    try:
        found = _Recorder(io.BytesIO(data)).load()
    except (
        pickle.UnpicklingError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        EOFError,
        OverflowError,
    ) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(found, dict):
        _refuse("it does not hold a dictionary of tensors")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, View):
            _refuse(f"it holds {name!r:.80}, which is not a tensor")
    return dict(found)


def _refuse(reason: str) -> NoReturn:
    raise ValueError(reason)


_CONSTANTS = frozenset(
    {"BINUNICODE", "SHORT_BINUNICODE", "GLOBAL", "BININT", "BININT1", "BININT2", "LONG1"}
    | {"BINFLOAT", "NEWTRUE", "NEWFALSE", "NONE", "EMPTY_TUPLE", "EMPTY_DICT", "EMPTY_LIST"}
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CALLS = {"BINPERSID": 1, "REDUCE": 2, "STACK_GLOBAL": 2}
"""Opcodes that take so many objects and leave one that is no tuple."""
_DROPS = {"SETITEM": 2, "APPEND": 1, "BUILD": 1}
_PUTS = frozenset({"BINPUT", "LONG_BINPUT", "MEMOIZE"})
_FRAMING = frozenset({"PROTO", "FRAME", "STOP"})


class _Walk:
    """Walks a pickle's opcodes with a stack of nesting depths in place of objects.

    It keeps an unpickler from what takes time or memory out of proportion to the pickle's size: a
    memo of billions, or tuples in tuples, whose hash takes exponential time where they are shared.
    """

    def __init__(self) -> None:
        self._stack: list[int] = []
        self._marks: list[int] = []
        self._memo: dict[int, int] = {}

    def check(self, data: bytes) -> None:
        """Refuse a pickle that a state dictionary cannot be.

        Raises:
            ValueError: Says which opcode, and where.
        """
        end = 0
        try:
            for opcode, argument, position in pickletools.genops(data):
                end = position or 0
                name = opcode.name
                if name == "GLOBAL":
                    _lookup(*str(argument).split(" ", 1))
                if not self._step(name) and not self._step_memo(name, argument):
                    _refuse(f"it has the opcode {name} at byte {end}, which no checkpoint needs")
        except LookupError as error:
            raise ValueError("its stack or memo is empty where it is read") from error
        if end + 1 != len(data):
            _refuse("bytes follow its end")

    def _step(self, name: str) -> bool:
        """Do what an opcode does to the stack; False when it is none of these."""
        if name in _CONSTANTS:
            self._stack.append(0)
        elif name == "MARK":
            self._marks.append(len(self._stack))
        elif name in _TUPLES:
            self._nest(self._take(_TUPLES[name]))
        elif name == "TUPLE":
            self._nest(self._take_items())
        elif name in {"SETITEMS", "APPENDS"}:
            self._take_items()
        elif name in _DROPS:
            self._take(_DROPS[name])
        elif name in _CALLS:
            self._take(_CALLS[name])
            self._stack.append(0)
        else:
            return name in _FRAMING
        return True

    def _step_memo(self, name: str, argument: Any) -> bool:
        """Do what an opcode does to the memo; False when it is none of these."""
        if name in _PUTS:
            index = len(self._memo) if name == "MEMOIZE" else argument
            if index > len(self._memo) + 1:
                _refuse(f"it memoizes entry {index} after {len(self._memo)} others")
            self._memo[index] = self._stack[-1]
        elif name in {"BINGET", "LONG_BINGET"}:
            self._stack.append(self._memo[argument])
            if self._stack[-1]:
                _refuse("it shares a tuple, which no checkpoint does")
        else:
            return False
        return True

    def _take(self, count: int) -> list[int]:
        """Remove the last objects, which must stand above the last mark."""
        rest = len(self._stack) - count
        if rest < (self._marks[-1] if self._marks else 0):
            raise IndexError
        taken = self._stack[rest:]
        del self._stack[rest:]
        return taken

    def _take_items(self) -> list[int]:
        """Remove the objects above the last mark, and the mark."""
        taken = self._take(len(self._stack) - self._marks[-1])
        self._marks.pop()
        return taken

    def _nest(self, items: list[int]) -> None:
        depth = 1 + max(items, default=0)
        if depth > MAX_DEPTH:
            _refuse(f"it nests tuples more than {MAX_DEPTH} deep")
        self._stack.append(depth)


class _Callable:
    """A name of the pickle: what it stands for can be called, and nothing else."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Refuse the opcode BUILD, which would change this object."""
        _refuse("it sets the state of a function")


class _Dictionary(dict[Any, Any]):
    """An ``OrderedDict``; a state dictionary's ``_metadata`` is set on it, and dropped."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Drop the state."""


class _OrderedDict(_Callable):
    __slots__ = ()

    def __call__(self, *arguments: Any) -> _Dictionary:
        if arguments:
            _refuse("it fills an OrderedDict by its constructor")
        return _Dictionary()


class _RebuildTensor(_Callable):
    """``torch._utils._rebuild_tensor_v2``: storage, offset, size, stride, grad, hooks."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> View:
        if len(arguments) not in {6, 7} or not isinstance(arguments[0], Storage):
            _refuse("it rebuilds a tensor from other things than a storage and its layout")
        storage, offset, shape, stride = arguments[:4]
        sizes = (shape, stride) if type(shape) is tuple and type(stride) is tuple else ()
        numbers = [offset, *(number for size in sizes for number in size)]
        valid = all(type(number) is int and 0 <= number < 2**62 for number in numbers)
        if not sizes or not valid or len(shape) != len(stride) or len(shape) > MAX_RANK:
            _refuse(
                f"a tensor has size {shape!r:.60}, stride {stride!r:.60}, offset {offset!r:.30}"
            )
        _check_contiguous(shape, stride)
        return View(storage, offset, shape)


class _RebuildParameter(_Callable):
    """``torch._utils._rebuild_parameter``: a tensor, whether it is trained, hooks."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> View:
        if len(arguments) != 3 or not isinstance(arguments[0], View):
            _refuse("it rebuilds a parameter from something that is not a tensor")
        return arguments[0]


class _StorageClass(_Callable):
    __slots__ = ("dtype",)

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def __call__(self, *_: Any) -> NoReturn:
        _refuse("it calls a storage class")


_NAMES: Mapping[tuple[str, str], _Callable] = {
    ("collections", "OrderedDict"): _OrderedDict(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    **{("torch", name): _StorageClass(dtype) for name, dtype in STORAGES.items()},
}


def _lookup(module: str, name: str) -> _Callable:
    """Return what stands for a name; refuse every name but those of :data:`_NAMES`."""
    found = _NAMES.get((module, name))
    if found is None:
        _refuse(
            f"it names {module}.{name}, and only tensors of these storages are read: "
            f"{', '.join(STORAGES)}"
        )
    return found


class _Recorder(pickle.Unpickler):
    """An unpickler that knows the names of :data:`_NAMES` and imports none."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return the recorder a name stands for."""
        return _lookup(module_name, global_name)

    def persistent_load(self, pid: Any, /) -> Storage:
        """Return the storage of a persistent id, ``("storage", class, key, device, elements)``."""
        fields: tuple[Any, ...] = pid if type(pid) is tuple and len(pid) == 5 else (None,) * 5
        kind, storage, key, _, elements = fields
        valid = kind == "storage" and isinstance(storage, _StorageClass) and type(key) is str
        if not valid or type(elements) is not int or not 0 <= elements < 2**62:
            _refuse(f"it refers to {pid!r:.80}, which is not a storage")
        return Storage(key, storage.dtype, elements)


def _check_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
    """Refuse strides that are not those of rows one after another."""
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size not in {0, 1} and step != expected:
            _refuse(
                f"a tensor of size {list(shape)} has stride {list(stride)}: it is not contiguous"
            )
        expected *= max(size, 1)
