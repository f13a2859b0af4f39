"""Nested Python values as JSON, exact and without pickle.

``None``, booleans, integers, finite floats, text, lists, and dicts whose keys are all text (none of them ``"$"``)
stand for themselves. Everything else is a JSON object whose ``"$"`` names its kind:

    {"$": "tuple", "v": [...]}                      {"$": "size", "v": [2, 3]}            torch.Size
    {"$": "dict", "v": [[key, value], ...]}         {"$": "ordered_dict", "v": [[key, value], ...]}
    {"$": "counter", "v": [[key, count], ...]}      {"$": "set", "v": [...]}              {"$": "frozenset", ...}
    {"$": "float", "v": "nan" | "inf" | "-inf"}     {"$": "complex", "v": [real, imag]}
    {"$": "bytes", "v": base64}                     {"$": "dtype", "v": "float32"}        torch.dtype
    {"$": "device", "v": "cuda:0"}                  {"$": "tensor", "v": child name}
    {"$": "array", "dtype": "<f4", "shape": [2], "v": base64}                             numpy.ndarray
    {"$": "scalar", "dtype": "<f4", "v": base64}                                          NumPy scalar
    {"$": "range", "v": [start, stop, step]}        {"$": "deque", "v": [...], "maxlen": 5 | null}
    {"$": "defaultdict", "factory": "list" | null, "v": [[key, value], ...]}
    {"$": "layout", "v": "strided"}                 {"$": "memory_format", "v": "channels_last"}
    {"$": "enum", "type": "Mode", "v": "FAST"}      the class's qualified name; of a combination of flags,
                                                    "v" is the list of their names

Tensors stay out of the JSON: they are collected, and the JSON refers to them by name. Decoding looks kinds up in
a fixed table; nothing in the text is evaluated or imported. The classes of enums come from the caller.
"""

from __future__ import annotations

import base64
import collections
import enum
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from torch_trackckpt.adapters.enums import member_of, names_of
from torch_trackckpt.errors import DataLossError, MismatchError, UnsupportedFormatError, UnsupportedValueError
from torch_trackckpt.trackable import TrackedContainer

__all__ = ["FindEnum", "decode", "encode"]

T = TypeVar("T")

# NumPy parses other spellings of types as Python, and some (such as longdouble) differ between machines.
_NUMPY_DTYPES = {
    dtype.str: dtype
    for code in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
    for dtype in (np.dtype("<" + code), np.dtype(">" + code))
}
_DIM_LIMIT = 2**63
_FACTORIES = {kind.__name__: kind for kind in (list, dict, set, tuple, int, float, bool, str)}
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode(value: object) -> tuple[bytes, dict[str, torch.Tensor]]:
    """JSON text for a value, and the tensors that it refers to by name.

    Raises:
        UnsupportedValueError: something in it is neither JSON nor one of the kinds above; the text says where.
    """
    encoder = _Encoder()
    try:
        tree = encoder.encode(value, "")
        text = json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError) as error:
        # Half a surrogate pair, an integer of thousands of digits, a list that contains itself.
        raise UnsupportedValueError(f"a value in it cannot be JSON: {error}") from error
    return text, encoder.tensors


FindEnum = Callable[[str], type[enum.Enum]]
"""Finds an enum by the qualified name of its class, or raises `MismatchError`."""


def _find_none(name: str) -> type[enum.Enum]:
    raise MismatchError(f"a member of the enum {name!r}, which is not known here.")


def decode(data: bytes, tensors: Mapping[str, torch.Tensor], find_enum: FindEnum = _find_none) -> Any:
    """The value that `encode` was given.

    Args:
        data: the text.
        tensors: those that it refers to.
        find_enum: called for the class of each member of an enum.

    Raises:
        MismatchError: an enum, or a member of one, is not there.
        DataLossError: the text is not what `encode` writes, or refers to a tensor that is not there.
        UnsupportedFormatError: it holds a kind that this version does not know.
    """
    try:
        return _Decoder(tensors, find_enum).decode(json.loads(data, parse_constant=_refuse_constant))
    except (UnsupportedFormatError, MismatchError):
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise DataLossError(f"The python state is damaged: {type(error).__name__}: {error}") from error


class _Encoder:
    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._names: dict[int, str] = {}

    def encode(self, value: Any, where: str) -> object:
        kind = value.plain_type if isinstance(value, TrackedContainer) else type(value)
        handler = self._BY_TYPE.get(kind)
        if handler is not None:
            return handler(self, value, where)
        if isinstance(value, torch.Tensor):
            return {"$": "tensor", "v": self._name(value)}
        if isinstance(value, np.generic) and value.dtype.str in _NUMPY_DTYPES:
            return {"$": "scalar", "dtype": value.dtype.str, "v": _base64(value.tobytes())}
        if isinstance(value, enum.Enum):
            return self._enum(value, where)
        raise _cannot_encode(value, where)

    def _name(self, tensor: torch.Tensor) -> str:
        if id(tensor) not in self._names:
            name = str(len(self.tensors))
            self._names[id(tensor)] = name
            self.tensors[name] = tensor
        return self._names[id(tensor)]

    def _float(self, value: float, where: str) -> object:
        return value if math.isfinite(value) else {"$": "float", "v": repr(value)}

    def _items(self, value: Any, where: str) -> list[object]:
        return [self.encode(item, f"{where}[{index}]") for index, item in enumerate(value)]

    def _dict(self, value: dict[Any, Any], where: str) -> object:
        if all(type(key) is str for key in value) and "$" not in value:
            return {key: self.encode(item, f"{where}[{key!r}]") for key, item in value.items()}
        return {"$": "dict", "v": self._pairs(value, where)}

    def _pairs(self, value: Mapping[Any, Any], where: str) -> list[object]:
        return [
            [self.encode(key, f"{where} key {key!r}"), self.encode(item, f"{where}[{key!r}]")]
            for key, item in value.items()
        ]

    def _defaultdict(self, value: collections.defaultdict[Any, Any], where: str) -> object:
        factory: Any = value.default_factory
        names = [name for name, kind in _FACTORIES.items() if factory is kind]
        if factory is not None and not names:
            raise _cannot_encode(factory, f"{where}.default_factory")
        return {"$": "defaultdict", "factory": names[0] if names else None, "v": self._pairs(value, where)}

    def _enum(self, value: enum.Enum, where: str) -> object:
        names = names_of(value)
        if names is None:
            raise _cannot_encode(value, where)
        return {"$": "enum", "type": type(value).__qualname__, "v": names}

    def _sorted(self, value: set[Any] | frozenset[Any], where: str) -> list[object]:
        # By their text, because equal sets may iterate in different orders.
        return sorted((self.encode(item, f"{where}{{{item!r}}}") for item in value), key=json.dumps)

    def _size(self, value: torch.Size, where: str) -> object:
        if any(not 0 <= dim < _DIM_LIMIT for dim in value):
            raise _cannot_encode(value, where)
        return {"$": "size", "v": list(value)}

    def _array(self, value: np.ndarray[Any, Any], where: str) -> object:
        if value.dtype.str not in _NUMPY_DTYPES:
            raise _cannot_encode(value, where)
        return {
            "$": "array",
            "dtype": value.dtype.str,
            "shape": list(value.shape),
            "v": _base64(np.ascontiguousarray(value).tobytes()),
        }

    def _as_it_is(self, value: object, where: str) -> object:
        return value

    # Not the encoder's own: its functions would refer to it, and keep the tensors.
    _BY_TYPE: ClassVar[Mapping[type, Callable[[_Encoder, Any, str], object]]] = {
        type(None): _as_it_is,
        bool: _as_it_is,
        int: _as_it_is,
        str: _as_it_is,
        float: _float,
        list: _items,
        tuple: lambda self, value, where: {"$": "tuple", "v": self._items(value, where)},
        torch.Size: _size,
        dict: _dict,
        collections.OrderedDict: lambda self, value, where: {
            "$": "ordered_dict",
            "v": self._pairs(value, where),
        },
        collections.Counter: lambda self, value, where: {"$": "counter", "v": self._pairs(value, where)},
        set: lambda self, value, where: {"$": "set", "v": self._sorted(value, where)},
        frozenset: lambda self, value, where: {"$": "frozenset", "v": self._sorted(value, where)},
        complex: lambda self, value, where: {"$": "complex", "v": self._items([value.real, value.imag], where)},
        bytes: lambda self, value, where: {"$": "bytes", "v": _base64(value)},
        torch.dtype: lambda self, value, where: {"$": "dtype", "v": _torch_name(value)},
        torch.layout: lambda self, value, where: {"$": "layout", "v": _torch_name(value)},
        torch.memory_format: lambda self, value, where: {"$": "memory_format", "v": _torch_name(value)},
        torch.device: lambda self, value, where: {"$": "device", "v": str(value)},
        np.ndarray: _array,
        range: lambda self, value, where: {"$": "range", "v": [value.start, value.stop, value.step]},
        collections.deque: lambda self, value, where: {
            "$": "deque",
            "v": self._items(value, where),
            "maxlen": value.maxlen,
        },
        collections.defaultdict: _defaultdict,
    }


class _Decoder:
    """Trusts nothing: the text may come from anywhere."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], find_enum: FindEnum) -> None:
        self._tensors = tensors
        self._find_enum = find_enum

    def decode(self, tree: Any) -> object:
        if isinstance(tree, list):
            return [self.decode(item) for item in tree]
        if not isinstance(tree, dict):
            return tree
        if "$" not in tree:
            return {key: self.decode(item) for key, item in tree.items()}
        kind = tree["$"]
        if kind not in self._BY_KIND:
            raise UnsupportedFormatError(
                f"The python state holds a value of kind {kind!r}, which is unknown to this version."
            )
        return self._BY_KIND[kind](self, tree)

    def _items(self, tagged: dict[str, Any]) -> list[Any]:
        return [self.decode(item) for item in _checked(tagged["v"], list)]

    def _pairs(self, tagged: dict[str, Any]) -> list[tuple[Any, Any]]:
        pairs = [_checked(pair, list) for pair in _checked(tagged["v"], list)]
        return [(self.decode(key), self.decode(item)) for key, item in pairs]

    def _complex(self, tagged: dict[str, Any]) -> complex:
        real, imaginary = (_checked(part, float) for part in self._items(tagged))
        return complex(real, imaginary)

    def _range(self, tagged: dict[str, Any]) -> range:
        start, stop, step = (_checked(part, int) for part in _checked(tagged["v"], list))
        return range(start, stop, step)

    def _deque(self, tagged: dict[str, Any]) -> collections.deque[Any]:
        items, maxlen = self._items(tagged), tagged["maxlen"]
        if maxlen is not None and len(items) > _checked(maxlen, int):
            raise ValueError("a deque with more elements than it may have")
        return collections.deque(items, maxlen)

    def _defaultdict(self, tagged: dict[str, Any]) -> collections.defaultdict[Any, Any]:
        factory = tagged["factory"]
        return collections.defaultdict(None if factory is None else _FACTORIES[factory], self._pairs(tagged))

    def _enum(self, tagged: dict[str, Any]) -> enum.Enum:
        names = tagged["v"]
        for name in names if isinstance(names, list) else [names]:
            _checked(name, str)
        return member_of(self._find_enum(_checked(tagged["type"], str)), names)

    # Not the decoder's own: its functions would refer to it, and keep the live object behind `find_enum`.
    _BY_KIND: ClassVar[Mapping[str, Callable[[_Decoder, dict[str, Any]], object]]] = {
        "tuple": lambda self, tagged: tuple(self._items(tagged)),
        "size": lambda self, tagged: torch.Size(_dims(tagged["v"])),
        "dict": lambda self, tagged: dict(self._pairs(tagged)),
        "ordered_dict": lambda self, tagged: collections.OrderedDict(self._pairs(tagged)),
        "counter": lambda self, tagged: collections.Counter(dict(self._pairs(tagged))),
        "set": lambda self, tagged: set(self._items(tagged)),
        "frozenset": lambda self, tagged: frozenset(self._items(tagged)),
        "float": lambda self, tagged: _NON_FINITE[tagged["v"]],
        "complex": _complex,
        "bytes": lambda self, tagged: _bytes(tagged["v"]),
        "dtype": lambda self, tagged: _torch_constants(torch.dtype)[tagged["v"]],
        "layout": lambda self, tagged: _torch_constants(torch.layout)[tagged["v"]],
        "memory_format": lambda self, tagged: _torch_constants(torch.memory_format)[tagged["v"]],
        "device": lambda self, tagged: torch.device(_checked(tagged["v"], str)),
        "tensor": lambda self, tagged: self._tensors[tagged["v"]],
        "array": lambda self, tagged: _numpy_values(tagged).reshape(_dims(tagged["shape"])).copy(),
        "scalar": lambda self, tagged: _numpy_values(tagged).reshape(())[()],
        "range": _range,
        "deque": _deque,
        "defaultdict": _defaultdict,
        "enum": _enum,
    }


def _checked(value: Any, kind: type[T]) -> T:
    """A part of the text that has to be of one type; a bool is no int."""
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} expected, not {type(value).__name__}")
    return value


def _dims(dims: Any) -> list[int]:
    if any(not 0 <= _checked(dim, int) < _DIM_LIMIT for dim in _checked(dims, list)):
        raise ValueError("a dimension out of range")
    return list(dims)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: Any) -> bytes:
    return base64.b64decode(_checked(text, str), validate=True)


def _torch_name(constant: object) -> str:
    return str(constant).removeprefix("torch.")


def _torch_constants(kind: type[T]) -> dict[str, T]:
    return {_torch_name(item): item for item in vars(torch).values() if isinstance(item, kind)}


def _numpy_values(tagged: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.frombuffer(_bytes(tagged["v"]), dtype=_NUMPY_DTYPES[tagged["dtype"]])


def _cannot_encode(value: object, where: str) -> UnsupportedValueError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return UnsupportedValueError(
        f"the value{' at ' + where if where else ''} is a {kind}, which is neither a tensor nor JSON. Register an "
        f"adapter for the object that owns it (torch_trackckpt.register_adapter), or give that object "
        "serialize() and deserialize() methods."
    )
