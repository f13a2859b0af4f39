"""No module of the package remembers anything: what is known of an object belongs to the object.

The one exception is what the user tells the process on purpose: `register_adapter` says which classes are trackable.
"""

import importlib
import pkgutil
from collections.abc import Iterator, MutableMapping, MutableSequence, MutableSet
from types import ModuleType

import torch
from torch import nn
from torch.nn.modules import module as torch_module

import torch_trackckpt
from torch_trackckpt import AutoTrackable, Checkpoint


def modules() -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(torch_trackckpt.__path__, "torch_trackckpt."):
        yield importlib.import_module(info.name)


def contents() -> dict[str, str]:
    """Every container in a namespace of a module or of a class of the package, and what is in it."""
    found = {}
    for module in modules():
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) == module.__name__ and isinstance(value, type):
                found |= {
                    f"{module.__name__}.{name}.{attribute}": repr(held)
                    for attribute, held in vars(value).items()
                    if isinstance(held, (MutableMapping, MutableSequence, MutableSet)) and attribute[:2] != "__"
                }
            if isinstance(value, (MutableMapping, MutableSequence, MutableSet)) and not name.startswith("__"):
                found[f"{module.__name__}.{name}"] = repr(value)
            if not callable(value) and not isinstance(value, ModuleType) and not name.startswith("__"):
                found[f"{module.__name__}.{name} itself"] = f"{id(value)}"
    return found


def torch_hooks() -> int:
    return sum(
        len(vars(torch_module)[f"_global_{kind}_registration_hooks"]) for kind in ("parameter", "buffer", "module")
    )


def use_it(prefix: str) -> None:
    """Saves, restores, waits for objects, drops them."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    path = Checkpoint(model=model, optimizer=optimizer, parts=AutoTrackable()).save(prefix)
    late = Checkpoint(model=nn.Sequential())
    status = late.restore(path)
    assert torch_hooks() == 3
    late.model.append(nn.Linear(2, 2))
    late.optimizer = torch.optim.Adam(late.model.parameters())
    print(status)
    status.expect_partial()


def test_using_the_package_changes_nothing_in_its_modules(prefix: str) -> None:
    before, hooks_before = contents(), torch_hooks()
    use_it(prefix)
    assert contents() == before
    assert torch_hooks() == hooks_before


def test_no_module_rebinds_a_name_of_its_own() -> None:
    for module in modules():
        source = module.__spec__.loader.get_source(module.__name__)  # type: ignore[union-attr]
        if source is not None:
            assert "\n    global " not in source, module.__name__
