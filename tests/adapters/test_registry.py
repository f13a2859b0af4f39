"""Which adapter stands for which class."""

from typing import Any

import pytest
import torch
from torch import nn

from torch_trackckpt import register_adapter
from torch_trackckpt.adapters import Adapter, adapt, is_trackable
from torch_trackckpt.trackable import Value


class Total(Adapter):
    """Shows the attribute `total`."""

    def _serialize_to_tensors(self) -> dict[str, Value]:
        return {"total": torch.tensor(self.adapted.total)}

    def _restore_from_tensors(self, values: Any) -> None:
        self.adapted.total = float(values["total"])


def test_a_registered_adapter_stands_for_the_class_and_its_subclasses() -> None:
    class Meter:
        pass

    class Special(Meter):
        pass

    assert not is_trackable(Meter())
    register_adapter(Meter, Total)
    assert isinstance(adapt(Meter()), Total)
    assert isinstance(adapt(Special()), Total)


def test_the_adapter_of_the_nearest_class_counts() -> None:
    class Layer(nn.Linear):
        pass

    register_adapter(Layer, Total)
    assert isinstance(adapt(Layer(2, 1)), Total)
    assert not isinstance(adapt(nn.Linear(2, 1)), Total)


def test_a_class_registered_by_name_need_not_exist_yet() -> None:
    register_adapter("a_package_of_tests.meters.Meter", Total)
    meter: Any = type("Meter", (), {"__module__": "a_package_of_tests.meters"})
    special: Any = type("Special", (meter,), {})
    assert isinstance(adapt(special()), Total)
    assert isinstance(adapt(meter()), Total)


def test_a_class_that_was_seen_before_it_was_registered_by_name_is_covered() -> None:
    class Meter:
        pass

    assert not is_trackable(Meter())
    register_adapter(f"{Meter.__module__}.{Meter.__qualname__}", Total)
    assert is_trackable(Meter())


def test_an_adapter_for_the_class_itself_wins_over_one_by_name() -> None:
    class Meter:
        pass

    class Other(Adapter):
        pass

    register_adapter(f"{Meter.__module__}.{Meter.__qualname__}", Total)
    register_adapter(Meter, Other)
    assert isinstance(adapt(Meter()), Other)


def test_an_adapter_may_hand_on_to_what_is_inside() -> None:
    class Wrapper:
        def __init__(self, inner: nn.Module) -> None:
            self.inner = inner

    register_adapter(Wrapper, lambda wrapper: adapt(wrapper.inner))
    layer = nn.Linear(2, 1)
    assert adapt(Wrapper(layer))._identity() == adapt(layer)._identity()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [Total, 3, None, "text", int])
def test_what_nothing_is_registered_for_is_not_trackable(kind: object) -> None:
    assert not is_trackable(kind)
