"""Nested Python values as JSON: exact, canonical, refused by name, and harmless whatever the text says."""

import copy
import enum
import gc
import json
import math
import struct
import sys
import weakref
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from torch_trackckpt.adapters.json_codec import decode, encode
from torch_trackckpt.errors import DataLossError, MismatchError, UnsupportedFormatError, UnsupportedValueError

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.bool, torch.uint16]
DEVICES = [torch.device(name) for name in ("cpu", "meta", "cuda", "cuda:3")]
WORD = "trackckpt_hostile"

numbers = st.integers() | st.floats(allow_nan=False)
LAYOUTS = [torch.strided, torch.sparse_coo, torch.channels_last, torch.preserve_format]


class Mode(enum.Enum):
    FAST = "fast"
    EXACT = ("exact", 1)


class Color(enum.IntEnum):
    RED = 1
    CRIMSON = 1
    BLUE = 2


class Label(str, enum.Enum):
    TRAIN = "train"


class Access(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4
    ALL = 7


class Bits(enum.IntFlag):
    LOW = 1
    HIGH = 8


MEMBERS = [
    *Mode,
    *Color,
    *Label,
    Access.READ,
    Access.ALL,
    Access.READ | Access.RUN,
    Access(0),
    Bits.HIGH,
    Bits.LOW | Bits.HIGH,
]
ENUMS = {kind.__qualname__: kind for kind in (Mode, Color, Label, Access, Bits)}
scalars = (
    st.none()
    | st.booleans()
    | numbers
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.sampled_from(DTYPES)
    | st.sampled_from(DEVICES)
    | st.sampled_from(LAYOUTS)
    | st.sampled_from(MEMBERS)
    | st.builds(range, st.integers(), st.integers(), st.integers(1))
)
keys = scalars | st.tuples(scalars, scalars)
sizes = st.lists(st.integers(0, 2**63 - 1), max_size=4).map(torch.Size)
numpy_dtypes = st.one_of(
    npst.boolean_dtypes(),
    npst.integer_dtypes(endianness="?"),
    npst.unsigned_integer_dtypes(endianness="?"),
    npst.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    npst.complex_number_dtypes(endianness="?", sizes=(64, 128)),
)
arrays = npst.arrays(numpy_dtypes, npst.array_shapes(min_dims=0, min_side=0, max_side=3))
numpy_scalars = npst.arrays(numpy_dtypes, ()).map(lambda array: array[()])
tensors = st.lists(st.integers(-9, 9), max_size=3).map(torch.tensor)
leaves = scalars | st.just(math.nan) | st.just(complex(math.nan, -0.0)) | sizes | arrays | numpy_scalars | tensors


def containers_of(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(values, max_size=4),
        st.lists(values, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=3) | st.just("$"), values, max_size=4),
        st.dictionaries(keys, values, max_size=4),
        st.dictionaries(keys, values, max_size=4).map(OrderedDict),
        st.dictionaries(keys, numbers, max_size=4).map(Counter),
        st.dictionaries(keys, values, max_size=4).map(lambda items: defaultdict(list, items)),
        st.lists(values, max_size=4).map(deque),
        st.lists(values, max_size=4).map(lambda items: deque(items, maxlen=4)),
        st.sets(keys, max_size=4),
    )


values = st.recursive(leaves, containers_of, max_leaves=12)


def round_trip(value: object) -> Any:
    return decode(*encode(value), ENUMS.__getitem__)


def is_same(left: Any, right: Any) -> bool:
    """Equal in type, structure, order and every bit, except for the payload of a NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return left is right
    if isinstance(left, (np.ndarray, np.generic)):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, float):
        return struct.pack("<d", left) == struct.pack("<d", right) or (math.isnan(left) and math.isnan(right))
    if isinstance(left, complex):
        return is_same(left.real, right.real) and is_same(left.imag, right.imag)
    if isinstance(left, dict):
        is_default = isinstance(left, defaultdict)
        return is_same(list(left.items()), list(right.items())) and (
            not is_default or left.default_factory is right.default_factory
        )
    if isinstance(left, deque):
        return left.maxlen == right.maxlen and is_same(list(left), list(right))
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(is_same, left, right))
    if isinstance(left, set):
        return left == right and sorted(map(repr, left)) == sorted(map(repr, right))
    return bool(left == right)


# Round trips.


@settings(deadline=None, max_examples=300)
@given(values)
def test_a_nested_value_comes_back_with_every_type_and_bit(value: object) -> None:
    assert is_same(round_trip(value), value)


@settings(deadline=None, max_examples=100)
@given(values)
def test_a_copy_of_a_value_gives_the_same_bytes(value: object) -> None:
    assert encode(copy.deepcopy(value))[0] == encode(value)[0]


@settings(deadline=None, max_examples=100)
@given(values)
def test_the_text_is_standard_json(value: object) -> None:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    json.loads(encode(value)[0].decode(), parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"lr": 0.1, "on": True, "foreach": None}, '{"lr":0.1,"on":true,"foreach":null}'),
        ((0.9, [1]), '{"$":"tuple","v":[0.9,[1]]}'),
        ({0: True}, '{"$":"dict","v":[[0,true]]}'),
        ({"$": 1}, '{"$":"dict","v":[["$",1]]}'),
        ("é", '"é"'),
        (Counter({5: 2}), '{"$":"counter","v":[[5,2]]}'),
        (OrderedDict(a=1), '{"$":"ordered_dict","v":[["a",1]]}'),
        ({3, 1}, '{"$":"set","v":[1,3]}'),
        (math.inf, '{"$":"float","v":"inf"}'),
        (-math.inf, '{"$":"float","v":"-inf"}'),
        (math.nan, '{"$":"float","v":"nan"}'),
        (1 - 2j, '{"$":"complex","v":[1.0,-2.0]}'),
        (b"\x00\xff", '{"$":"bytes","v":"AP8="}'),
        (torch.bfloat16, '{"$":"dtype","v":"bfloat16"}'),
        (torch.device("cuda:1"), '{"$":"device","v":"cuda:1"}'),
        (torch.Size([2, 3]), '{"$":"size","v":[2,3]}'),
        (np.float32(1), '{"$":"scalar","dtype":"<f4","v":"AACAPw=="}'),
        (np.array([[1]], "<i2"), '{"$":"array","dtype":"<i2","shape":[1,1],"v":"AQA="}'),
        (torch.ones(2), '{"$":"tensor","v":"0"}'),
        (range(1, 9, 2), '{"$":"range","v":[1,9,2]}'),
        (deque([1], maxlen=3), '{"$":"deque","v":[1],"maxlen":3}'),
        (deque(), '{"$":"deque","v":[],"maxlen":null}'),
        (defaultdict(int, a=1), '{"$":"defaultdict","factory":"int","v":[["a",1]]}'),
        (defaultdict(None), '{"$":"defaultdict","factory":null,"v":[]}'),
        (torch.sparse_csr, '{"$":"layout","v":"sparse_csr"}'),
        (torch.channels_last, '{"$":"memory_format","v":"channels_last"}'),
        (Mode.FAST, '{"$":"enum","type":"Mode","v":"FAST"}'),
        (Color.CRIMSON, '{"$":"enum","type":"Color","v":"RED"}'),
        (Access.WRITE | Access.READ, '{"$":"enum","type":"Access","v":["READ","WRITE"]}'),
        (Access(7), '{"$":"enum","type":"Access","v":"ALL"}'),
        (Access(0), '{"$":"enum","type":"Access","v":[]}'),
    ],
)
def test_each_kind_has_one_spelling(value: object, text: str) -> None:
    assert encode(value)[0].decode() == text


@pytest.mark.parametrize(
    "value",
    [frozenset({1, 2}), {frozenset({1}): 2}, {frozenset({1})}, {(1, frozenset()): 2}],
    ids=["alone", "key", "element", "inside a key"],
)
def test_a_frozenset_can_be_read_back_wherever_it_stood(value: object) -> None:
    assert round_trip(value) == value


def test_a_tensor_that_occurs_twice_is_stored_once_and_comes_back_as_one() -> None:
    shared, other = torch.ones(2), torch.ones(2)

    text, stored = encode({"a": shared, "b": [shared, other]})
    restored = decode(text, {name: tensor.clone() for name, tensor in stored.items()})

    assert [id(tensor) for tensor in stored.values()] == [id(shared), id(other)]
    assert restored["a"] is restored["b"][0]
    assert restored["a"] is not restored["b"][1]


def test_a_decoded_array_owns_its_memory_and_can_be_changed() -> None:
    array = round_trip(np.zeros(2))

    array[0] = 1.0

    assert array.tolist() == [1.0, 0.0]


def test_a_dict_keeps_the_order_of_its_keys() -> None:
    assert list(round_trip({"b": 1, "a": 2})) == ["b", "a"]


class Finder:
    def find(self, name: str) -> type[enum.Enum]:
        return ENUMS[name]


def test_neither_way_keeps_what_it_was_given() -> None:
    """Not even until the next run of the garbage collector: states hold large tensors."""
    gc.collect()
    gc.disable()
    try:
        tensor, finder = torch.ones(2), Finder()
        gone = [weakref.ref(tensor), weakref.ref(finder)]
        decode(encode([tensor, Mode.FAST])[0], {"0": tensor}, finder.find)
        del tensor, finder
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()


# Canonical.


@pytest.mark.parametrize("kind", [set, frozenset])
def test_equal_sets_of_different_iteration_order_give_equal_bytes(kind: Callable[[list[int]], Any]) -> None:
    first, second = kind([0, 8]), kind([8, 0])
    assert list(first) != list(second)

    assert encode(first) == encode(second)


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(12.0)[::2].reshape(2, 3) / 2,
        np.arange(6.0)[::-1].reshape(2, 3)[::-1, ::-1],
    ],
    ids=["column-major", "strided", "reversed"],
)
def test_equal_arrays_of_different_layout_give_equal_bytes(array: np.ndarray[Any, Any]) -> None:
    assert encode(array) == encode(np.arange(6.0).reshape(2, 3))


def test_an_extended_precision_number_never_carries_its_padding_into_the_file() -> None:
    """Its last six bytes are whatever lay in memory, and its format is another on another machine."""
    dirty = np.frombuffer(np.longdouble(1.5).tobytes()[:10] + b"secret", np.longdouble)
    if dirty.dtype.itemsize != 16:
        pytest.skip("this platform's longdouble has no padding")

    for value in (dirty, dirty[0]):
        with pytest.raises(UnsupportedValueError, match=r"numpy"):
            encode(value)


# Refusals.


class Opaque:
    def __repr__(self) -> str:
        return "<opaque>"


Point = namedtuple("Point", "x y")
OPAQUE = Opaque()


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (OPAQUE, "test_json_codec.Opaque"),
        (Opaque, "builtins.type"),
        (len, "builtins.builtin_function_or_method"),
        (lambda: 0, "builtins.function"),
        (Point(1, 2), "test_json_codec.Point"),
        (Bits(1 | 2), "test_json_codec.Bits"),
        (slice(1), "builtins.slice"),
        (bytearray(b"x"), "builtins.bytearray"),
        (np.array([OPAQUE]), "numpy.ndarray"),
        (np.array(["text"]), "numpy.ndarray"),
        (np.zeros(1, dtype=[("a", "<f4")]), "numpy.ndarray"),
        (np.ma.array([1]), "numpy.ma.MaskedArray"),
        (np.datetime64("2020-01-01"), "numpy.datetime64"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_of_another_kind_is_refused_by_its_type(value: object, kind: str) -> None:
    with pytest.raises(UnsupportedValueError, match=r"neither a tensor nor JSON.*register_adapter") as error:
        encode([value])

    assert str(error.value).startswith("the value at [0] is a ")
    assert kind in str(error.value)


@pytest.mark.parametrize(
    ("value", "position"),
    [
        ({"a": [1, OPAQUE]}, "['a'][1]"),
        ({"a": (1, {2: OPAQUE})}, "['a'][1][2]"),
        (OrderedDict(a=OPAQUE), "['a']"),
        ({OPAQUE: 1}, " key <opaque>"),
        ({(1, OPAQUE): 1}, " key (1, <opaque>)[1]"),
        ({OPAQUE}, "{<opaque>}"),
        ({"s": {(1, OPAQUE)}}, "['s']{(1, <opaque>)}[1]"),
        ({"d": deque([1, OPAQUE])}, "['d'][1]"),
        ({"d": defaultdict(Opaque)}, "['d'].default_factory"),
    ],
    ids=[
        "list in dict",
        "int key in tuple",
        "ordered dict",
        "key",
        "inside a key",
        "set",
        "inside a set's element",
        "deque",
        "default factory",
    ],
)
def test_a_refusal_tells_the_position(value: object, position: str) -> None:
    with pytest.raises(UnsupportedValueError) as error:
        encode(value)

    assert str(error.value).startswith(f"the value at {position} is a ")


def test_a_refusal_of_the_whole_value_tells_no_position() -> None:
    with pytest.raises(UnsupportedValueError, match=r"^the value is a "):
        encode(OPAQUE)


def looped() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    ["\ud800", {"\ud800": 1}, 10**5000, looped()],
    ids=["half a surrogate pair", "such a key", "more digits than Python reads", "a list that contains itself"],
)
def test_a_value_that_json_text_cannot_hold_is_refused_like_any_other(value: object) -> None:
    with pytest.raises(UnsupportedValueError):
        encode(value)


def test_a_size_beyond_64_bits_is_refused() -> None:
    with pytest.raises(UnsupportedValueError):
        encode(torch.Size([2**70]))


# Malformed and hostile text.


def array(dtype: object = "<f4", shape: object = (1,), data: object = "AAAAAA==") -> bytes:
    return json.dumps({"$": "array", "dtype": dtype, "shape": shape, "v": data}).encode()


MALFORMED = [
    b"",
    b"{",
    b"[1,",
    b"\xff",
    b"[1] trailing",
    b"'single'",
    b"1" * 5000,
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"NaN",
    b"[-Infinity]",
    b'{"$":[]}',
    b'{"$":{}}',
    b'{"$":"tuple"}',
    b'{"$":"tuple","v":5}',
    b'{"$":"tuple","v":"abc"}',
    b'{"$":"tuple","v":{"a":1}}',
    b'{"$":"size","v":3}',
    b'{"$":"size","v":["a"]}',
    b'{"$":"size","v":[1.5]}',
    b'{"$":"size","v":[%d]}' % 2**70,
    b'{"$":"dict","v":[[1,2,3]]}',
    b'{"$":"dict","v":[[[1],2]]}',
    b'{"$":"dict","v":["ab"]}',
    b'{"$":"dict","v":{"ab":1}}',
    b'{"$":"ordered_dict","v":7}',
    b'{"$":"set","v":[[1]]}',
    b'{"$":"set","v":"ab"}',
    b'{"$":"float","v":"1"}',
    b'{"$":"float","v":[]}',
    b'{"$":"complex","v":[]}',
    b'{"$":"complex","v":[1,2,3]}',
    b'{"$":"complex","v":["1+2j"]}',
    b'{"$":"bytes","v":"###"}',
    b'{"$":"bytes","v":5}',
    b'{"$":"dtype","v":"load"}',
    b'{"$":"dtype","v":["float32"]}',
    b'{"$":"device","v":"nonsense"}',
    b'{"$":"device","v":5}',
    b'{"$":"device","v":["cuda",1]}',
    b'{"$":"tensor","v":"0"}',
    b'{"$":"tensor","v":[]}',
    array(shape=[2]),
    array(shape=[-1]),
    array(shape=["1"]),
    array(shape=[2**70]),
    array(shape=[2**62, 0]),
    array(shape=None),
    array(data="AAAA"),
    array(data=None),
    array(dtype=None, data="AAAAAAAAAAA="),
    array(dtype=5),
    array(dtype="O", data="AAAAAAAAAAA="),
    array(dtype="<M8[s]", data="AAAAAAAAAAA="),
    array(dtype="f4,i4", data="AAAAAAAAAAA="),
    array(dtype="(1,f4"),
    array(dtype={"names": ["a"], "formats": ["<f4"]}),
    array(dtype=[["a", "<f4"]]),
    b'{"$":"range","v":[0,1,0]}',
    b'{"$":"range","v":[0,1]}',
    b'{"$":"range","v":[0,1.5,1]}',
    b'{"$":"deque","v":[1]}',
    b'{"$":"deque","v":[1],"maxlen":0}',
    b'{"$":"deque","v":[],"maxlen":-1}',
    b'{"$":"deque","v":[],"maxlen":%d}' % 2**70,
    b'{"$":"deque","v":[],"maxlen":true}',
    b'{"$":"defaultdict","factory":"eval","v":[]}',
    b'{"$":"defaultdict","factory":["list"],"v":[]}',
    b'{"$":"defaultdict","v":[]}',
    b'{"$":"layout","v":"float32"}',
    b'{"$":"memory_format","v":"load"}',
    b'{"$":"enum","v":"FAST"}',
    b'{"$":"enum","type":5,"v":"FAST"}',
    b'{"$":"enum","type":"Mode","v":5}',
    b'{"$":"enum","type":"Mode","v":["FAST"]}',
    b'{"$":"enum","type":"Access","v":[5]}',
    b'{"$":"scalar","dtype":"<f4","v":""}',
    b'{"$":"scalar","dtype":"<f4","v":"AAAAAAAAAAA="}',
]


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: text[:60].decode(errors="replace"))
def test_text_that_encode_never_writes_is_damage(text: bytes) -> None:
    with pytest.raises(DataLossError, match=r"python state is damaged"):
        decode(text, {}, ENUMS.__getitem__)


@pytest.mark.parametrize("kind", ["pickle", "__class__", "decode", "", 5, None, True])
def test_an_unknown_kind_is_named(kind: object) -> None:
    with pytest.raises(UnsupportedFormatError, match=r"unknown to this version") as error:
        decode(json.dumps({"$": kind, "v": 1}).encode(), {})

    assert repr(kind) in str(error.value)


KINDS = ["tuple", "size", "dict", "ordered_dict", "counter", "set", "float", "complex", "bytes", "dtype", "device"]
KINDS += ["tensor", "array", "scalar", "range", "deque", "defaultdict", "layout", "memory_format", "enum", "other"]
texts = st.text(max_size=4) | st.sampled_from(["<f4", "O", "AAAA", "0", "list", "Mode", "FAST", "Access", "RUN"])


def tagged(trees: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {"$": st.sampled_from(KINDS) | trees},
        optional=dict.fromkeys(("v", "dtype", "shape", "maxlen", "factory", "type"), trees),
    )


json_trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda trees: st.lists(trees, max_size=3) | st.dictionaries(texts, trees, max_size=3) | tagged(trees),
    max_leaves=8,
)


@settings(deadline=None, max_examples=500)
@given(json_trees)
def test_any_json_is_either_a_value_or_a_named_error(tree: object) -> None:
    text = json.dumps(tree).encode()

    try:
        value = decode(text, {"0": torch.ones(1)}, ENUMS.__getitem__)
    except (DataLossError, UnsupportedFormatError, MismatchError):
        return

    assert is_same(round_trip(value), value)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_changed_byte_is_either_a_value_or_a_named_error(data: st.DataObject) -> None:
    text = bytearray(encode({"lr": 0.1, 5: (math.inf, b"xy", torch.float32, np.ones(1, "<f4"), {1, 2})})[0])
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))

    try:
        decode(bytes(text), {})
    except (DataLossError, UnsupportedFormatError):
        return


class Watch:
    """Counts the interpreter's own reports of compiling, running or importing anything that names `WORD`."""

    def __init__(self) -> None:
        self.is_on = False
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.is_on and any(WORD in str(argument) for argument in arguments):
            self.seen.append(event)

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        self.seen.clear()
        self.is_on = True
        try:
            yield self.seen
        finally:
            self.is_on = False


@pytest.fixture(scope="module")
def watch() -> Watch:
    """An audit hook can never be removed, so there is one for all tests, and it sleeps between them."""
    return Watch()


def test_the_watch_sees_what_it_is_for(watch: Watch) -> None:
    with watch.watching() as seen:
        eval(f"'{WORD}'")

    assert "compile" in seen


CODE = f"__import__('{WORD}').run()"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"$": CODE, "v": []}).encode(),
        json.dumps({"$": "dtype", "v": CODE}).encode(),
        json.dumps({"$": "dtype", "v": f"{WORD}.float32"}).encode(),
        json.dumps({"$": "device", "v": CODE}).encode(),
        json.dumps({"$": "device", "v": WORD}).encode(),
        json.dumps({"$": "tensor", "v": CODE}).encode(),
        json.dumps({"$": "float", "v": CODE}).encode(),
        json.dumps({"$": "enum", "type": CODE, "v": "A"}).encode(),
        json.dumps({"$": "enum", "type": f"{WORD}.Mode", "v": "A"}).encode(),
        json.dumps({"$": "defaultdict", "factory": CODE, "v": []}).encode(),
        array(dtype=CODE),
        array(dtype=f"{WORD}.Type"),
        array(dtype=f"({CODE})f4,f4"),
        array(dtype=f"('{WORD}',2)f4,f4"),
        json.dumps({"$": "scalar", "dtype": f"('{WORD}',2)f4,f4", "v": "AAAA"}).encode(),
    ],
    ids=lambda text: text[:50].decode(),
)
def test_no_text_of_a_checkpoint_is_compiled_run_or_imported(text: bytes, watch: Watch) -> None:
    """C169: not even parsed as Python, which NumPy does with some names of types."""
    with watch.watching() as seen, pytest.raises((DataLossError, UnsupportedFormatError, MismatchError)):
        decode(text, {})

    assert seen == []
