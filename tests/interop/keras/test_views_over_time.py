"""What becomes of a view when its module, its checkpoint or other views change after it was made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import torch_trackckpt.interop as interop
from torch_trackckpt import Checkpoint, load_checkpoint
from torch_trackckpt.errors import MismatchError, UnsupportedValueError
from torch_trackckpt.graph.messages import read_object_graph
from torch_trackckpt.graph.object_graph import Attribute, Child, Node, ObjectGraph
from torch_trackckpt.interop import keras_view, load_keras
from torch_trackckpt.interop.keras.binding import bind
from torch_trackckpt.interop.keras.saved import read_saved_model
from torch_trackckpt.interop.keras.view import find_model, find_view


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


class WithNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 4)


class Fc(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4, bias=bias)


class _Stored:
    shape = (4,)


def kernels(path: str) -> list[torch.Tensor]:
    """Of a model with Keras 3's names, in order."""
    reader = load_checkpoint(path)
    graph = read_object_graph(reader)
    assert graph is not None
    found: list[torch.Tensor] = []
    while (node := graph.find(f"model/_functional/_operations/{len(found) + 1}/_kernel")) is not None:
        value = reader.get_tensor(graph.nodes[node].attributes[0].checkpoint_key)
        assert isinstance(value, torch.Tensor)
        found.append(value)
    return found


def test_a_replaced_module_is_saved_by_a_view_of_a_flavor(tmp_path: Path) -> None:
    model = net()
    checkpoint = Checkpoint(model=keras_view(model, flavor="keras3"))
    checkpoint.write(str(tmp_path / "a"))
    model[1] = nn.Linear(4, 4)
    _, kernel = kernels(checkpoint.write(str(tmp_path / "b")))
    assert torch.equal(kernel, model[1].weight.detach().T)


def test_an_added_module_is_saved_by_a_view_of_a_flavor(tmp_path: Path) -> None:
    model = net()
    checkpoint = Checkpoint(model=keras_view(model, flavor="keras3"))
    checkpoint.write(str(tmp_path / "a"))
    model.append(nn.Linear(4, 2))
    found = kernels(checkpoint.write(str(tmp_path / "b")))
    assert [tuple(kernel.shape) for kernel in found] == [(4, 4), (4, 4), (4, 2)]
    del model[2]
    assert len(kernels(checkpoint.write(str(tmp_path / "c")))) == 2


def test_an_optimizer_of_a_new_module_finds_the_view(tmp_path: Path) -> None:
    model = net()
    view = keras_view(model, flavor="keras3")
    Checkpoint(model=view).write(str(tmp_path / "a"))
    model[0], model[1] = nn.Linear(4, 4), nn.Linear(4, 4)
    Checkpoint(model=view).write(str(tmp_path / "b"))
    assert find_view(model[1].weight) is view


@pytest.mark.parametrize("told", ["restored", "like"])
@pytest.mark.parametrize("change", ["replaced", "added", "bias"])
def test_a_view_of_a_checkpoint_does_not_save_other_modules_than_it_was_bound_to(
    tmp_path: Path, told: str, change: str
) -> None:
    path = Checkpoint(model=keras_view(net(), flavor="keras3")).write(str(tmp_path / "a"))
    model = net()
    view = keras_view(model, like=path) if told == "like" else keras_view(model)
    checkpoint = Checkpoint(model=view)
    if told == "restored":
        checkpoint.read(path)
    checkpoint.write(str(tmp_path / "b"))
    if change == "replaced":
        model[1] = nn.Linear(4, 4)
    elif change == "added":
        model.append(nn.Linear(4, 2))
    else:
        model[1].bias = None
    with pytest.raises(UnsupportedValueError, match=r"replaced, added or removed.*Make the view anew"):
        checkpoint.write(str(tmp_path / "c"))
    if change == "replaced":
        checkpoint.read(path)
        assert torch.equal(kernels(checkpoint.write(str(tmp_path / "d")))[1], model[1].weight.detach().T)


def test_a_wrapper_and_a_parametrization_replace_nothing(tmp_path: Path) -> None:
    path = Checkpoint(model=keras_view(net(), flavor="keras3")).write(str(tmp_path / "a"))
    model = net()
    checkpoint = Checkpoint(model=keras_view(model))
    checkpoint.read(path)
    nn.utils.parametrizations.weight_norm(model[0])
    saved = kernels(checkpoint.write(str(tmp_path / "b")))
    assert torch.equal(saved[0], model[0].weight.detach().T)


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_nothing_changes_where_a_sharded_tensor_takes_no_values(tmp_path: Path, one_process: None) -> None:
    source = WithNorm()
    source.norm.running_mean.fill_(5.0)  # type: ignore[union-attr, operator]
    made = torch.optim.SGD(source.parameters(), lr=0.5)
    path = Checkpoint(
        model=(view := keras_view(source, flavor="keras3")), optimizer=keras_view(made, model=view)
    ).write(str(tmp_path / "a"))
    model = WithNorm()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    view = keras_view(model)
    with pytest.raises(MismatchError, match=r"\w+\.(weight|bias) takes no values: a DTensor"):
        Checkpoint(model=view, optimizer=keras_view(optimizer, model=view)).read(path)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert not model.norm.running_mean.any()  # type: ignore[union-attr, operator]


def test_nothing_changes_where_a_tensor_of_inference_mode_takes_no_values(tmp_path: Path) -> None:
    path = Checkpoint(model=keras_view(net(), flavor="keras3")).write(str(tmp_path / "a"))
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1] = nn.Linear(4, 4)
    before = model[1].weight.detach().clone()
    with pytest.raises(MismatchError, match=r"0\.(weight|bias) takes no values: it was made in inference mode"):
        Checkpoint(model=keras_view(model)).read(path)
    assert torch.equal(model[1].weight, before)


def test_an_error_tells_whether_the_shape_or_the_type_differs(tmp_path: Path) -> None:
    path = Checkpoint(model=keras_view(net(), flavor="keras3")).write(str(tmp_path / "a"))
    model = net()
    checkpoint = Checkpoint(model=keras_view(model))
    status = checkpoint.read(path)
    variable = checkpoint.model.bound().variables[0]  # type: ignore[attr-defined]
    with pytest.raises(MismatchError, match="the shapes differ") as caught:
        variable._prepare_restore({"VARIABLE_VALUE": torch.zeros(3, 3)}, lambda node_id: None)
    assert "convert" not in str(caught.value)
    with pytest.raises(MismatchError, match=r"convert the module first, to\(torch.float64\)"):
        variable._prepare_restore({"VARIABLE_VALUE": torch.zeros(4, 4).double()}, lambda node_id: None)
    status.assert_consumed()


def test_views_that_were_told_different_things_are_not_chosen_between() -> None:
    model = net()
    first, second = keras_view(model, flavor="keras3"), keras_view(model, flavor="tf_keras")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UnsupportedValueError, match=r"flavor='tf_keras'.*flavor='keras3'.*model=view"):
        _ = keras_view(optimizer).model
    assert keras_view(optimizer, model=first).model is first
    del first
    assert keras_view(optimizer).model is second


def test_the_youngest_of_views_that_were_told_the_same_is_chosen() -> None:
    model = net()
    older, younger = keras_view(model, flavor="keras3"), keras_view(model, flavor="keras3")
    assert find_view(model[0].weight) is younger is not older


def test_the_view_of_a_status_that_lives_on_is_not_in_the_way_of_a_younger_one(tmp_path: Path) -> None:
    path = Checkpoint(model=keras_view(net(), flavor="keras3")).write(str(tmp_path / "a"))
    model = net()
    status = load_keras(model, path)
    view = keras_view(model, like=path)
    assert find_view(model[0].weight) is view
    another = load_keras(model, path)
    with pytest.raises(UnsupportedValueError, match="model=view"):
        find_view(model[0].weight)
    assert status is not another


def test_what_one_checkpoint_has_nothing_for_is_trained_again_after_another_that_has(tmp_path: Path) -> None:
    without = Checkpoint(model=keras_view(Fc(False), flavor="keras3")).write(str(tmp_path / "a"))
    with_bias = Checkpoint(model=keras_view(Fc(True), flavor="keras3")).write(str(tmp_path / "b"))
    model = Fc(True)
    checkpoint = Checkpoint(model=keras_view(model))
    for _ in range(2):
        checkpoint.read(without)
        assert not model.fc.bias.requires_grad
    checkpoint.read(with_bias)
    assert model.fc.bias.requires_grad


def test_what_the_caller_froze_stays_frozen(tmp_path: Path) -> None:
    without = Checkpoint(model=keras_view(Fc(False), flavor="keras3")).write(str(tmp_path / "a"))
    with_bias = Checkpoint(model=keras_view(Fc(True), flavor="keras3")).write(str(tmp_path / "b"))
    model = Fc(True).requires_grad_(False)
    checkpoint = Checkpoint(model=keras_view(model))
    checkpoint.read(without)
    checkpoint.read(with_bias)
    assert not model.fc.bias.requires_grad


def graph_of(*children: tuple[tuple[int, str], ...]) -> ObjectGraph:
    """Nodes with edges; the last one has a value."""
    nodes = [Node(children=tuple(Child(node_id, name) for node_id, name in each)) for each in children]
    return ObjectGraph((*nodes, Node(attributes=(Attribute("VARIABLE_VALUE", "k", "k"),))))


def read(graph: ObjectGraph) -> Any:
    return read_saved_model(graph, 1, lambda key: _Stored())  # type: ignore[arg-type, return-value]


def test_a_layer_with_very_many_ways_to_its_values_is_read() -> None:
    depth = 200
    ways = [((i + 3, "cell"), (i + 3, "layer")) for i in range(depth)]
    model = read(graph_of(((1, "m"),), ((2, "z"),), *ways, ((depth + 3, "kernel"),)))
    (layer,) = model.layers
    assert [name.rpartition("/")[2] for name in layer.variables] == ["kernel"]


def test_a_very_long_chain_of_objects_is_read() -> None:
    model = read(graph_of(((1, "m"),), *[((i + 2, "x"),) for i in range(2000)]))
    assert len(model.layers) == 1


def test_the_order_of_a_composed_layer_is_depth_first() -> None:
    nodes = (
        Node(children=(Child(1, "m"),)),
        Node(children=(Child(2, "z"),)),
        Node(children=(Child(3, "forward_layer"), Child(4, "backward_layer"), Child(3, "layer"))),
        Node(children=(Child(5, "cell"),)),
        Node(children=(Child(6, "cell"),)),
        Node(children=(Child(7, "kernel"), Child(8, "bias"))),
        Node(children=(Child(9, "kernel"),)),
        *(Node(attributes=(Attribute("VARIABLE_VALUE", str(i), str(i)),)) for i in range(3)),
    )
    (layer,) = read(ObjectGraph(nodes)).layers
    assert list(layer.variables) == [
        "forward_layer/cell/kernel",
        "forward_layer/cell/bias",
        "backward_layer/cell/kernel",
    ]


def test_an_error_about_very_many_models_stays_short() -> None:
    count = 60
    nodes = [Node(children=tuple(Child(1 + 2 * i, f"m{i}") for i in range(count)))]
    for i in range(count):
        nodes += [
            Node(children=(Child(2 + 2 * i, "kernel"),)),
            Node(attributes=(Attribute("VARIABLE_VALUE", "k", "k"),)),
        ]
    with pytest.raises(MismatchError, match="51 more; model= says") as caught:
        find_model(
            ObjectGraph(tuple(nodes)),
            lambda key: _Stored(),  # type: ignore[arg-type, return-value]
            lambda saved: bind(nn.Linear(3, 3), saved),
        )
    assert len(str(caught.value)) < 10_000


def test_what_is_kept_of_a_template_is_read_once(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

    (tmp_path / "like").mkdir()
    path = Checkpoint(model=keras_view(Two(), flavor="keras3")).write(str(tmp_path / "like" / "ckpt"))
    checkpoint = Checkpoint(model=keras_view(One(), like=path, keep_others=True, map={"a": "a"}))
    first = checkpoint.write(str(tmp_path / "a"))
    shutil.rmtree(tmp_path / "like")
    second = checkpoint.write(str(tmp_path / "b"))
    one, two = load_checkpoint(first), load_checkpoint(second)
    assert list(one) == list(two)
    load_keras(Two(), second).assert_consumed()


def test_names_of_two_kinds_of_rules_do_not_lie_side_by_side() -> None:
    """`interop.AS_IS` is of the rules for names; the pieces of Keras's arrays are in `interop.keras`."""
    assert not {"KerasArray", "LayerForm", "Piece"} & set(interop.__all__)
