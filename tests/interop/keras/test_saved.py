"""A saved graph is read as a sequence of Keras layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from torch_trackckpt import load_checkpoint
from torch_trackckpt.graph.messages import read_object_graph
from torch_trackckpt.interop.keras.saved import (
    Flavor,
    SavedModel,
    find_optimizers,
    model_candidates,
    read_saved_model,
)

TESTS = Path(__file__).parents[2]
GOLDEN = TESTS / "golden" / "keras"
CORPUS = TESTS / "corpus"


def saved(path: Path) -> SavedModel:
    reader = load_checkpoint(path)
    graph = read_object_graph(reader)
    assert graph is not None
    ((_, node_id),) = model_candidates(graph)
    return read_saved_model(graph, node_id, reader.stored)


def layers(path: Path) -> list[tuple[str, str, list[str]]]:
    return [(layer.name, layer.path, list(layer.variables)) for layer in saved(path).layers]


DENSE = ["kernel", "bias"]
NORM = ["gamma", "beta", "moving_mean", "moving_variance"]


def test_a_sequential_of_keras_3() -> None:
    path = "_functional/_operations"
    assert layers(GOLDEN / "k3_sequential_mlp_adam" / "ckpt-1") == [
        ("mlp/hidden", f"{path}/1", DENSE),
        ("mlp/bn", f"{path}/3", NORM),
        ("mlp/head", f"{path}/4", DENSE),
    ]


def test_a_cell_is_a_part_of_its_layer() -> None:
    cell = ["cell/kernel", "cell/recurrent_kernel", "cell/bias"]
    assert layers(GOLDEN / "k3_lstm_text_rmsprop" / "ckpt-1")[1] == ("lstm", "_operations/3", cell)
    assert layers(CORPUS / "sm2-lstm-keras-2.12")[0] == ("lstm", "layer_with_weights-0", cell)


def test_attention_is_one_layer_in_the_order_in_which_keras_makes_it() -> None:
    parts = [f"{part}_dense/{name}" for part in ("query", "key", "value", "output") for name in DENSE]
    assert layers(GOLDEN / "k3_mha_layer" / "ckpt-1") == [("mha", "_operations/2", parts)]


def test_lists_and_dicts_of_tf_keras() -> None:
    assert [path for _, path, _ in layers(GOLDEN / "k2_subclassed" / "ckpt-1")] == [
        "first",
        "blocks/0",
        "blocks/1",
        "heads/a",
    ]


def test_what_only_the_optimizer_leads_to_has_its_place_and_the_name_that_the_optimizers_state_tells() -> None:
    model = saved(GOLDEN / "k3_subclassed_list_attr" / "ckpt-1")
    assert [(layer.name, layer.path, layer.is_loose) for layer in model.layers] == [
        ("", "first", False),
        ("block_0", "optimizer/_trainable_variables/2", True),
        ("block_1", "optimizer/_trainable_variables/4", True),
        ("", "pair/0", False),
        ("", "head", False),
    ]


@pytest.mark.parametrize("case", ["k3_saved_model_export", "k3_saved_model_tf", "k2_saved_model"])
def test_every_way_to_export_a_model_has_the_same_layers(case: str) -> None:
    found = layers(GOLDEN / case / "saved_model")
    assert [(name, variables) for name, _, variables in found] == [("hidden", DENSE), ("bn", NORM), ("head", DENSE)]
    assert saved(GOLDEN / case / "saved_model").is_flat == (case == "k3_saved_model_export")


def test_second_paths_are_known() -> None:
    model = saved(GOLDEN / "k2_sequential_legacy_adam" / "ckpt-1")
    assert [layer.aliases for layer in model.layers] == [("layer-0",), ("layer-2",), ("layer-3",)]


def test_metrics_and_state_of_optimizers_are_no_layers() -> None:
    model = saved(CORPUS / "sm2-basic-pitch")
    assert len(model.layers) == 9
    assert find_optimizers(model.graph)[0][0] == "optimizer"


def test_a_file_that_does_not_tell_names_has_none() -> None:
    assert [layer.name for layer in saved(CORPUS / "sm2-keras-iris").layers] == ["", "", ""]


def test_sonnets_lists_and_moving_averages() -> None:
    model = saved(CORPUS / "v2-sonnet-cifar" / "checkpoint-1")
    assert [layer.path for layer in model.layers] == [
        "_conv_modules/0",
        "_conv_modules/1",
        "_bn_modules/0",
        "_bn_modules/1",
        "_logits_module",
    ]
    assert {"scale", "offset", "moving_mean/average", "moving_variance/average"} <= model.layers[2].variables.keys()


@pytest.mark.parametrize(
    ("path", "flavor"),
    [
        (GOLDEN / "k3_functional_cnn_sgd" / "ckpt-1", Flavor.KERAS3),
        (GOLDEN / "k3_subclassed_list_attr" / "ckpt-1", Flavor.KERAS3),
        (GOLDEN / "k3_saved_model_export" / "saved_model", Flavor.KERAS3),
        (GOLDEN / "k2_functional_gru_adamw" / "ckpt-1", Flavor.TF_KERAS),
        (GOLDEN / "k2_saved_model" / "saved_model", Flavor.TF_KERAS),
        (GOLDEN / "k2_subclassed" / "ckpt-1", Flavor.TF_KERAS_LEGACY_OPTIMIZER),
        (CORPUS / "sm2-basic-pitch", Flavor.TF_KERAS_LEGACY_OPTIMIZER),
        (CORPUS / "v2-sonnet-cifar" / "checkpoint-1", Flavor.SONNET),
        (CORPUS / "v2-sonnet-lstm" / "checkpoint-1", Flavor.SONNET),
    ],
    ids=str,
)
def test_the_edges_tell_who_wrote_it(path: Path, flavor: Flavor) -> None:
    assert saved(path).flavor is flavor
