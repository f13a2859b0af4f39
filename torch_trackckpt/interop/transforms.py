"""How TensorFlow lays a value out, and how torch does: a transform for each way that differs.

    stored value  --to_torch-->   the torch tensor
                  <--to_stored--

A transform moves elements and never computes with them, so it is the same for a weight and for everything that an
optimizer keeps for it. One that loses nothing goes both ways, bit for bit. Where the way back is a view of the same
memory, values are read straight into the live tensor through that view.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch

__all__ = [
    "AS_IS",
    "CONV_1D",
    "CONV_2D",
    "CONV_3D",
    "DEPTHWISE_2D",
    "LOGITS_1X1",
    "TRANSPOSED",
    "WITHOUT_BACKGROUND",
    "AsIs",
    "DenseAfterFlatten",
    "Depthwise2d",
    "Logits1x1",
    "Permuted",
    "Sliced",
    "Transform",
]


@dataclasses.dataclass(frozen=True)
class Transform(abc.ABC):
    """From a stored value to a torch tensor, and back."""

    is_two_way: ClassVar[bool] = True
    """Whether `to_stored` exists."""
    is_view: ClassVar[bool] = True
    """Whether `to_stored` is always a view of the tensor that it is given."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What messages and tables call it."""

    @abc.abstractmethod
    def to_torch(self, stored: torch.Tensor) -> torch.Tensor:
        """What torch has in place of a stored value.

        Raises:
            RuntimeError, IndexError, ValueError: the transform does not apply to this shape.
        """

    @abc.abstractmethod
    def to_stored(self, value: torch.Tensor, stored_shape: Sequence[int]) -> torch.Tensor:
        """The way back.

        Args:
            value: the torch tensor.
            stored_shape: the shape in the file, which the tensor's own does not always tell.

        Raises:
            ValueError: there is no way back.
        """

    def torch_shape(self, stored_shape: Sequence[int]) -> tuple[int, ...] | None:
        """The shape in torch; None where the transform does not apply."""
        try:
            return tuple(self.to_torch(torch.empty(tuple(stored_shape), device="meta")).shape)
        except (RuntimeError, IndexError, ValueError):
            return None

    def then(self, after: Transform) -> Transform:
        """This one, and another one on its result."""
        return _Both(self, after)


@dataclasses.dataclass(frozen=True)
class AsIs(Transform):
    """Both have the same layout."""

    @property
    def name(self) -> str:
        return "as is"

    def to_torch(self, stored: torch.Tensor) -> torch.Tensor:
        return stored

    def to_stored(self, value: torch.Tensor, stored_shape: Sequence[int]) -> torch.Tensor:
        return value

    def then(self, after: Transform) -> Transform:
        return after


@dataclasses.dataclass(frozen=True)
class Permuted(Transform):
    """Other order of the dimensions.

    Example:
        >>> import torch
        >>> from torch_trackckpt.interop import Permuted
        >>> Permuted((3, 2, 0, 1)).to_torch(torch.zeros(5, 7, 3, 64)).shape
        torch.Size([64, 3, 5, 7])
    """

    dims: tuple[int, ...]
    """For each dimension in torch, which one it is in the file."""

    def __post_init__(self) -> None:
        if sorted(self.dims) != list(range(len(self.dims))):
            raise ValueError(f"dims must name each dimension from 0 to {len(self.dims) - 1} once, not {self.dims}.")

    @property
    def name(self) -> str:
        return "transposed" if self.dims == (1, 0) else str(self.dims).replace(" ", "")

    def to_torch(self, stored: torch.Tensor) -> torch.Tensor:
        return stored.permute(self.dims)

    def to_stored(self, value: torch.Tensor, stored_shape: Sequence[int]) -> torch.Tensor:
        return value.permute([self.dims.index(dim) for dim in range(len(self.dims))])


@dataclasses.dataclass(frozen=True)
class Depthwise2d(Transform):
    """Depthwise convolution: (height, width, channels, multiplier), which torch has as a convolution in as many groups
    as there are channels."""

    @property
    def name(self) -> str:
        return "depthwise"

    def to_torch(self, stored: torch.Tensor) -> torch.Tensor:
        return stored.permute(2, 3, 0, 1).flatten(0, 1).unsqueeze(1)

    def to_stored(self, value: torch.Tensor, stored_shape: Sequence[int]) -> torch.Tensor:
        channels, multiplier = stored_shape[2:]
        return value.squeeze(1).view(channels, multiplier, *value.shape[2:]).permute(2, 3, 0, 1)


@dataclasses.dataclass(frozen=True)
class Logits1x1(Transform):
    """A 1x1 convolution, (1, 1, in, out), which torch has as a linear layer."""

    @property
    def name(self) -> str:
        return "1x1 convolution as linear"

    def to_torch(self, stored: torch.Tensor) -> torch.Tensor:
        # Dimensions that are not 1 stay, and then there are too many to transpose.
        return stored.squeeze(1).squeeze(0).t()

    def to_stored(self, value: torch.Tensor, stored_shape: Sequence[int]) -> torch.Tensor:
        return value.t().unsqueeze(0).unsqueeze(0)


@dataclasses.dataclass(frozen=True)
class DenseAfterFlatten(Transform):
    """The first dense layer after feature maps were flattened: TensorFlow has flattened (height, width, channels),
    torch flattens (channels, height, width). The shapes do not tell, so a rule has to say it.

    Example:
        >>> import torch
        >>> from torch_trackckpt.interop import DenseAfterFlatten
        >>> maps, kernel = torch.randn(1, 4, 4, 2), torch.randn(32, 3)
        >>> weight = DenseAfterFlatten(4, 4).to_torch(kernel)
        >>> torch.allclose(maps.flatten(1) @ kernel, maps.permute(0, 3, 1, 2).flatten(1) @ weight.t(), atol=1e-5)
        True
    """

    is_view: ClassVar[bool] = False
    height: int
    width: int

    @property
    def name(self) -> str:
        return f"transposed, from {self.height}x{self.width} maps"

    def to_torch(self, stored: torch.Tensor) -> torch.Tensor:
        rows, out = stored.shape
        channels = rows // (self.height * self.width)
        return stored.reshape(self.height, self.width, channels, out).permute(3, 2, 0, 1).flatten(1)

    def to_stored(self, value: torch.Tensor, stored_shape: Sequence[int]) -> torch.Tensor:
        out, columns = value.shape
        channels = columns // (self.height * self.width)
        return value.reshape(out, channels, self.height, self.width).permute(2, 3, 1, 0).flatten(0, 2)


@dataclasses.dataclass(frozen=True)
class Sliced(Transform):
    """A part of a dimension; the rest of what is stored has no place in torch, so there is no way back.

    Example:
        >>> import torch
        >>> from torch_trackckpt.interop import Sliced
        >>> Sliced(0, 1).to_torch(torch.tensor([7.0, 8.0, 9.0]))
        tensor([8., 9.])
    """

    is_two_way: ClassVar[bool] = False
    is_view: ClassVar[bool] = False
    dim: int
    start: int
    stop: int | None = None

    @property
    def name(self) -> str:
        if (self.dim, self.start, self.stop) == (0, 1, None):
            return "without the background class"
        return f"[{self.start}:{'' if self.stop is None else self.stop}] of dimension {self.dim}"

    def to_torch(self, stored: torch.Tensor) -> torch.Tensor:
        size = stored.shape[self.dim]
        stop = size if self.stop is None else self.stop
        if not 0 <= self.start <= stop <= size:
            raise IndexError(f"{self.name} is not within shape {list(stored.shape)}.")
        return stored.narrow(self.dim, self.start, stop - self.start)

    def to_stored(self, value: torch.Tensor, stored_shape: Sequence[int]) -> torch.Tensor:
        raise ValueError(f"There is no way back from {self.name}: what was left out is not known.")


@dataclasses.dataclass(frozen=True)
class _Both(Transform):
    """One transform after the other; read into memory of its own, and then copied."""

    is_view: ClassVar[bool] = False
    before: Transform
    after: Transform

    @property
    def name(self) -> str:
        return f"{self.before.name}, {self.after.name}"

    @property
    def is_two_way(self) -> bool:  # type: ignore[override]
        return self.before.is_two_way and self.after.is_two_way

    def to_torch(self, stored: torch.Tensor) -> torch.Tensor:
        return self.after.to_torch(self.before.to_torch(stored))

    def to_stored(self, value: torch.Tensor, stored_shape: Sequence[int]) -> torch.Tensor:
        between = self.before.torch_shape(stored_shape)
        if between is None:
            raise ValueError(f"{self.before.name} does not apply to shape {list(stored_shape)}.")
        return self.before.to_stored(self.after.to_stored(value, between), stored_shape)


AS_IS = AsIs()
"""Both have the same layout: biases, normalisation, embeddings."""
TRANSPOSED = Permuted((1, 0))
"""The kernel of a dense layer."""
CONV_1D = Permuted((2, 1, 0))
"""The kernel of a convolution over one dimension."""
CONV_2D = Permuted((3, 2, 0, 1))
"""The kernel of a convolution over two dimensions."""
CONV_3D = Permuted((4, 3, 0, 1, 2))
"""The kernel of a convolution over three dimensions."""
DEPTHWISE_2D = Depthwise2d()
"""The kernel of a depthwise convolution."""
LOGITS_1X1 = Logits1x1()
"""The kernel of a 1x1 convolution that is a linear layer in torch."""
WITHOUT_BACKGROUND = Sliced(0, 1)
"""Leaves out the first class."""
