"""What shapes and names cannot tell: an error that names the way out, and the way out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from keras_models import Case, close, dense, loaded, outputs_of
from keras_oracle import Keras, Program, Run, functional, inputs, layer, optimizer, sequential, subclassed
from torch import nn

from torch_trackckpt import Checkpoint
from torch_trackckpt.errors import MismatchError, UnsupportedValueError
from torch_trackckpt.interop import keras_view, load_keras


def stack(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(one, other) for one, other in itertools.pairwise(sizes)))


def mapped(*names: str, size: int = 4) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(size, size) for name in names})


def chain(*names: str, generation: str = "k3") -> Any:
    """Equal layers of these names, one after the other, of which Keras stores names."""
    calls = [(f"y{i}", name, [f"y{i - 1}" if i else "x"]) for i, name in enumerate(names)]
    return functional([inputs(4, name="x")], {name: dense(4) for name in names}, calls, [calls[-1][0]])


def write(keras: Keras, tmp_path: Path, model: Any, *given: Any, generation: str = "k3", **more: Any) -> Run:
    program = {key: more.pop(key) for key in ("optimizer", "is_compiled") if key in more}
    return keras.write(Program(generation, model, given, **program), tmp_path / "theirs", **more)


@pytest.fixture(scope="module")
def written(keras: Keras, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Run]:
    """What several tests read."""
    folder = tmp_path_factory.mktemp("written")
    four = chain("one", "two", "three", "four")
    gan = {
        "generator": sequential(dense(4), dense(5), inputs=inputs(4)),
        "discriminator": sequential(dense(4), dense(1), inputs=inputs(5)),
    }
    twins = {each: sequential(dense(4), inputs=inputs(4)) for each in ("a", "b")}
    listed = {"first": dense(4), "blocks": [dense(4), layer("BatchNormalization")]}
    models: Mapping[str, tuple[str, Any, int, dict[str, Any]]] = {
        "four": ("k3", four, 4, {}),
        "gan": ("k3", subclassed(gan, ["generator", "discriminator"]), 4, {"how": "root"}),
        "twins": ("k2", subclassed(twins, ["a", "b"]), 4, {"how": "root"}),
        "listed": ("k3", subclassed(listed, ["first", "blocks/0", "blocks/1"]), 4, {}),
        "lora": ("k3", sequential(dense(4, lora_rank=2), dense(2), inputs=inputs(4)), 4, {}),
        "numbered": ("k2", chain("conv0", "conv1"), 4, {}),
        "reset before": ("k2", sequential(layer("GRU", units=3, reset_after=False), inputs=inputs(5, 4)), 4, {}),
        "sequence": ("k3", sequential(dense(4), dense(3), dense(4), dense(3), inputs=inputs(4)), 4, {}),
    }
    found = {}
    for name, (generation, model, size, settings) in models.items():
        given = [inputs(5, 4)] if name == "reset before" else [inputs(size)]
        found[name] = keras.write(Program(generation, model, given), folder / name, **settings)
    return found


def test_a_head_that_keras_has_not_is_left_out(written: Mapping[str, Run]) -> None:
    net = mapped("one", "two", "three", "four", "extra")
    with pytest.raises(MismatchError, match=r"extra.*map=\{'extra': None\}"):
        load_keras(net, written["four"].prefix)
    before = net["extra"].weight.clone()
    status = load_keras(net, written["four"].prefix, map={"extra": None})
    status.assert_consumed().assert_existing_objects_matched()
    assert torch.equal(net["extra"].weight, before)
    assert torch.equal(net["three"].weight, torch.from_numpy(written["four"].variables[4].value).T)


def test_a_part_of_a_model_is_found_by_names(written: Mapping[str, Run]) -> None:
    net = mapped("three", "two")
    status = load_keras(net, written["four"].prefix).assert_existing_objects_matched()
    assert torch.equal(net["three"].bias, torch.from_numpy(written["four"].variables[5].value))
    assert len(status.unused_keys) == 4
    with pytest.raises(AssertionError, match="nothing took"):
        status.assert_consumed()


def test_a_part_of_a_model_is_not_found_by_order(written: Mapping[str, Run]) -> None:
    with pytest.raises(MismatchError, match="map="):
        load_keras(stack(4, 4, 4), written["four"].prefix)
    net = stack(4, 4, 4)
    load_keras(net, written["four"].prefix, map={"0": "two", "1": "four"})
    assert torch.equal(net[1].bias, torch.from_numpy(written["four"].variables[7].value))


def test_names_that_are_partly_the_same_do_not_turn_the_order_around(written: Mapping[str, Run]) -> None:
    """conv1 is the second layer of Keras, and the first one of the net."""
    with pytest.raises(MismatchError, match=r"conv2.*conv0.*map="):
        load_keras(mapped("conv1", "conv2"), written["numbered"].prefix)
    net = mapped("conv1", "conv2")
    load_keras(net, written["numbered"].prefix, map={"conv1": "conv0", "conv2": "conv1"}).assert_consumed()
    assert torch.equal(net["conv1"].bias, torch.from_numpy(written["numbered"].variables[1].value))


def test_another_order_of_equal_shapes_is_refused_where_shapes_tell(written: Mapping[str, Run]) -> None:
    net = nn.ModuleDict({"b": nn.Linear(3, 4), "a": nn.Linear(4, 3), "c": nn.Linear(4, 4), "d": nn.Linear(4, 3)})
    with pytest.raises(MismatchError, match="map="):
        load_keras(net, written["sequence"].prefix)


def test_two_models_of_one_checkpoint_are_told_apart_by_their_shapes(written: Mapping[str, Run]) -> None:
    run = written["gan"]
    generator, discriminator = stack(4, 4, 5), stack(5, 4, 1)
    load_keras(generator, run.prefix).assert_consumed()
    load_keras(discriminator, run.prefix).assert_consumed()
    with torch.no_grad():
        close([discriminator(generator(torch.from_numpy(run.inputs[0]))).numpy()], run.outputs)


def test_two_models_that_a_module_fits_are_named(written: Mapping[str, Run]) -> None:
    run = written["twins"]
    with pytest.raises(MismatchError, match="say model=, one of 'a', 'b'"):
        load_keras(nn.Linear(4, 4), run.prefix)
    net = nn.Linear(4, 4)
    load_keras(net, run.prefix, model="b").assert_consumed()
    assert torch.equal(net.bias, torch.from_numpy(run.variables[3].value))
    both = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    load_keras(both, run.prefix).assert_consumed()
    assert torch.equal(both["b"].bias, net.bias)


def test_what_keras_3_does_not_store_is_an_error_that_says_so(written: Mapping[str, Run]) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4, eps=1e-3))
    with pytest.raises(MismatchError, match="Keras 3 does not store layers in lists"):
        load_keras(net, written["listed"].prefix)
    load_keras(net, written["listed"].prefix, map={"0": "first", "1": None, "2": None}).assert_consumed()
    assert torch.equal(net[0].bias, torch.from_numpy(written["listed"].variables[1].value))


@pytest.mark.parametrize("optimizer_is_given", [False, True])
def test_what_only_an_optimizer_of_keras_3_knows_is_found_there(
    keras: Keras, optimizer_is_given: bool, tmp_path: Path
) -> None:
    model = subclassed(
        {"first": dense(4), "blocks": [dense(4), layer("BatchNormalization"), dense(4)]},
        ["first", "blocks/0", "blocks/1", "blocks/2"],
    )
    adam = optimizer("Adam", learning_rate=0.01)
    run = keras.write(Program("k3", model, [inputs(4)], optimizer=adam), tmp_path / "theirs", num_steps=2)

    def blocks() -> nn.ModuleDict:
        return nn.ModuleDict(
            {
                "first": nn.Linear(4, 4),
                "blocks": nn.ModuleList([nn.Linear(4, 4), nn.BatchNorm1d(4, eps=1e-3), nn.Linear(4, 4)]),
            }
        )

    net = blocks()
    ours = torch.optim.Adam(net.parameters(), eps=1e-7) if optimizer_is_given else None
    status = load_keras(net, run.prefix, ours)
    assert status.unmatched_torch == ("blocks.1.running_mean", "blocks.1.running_var")
    with pytest.raises(AssertionError, match="running_mean"):
        status.assert_existing_objects_matched()
    by_path = {variable.name: variable for variable in run.variables if "moving" in variable.name}
    net["blocks"][1].running_mean.copy_(torch.from_numpy(by_path["moving_mean"].value))
    net["blocks"][1].running_var.copy_(torch.from_numpy(by_path["moving_variance"].value))

    def forward(net: nn.Module, given: Any) -> Any:
        assert isinstance(net, nn.ModuleDict)
        x = net["first"](given[0])
        for each in net["blocks"]:
            x = each(x)
        return x

    case = Case(model, [inputs(4)], blocks, forward)
    close(outputs_of(case, net, run.inputs), run.outputs)


def test_lora_is_refused_until_it_is_merged_or_has_a_rule(written: Mapping[str, Run]) -> None:
    with pytest.raises(MismatchError, match=r"alpha is not stored\. Merge them in Keras"):
        load_keras(stack(4, 4, 2), written["lora"].prefix)


def test_a_gru_with_its_reset_before_is_refused(written: Mapping[str, Run]) -> None:
    with pytest.raises(MismatchError, match="reset_after=True"):
        load_keras(nn.GRU(4, 3, batch_first=True), written["reset before"].prefix)


def test_a_flavor_of_another_generation_is_refused(written: Mapping[str, Run]) -> None:
    view = keras_view(stack(4, 4, 4, 4, 4), flavor="tf_keras")
    with pytest.raises(MismatchError, match=r"keras3.*Leave flavor out"):
        Checkpoint(model=view).restore(written["four"].prefix)
    with pytest.raises((MismatchError, UnsupportedValueError), match="keras3"):
        Checkpoint(model=keras_view(stack(4, 4, 4, 4, 4), flavor="tf_keras", like=written["four"].prefix)).write("x")


def test_a_folder_of_checkpoints_gives_the_latest(keras: Keras, tmp_path: Path) -> None:
    model = sequential(dense(3, name="only"), inputs=inputs(4))
    case = Case(model, [inputs(4)], lambda: nn.Sequential(nn.Linear(4, 3)))
    run = keras.write(case.of("k2"), tmp_path / "theirs")
    assert (tmp_path / "theirs" / "checkpoint").exists()
    loaded(case, run, tmp_path / "theirs")


def test_the_same_weights_at_two_places_of_the_net_are_one_layer(keras: Keras, tmp_path: Path) -> None:
    """A decoder that shares its embedding with the encoder, which Keras has once."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 4)
            self.hidden = nn.Linear(4, 4)
            self.output = nn.Linear(4, 9, bias=False)
            self.output.weight = self.embedding.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.hidden(self.embedding(x))

    model = sequential(layer("Embedding", input_dim=9, output_dim=4), dense(4), inputs=inputs(6, high=9))
    run = keras.write(Program("k3", model, [inputs(6, high=9)]), tmp_path / "theirs")
    net, _ = loaded(Case(model, [inputs(6, high=9)], Tied), run)
    assert net.get_parameter("output.weight") is net.get_parameter("embedding.weight")
