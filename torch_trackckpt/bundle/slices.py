"""Parts of tensors: the slice specifications of the format, and Python's indices."""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from types import EllipsisType

__all__ = ["Index", "IndexItem", "TensorSlice", "resolve_index"]

IndexItem = int | slice | EllipsisType
Index = IndexItem | tuple[IndexItem, ...]
"""What stands in brackets behind a tensor, as far as a part of it can be read: no steps, masks or new axes."""

ALL = (0, -1)
"""The extent that is all of a dimension, whatever its size."""

_EXTENT = re.compile(r"([0-9]+),([0-9]+)")


@dataclasses.dataclass(frozen=True)
class TensorSlice:
    """A box inside a tensor of known shape: TensorFlow's ``shape_and_slice``.

    Its text is the full shape, a space, and ``start,length`` for each dimension or ``-`` for all of it, joined by
    colons: ``4 6 0,2:-``. The whole of a scalar is the empty text.

    Raises:
        ValueError: the box has another rank than the tensor, is empty, or reaches over an edge.

    Example:
        >>> from torch_trackckpt.bundle.slices import TensorSlice
        >>> part = TensorSlice.parse("4 6 0,2:-")
        >>> part.full_shape, part.offset, part.shape
        ((4, 6), (0, 0), (2, 6))
        >>> str(part)
        '4 6 0,2:-'
    """

    full_shape: tuple[int, ...]
    extents: tuple[tuple[int, int], ...]
    """Start and length in each dimension; (0, -1) is all of it, which the format keeps apart from its numbers."""

    def __post_init__(self) -> None:
        if len(self.extents) != len(self.full_shape):
            raise ValueError(
                f"{self}: the slice has {len(self.extents)} dimensions, the tensor {len(self.full_shape)}."
            )
        for (start, length), size in zip(self.extents, self.full_shape, strict=True):
            if (start, length) != ALL and not (start >= 0 and 0 < length <= size - start):
                raise ValueError(f"{self}: no part {start},{length} lies in a dimension of {size}.")

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> TensorSlice:
        """All of a tensor."""
        return cls(tuple(shape), (ALL,) * len(shape))

    @classmethod
    def box(cls, full_shape: tuple[int, ...], offset: tuple[int, ...], shape: tuple[int, ...]) -> TensorSlice:
        """The box of a shape at an offset."""
        return cls(tuple(full_shape), tuple(zip(offset, shape, strict=True)))

    @classmethod
    def parse(cls, text: str) -> TensorSlice:
        """The slice that a text such as ``4 6 0,2:-`` stands for.

        Raises:
            ValueError: it stands for none.
        """
        if not text:
            return cls((), ())
        *dims, extents = text.split(" ")
        if not dims or not all(re.fullmatch("[0-9]+", dim) for dim in dims):
            raise ValueError(f"{text!r} is no slice specification, such as '4 6 0,2:-'.")
        return cls(tuple(map(int, dims)), parse_extents(extents))

    def __str__(self) -> str:
        if not self.full_shape:
            return ""
        extents = ":".join("-" if extent == ALL else "{},{}".format(*extent) for extent in self.extents)
        return f"{' '.join(map(str, self.full_shape))} {extents}"

    @property
    def offset(self) -> tuple[int, ...]:
        """Where the box begins."""
        return tuple(start for start, _ in self.extents)

    @property
    def shape(self) -> tuple[int, ...]:
        """How large the box is."""
        return tuple(
            size if extent == ALL else extent[1] for extent, size in zip(self.extents, self.full_shape, strict=True)
        )

    @property
    def is_whole(self) -> bool:
        """Whether the box is the whole tensor, in whatever notation."""
        return self.shape == self.full_shape

    def within(self, outer: TensorSlice) -> TensorSlice:
        """This box of a tensor that is itself the box ``outer`` of a larger one, as a box of the larger one."""
        offset = tuple(map(operator.add, self.offset, outer.offset))
        return TensorSlice.box(outer.full_shape, offset, self.shape)

    def overlaps(self, other: TensorSlice) -> bool:
        """Whether two boxes of one tensor share an element."""
        return all(
            a < d + e and d < a + b
            for a, b, d, e in zip(self.offset, self.shape, other.offset, other.shape, strict=True)
        )

    @property
    def num_elements(self) -> int:
        """How many elements the box holds."""
        return math.prod(self.shape)


def parse_extents(text: str) -> tuple[tuple[int, int], ...]:
    """The extents that a text such as ``0,2:-`` stands for.

    Raises:
        ValueError: it stands for none.
    """
    extents = []
    for part in text.split(":") if text else []:
        match = _EXTENT.fullmatch(part)
        if part != "-" and match is None:
            raise ValueError(f"{text!r} is no slice, such as '0,2:-': {part!r} is neither '-' nor 'start,length'.")
        extents.append(ALL if match is None else (int(match[1]), int(match[2])))
    return tuple(extents)


def resolve_index(
    shape: tuple[int, ...], index: Index | TensorSlice | str
) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    """The extents that an index or a slice text picks, and the shape of the result.

    Python's rules hold for indices: slices are cut off at the edges, and a number takes its dimension away. Texts and
    `TensorSlice` are TensorFlow's, with the full shape or without it.

    Raises:
        ValueError: the index has a step, or a text does not fit the shape.
        IndexError: the index has too many dimensions, or a number lies outside.
        TypeError: it is no index that picks a box.
    """
    if isinstance(index, str):
        index = TensorSlice.parse(index) if " " in index else TensorSlice(shape, parse_extents(index))
    if isinstance(index, TensorSlice):
        if index.full_shape != shape:
            raise ValueError(f"shape in shape_and_slice spec '{index}' does not match the stored shape {list(shape)}.")
        return index.extents, index.shape
    items = _one_item_per_dimension(shape, index if isinstance(index, tuple) else (index,))
    extents = tuple(_extent(item, size) for item, size in zip(items, shape, strict=True))
    kept = tuple(length for (_, length), item in zip(extents, items, strict=True) if isinstance(item, slice))
    return extents, kept


def _one_item_per_dimension(shape: tuple[int, ...], items: tuple[IndexItem, ...]) -> list[int | slice]:
    num_ellipses = sum(item is Ellipsis for item in items)
    missing = len(shape) - (len(items) - num_ellipses)
    if num_ellipses > 1 or missing < 0:
        raise IndexError(f"The index {items} has too many dimensions for the shape {list(shape)}.")
    rest = [slice(None)] * missing
    at = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
    expanded = [*items[:at], *rest, *items[at + 1 :]]
    if any(isinstance(item, bool) for item in expanded):
        raise TypeError(f"The index {items} holds a truth value, which is a mask and no number.")
    return [item if isinstance(item, slice) else operator.index(item) for item in expanded]  # type: ignore[arg-type]


def _extent(item: int | slice, size: int) -> tuple[int, int]:
    if isinstance(item, slice):
        start, stop, step = item.indices(size)
        if step != 1:
            raise ValueError(f"A stored tensor is read without steps, not with a step of {step}; take them afterwards.")
        return start, max(stop - start, 0)
    if not -size <= item < size:
        raise IndexError(f"Index {item} is out of range for a dimension of {size}.")
    return item % size, 1
