"""State that is not one tensor per parameter."""

from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import pytest
import torch
import witness
from adapters.optimizers import VALUE, Odd, adam, everything, is_same, linear, py_state, slot_keys, train, trained
from torch import optim

from torch_trackckpt import Checkpoint
from torch_trackckpt.adapters.optimizer import _on_device
from torch_trackckpt.errors import (
    MismatchError,
    UnsupportedValueError,
)

# State that is not one tensor per parameter.


def test_a_slot_of_another_shape_than_its_parameter_round_trips(prefix: str) -> None:
    """C121"""
    model, optimizer = trained()
    Checkpoint(model=model, optimizer=optimizer).write(prefix)

    assert witness.read_bundle(prefix)[f"model/weight/.OPTIMIZER_SLOT/optimizer/step/{VALUE}"].shape == ()
    other = linear(1)
    other_optimizer = adam(other)
    Checkpoint(model=other, optimizer=other_optimizer).read(prefix).assert_consumed()
    assert is_same(other_optimizer.state_dict(), optimizer.state_dict())


ODD_STATES: dict[str, dict[Any, Any]] = {
    "none": {"momentum_buffer": None},
    "numbers": {"step": 7, "beta": 0.5, "is_warm": True},
    "nested": {"history": {"grads": [torch.ones(2), torch.zeros(3)], 5: (None, torch.tensor(1.5))}},
    "list": {"history": [torch.ones(2), None, 3, [torch.zeros(1, dtype=torch.int64)]]},
    "numbered tensors": {0: torch.ones(2), 1: torch.zeros(1), "exp_avg": torch.ones(2, 3)},
    "deque": {"recent": deque([torch.ones(1), 2], maxlen=3)},
    "counter": {"seen": Counter({3: 1})},
    "kinds of dicts": {"a": OrderedDict(b=torch.ones(1)), "c": [defaultdict(list, d=[torch.ones(1)])]},
    "both": {"exp_avg": torch.ones(2, 3), "step": 7, "pair": (torch.ones(1), 2)},
    "half precision": {"exp_avg": torch.ones(2, 3, dtype=torch.bfloat16)},
    "integers": {"codes": torch.arange(6, dtype=torch.uint8).reshape(2, 3)},
    "one row": {"row": torch.ones(3)},
    "non-contiguous": {"exp_avg": torch.arange(6.0).reshape(3, 2).T},
    "empty": {},
}


@pytest.mark.parametrize("state", ODD_STATES.values(), ids=ODD_STATES)
def test_irregular_state_round_trips(state: dict[Any, Any], prefix: str) -> None:
    """C121"""
    model = linear()
    optimizer = Odd(model.parameters())
    optimizer.fill(model.weight, state)
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)

    other = linear(1)
    other_optimizer = Odd([other.bias, other.weight])
    Checkpoint(model=other, optimizer=other_optimizer).restore(path).assert_consumed()

    assert is_same(other_optimizer.state.get(other.weight, {}), state)
    assert other_optimizer.param_groups[0]["schedule"] == (1, {2: 3})


def test_irregular_state_is_text_under_the_optimizer_by_the_parameters_path(prefix: str) -> None:
    """C121"""
    model = linear()
    optimizer = Odd(model.parameters())
    optimizer.fill(model.bias, {"step": 7, "history": [torch.ones(1)], "exp_avg": torch.ones(2)})

    Checkpoint(model=model, optimizer=optimizer).write(prefix)

    assert py_state(prefix, "optimizer/extra_state") == {
        "model/bias": {"step": 7, "history": [{"$": "tensor", "v": "0"}]}
    }
    assert f"optimizer/extra_state/0/{VALUE}" in witness.read_bundle(prefix)
    assert slot_keys(prefix) == [f"model/bias/.OPTIMIZER_SLOT/optimizer/exp_avg/{VALUE}"]


def test_state_that_cannot_be_encoded_is_refused_with_its_position(prefix: str) -> None:
    """C121, C168"""
    model = linear()
    optimizer = Odd(model.parameters())
    optimizer.fill(model.bias, {"hook": [train]})

    with pytest.raises(UnsupportedValueError) as error:
        Checkpoint(model=model, optimizer=optimizer).save(prefix)

    assert str(error.value).startswith(
        "(root).optimizer.extra_state cannot be saved: the value at ['model/bias']['hook'][0] is a builtins.function"
    )


def test_state_under_a_key_that_is_no_parameter_is_text_of_its_own(prefix: str) -> None:
    """C121: under a name that no object path can clash with."""
    model = linear()
    optimizer = Odd(model.parameters())
    optimizer.state["model/weight"] = {"step": 1}  # type: ignore[index]
    optimizer.state["scale"] = torch.ones(2)  # type: ignore[index, assignment]
    optimizer.fill(model.weight, {"step": 2})

    Checkpoint(model=model, optimizer=optimizer).write(prefix)

    assert py_state(prefix, "optimizer/global_state") == {
        "model/weight": {"step": 1},
        "scale": {"$": "tensor", "v": "0"},
    }
    assert py_state(prefix, "optimizer/extra_state") == {"model/weight": {"step": 2}}


@pytest.mark.parametrize("is_fresh", [True, False], ids=["fresh", "with a state"])
def test_state_under_keys_that_are_no_parameters_round_trips(is_fresh: bool, prefix: str) -> None:
    """C121"""
    model = linear()
    optimizer = Odd(model.parameters())
    state = {"step": 7, "norms": {"mean": torch.ones(2), 5: [1.5]}, ("a", 1): None}
    optimizer.state.update(state)  # type: ignore[arg-type]
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = Odd(model.parameters())
    if not is_fresh:
        other.state.update({"step": 1, "norms": {"mean": torch.zeros(2)}})  # type: ignore[arg-type]

    Checkpoint(model=model, optimizer=other).restore(path).assert_consumed()

    assert is_same(dict(other.state), state)
    assert is_same(other.state_dict()["state"], state)


def test_global_state_that_cannot_be_encoded_is_refused_with_its_position(tmp_path: Path) -> None:
    """C121, C168"""
    model = linear()
    optimizer = Odd(model.parameters())
    optimizer.state["hooks"] = [train]  # type: ignore[index, assignment]

    with pytest.raises(UnsupportedValueError) as error:
        Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "ckpt")

    assert str(error.value).startswith(
        "(root).optimizer.global_state cannot be saved: the value at ['hooks'][0] is a builtins.function"
    )
    assert list(tmp_path.iterdir()) == []


def test_state_of_a_parameter_that_is_no_dict_is_refused_by_name(tmp_path: Path) -> None:
    """C121, C168"""
    model = linear()
    optimizer = Odd(model.parameters())
    optimizer.state[model.weight] = torch.ones(2, 3)  # type: ignore[assignment]

    with pytest.raises(UnsupportedValueError, match=r"\(root\)\.optimizer cannot be saved: Odd\.state has a Tensor"):
        Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "ckpt")

    assert list(tmp_path.iterdir()) == []


def test_lbfgs_with_its_history_and_parameters_in_another_order_round_trips(prefix: str) -> None:
    """C121: its state runs over all parameters, so their stored order is taken over."""
    model, optimizer = trained(lambda model: optim.LBFGS(model.parameters(), max_iter=3))
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)

    other = linear(1)
    other_optimizer = optim.LBFGS([other.bias, other.weight], max_iter=3)
    Checkpoint(model=other, optimizer=other_optimizer).restore(path).assert_consumed()

    assert slot_keys(path) == []
    assert other_optimizer.param_groups[0]["params"][0] is other.weight
    assert is_same(other_optimizer.state_dict(), optimizer.state_dict())
    assert len(other_optimizer.state[other.weight]["old_dirs"]) > 0


def test_lbfgs_with_other_parameters_is_a_mismatch(prefix: str) -> None:
    """C121, C122"""
    model, optimizer = trained(lambda model: optim.LBFGS(model.parameters(), max_iter=3))
    path = Checkpoint(model=model, optimizer=optimizer).save(prefix)
    other = linear(1)
    other_optimizer = optim.LBFGS([other.weight], max_iter=3)
    before = everything(other, other_optimizer)

    with pytest.raises(MismatchError, match=r"state of LBFGS runs over all of its parameters"):
        Checkpoint(model=other, optimizer=other_optimizer).restore(path)

    assert is_same(everything(other, other_optimizer), before)


def test_tensors_anywhere_in_irregular_state_move_to_the_device_of_their_parameter() -> None:
    """C121: the meta device stands for an accelerator."""
    state = {"a": [torch.ones(1), (1, torch.ones(1))], "b": OrderedDict(c=deque([torch.ones(1)], maxlen=2))}

    moved = _on_device(state, torch.device("meta"))

    assert [t.device.type for t in (moved["a"][0], moved["a"][1][1], moved["b"]["c"][0])] == ["meta"] * 3
    assert (type(moved["b"]), moved["b"]["c"].maxlen, moved["a"][1][0]) == (OrderedDict, 2, 1)
