"""Checkpoints of BERT, and small ones, are loaded by rules; what does not fit is one error before anything changes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
)

from torch_trackckpt import Checkpoint, CheckpointOptions, load_checkpoint
from torch_trackckpt.bundle.writer import BundleWriter
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError, MismatchError, UnsupportedFormatError
from torch_trackckpt.interop import (
    BERT_FOR_PRE_TRAINING,
    BERT_FOR_QUESTION_ANSWERING,
    BERT_FOR_SEQUENCE_CLASSIFICATION,
    BERT_MODEL,
    CONV_2D,
    TRANSPOSED,
    DenseAfterFlatten,
    Rule,
    RuleSet,
    load_name_based,
)

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden" / "keras" / "tf1_bert_names"
CORPUS = TESTS / "corpus"
TOLERANCE = 2.7e-6

DENSE = RuleSet("a dense layer", (Rule("dense/kernel", "weight", TRANSPOSED), Rule("dense/bias", "bias")))
VALUES = {"dense/kernel": torch.arange(6.0).reshape(3, 2), "dense/bias": torch.tensor([7.0, 8.0])}


def bert_config(**changes: Any) -> BertConfig:
    sizes = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "vocab_size": 20,
        "max_position_embeddings": 10,
        "num_hidden_layers": 2,
    }
    return BertConfig(**(sizes | changes))


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(np.load(GOLDEN / f"{name}.npy"))


def inputs() -> dict[str, torch.Tensor]:
    return {name: golden(name).long() for name in ("input_ids", "token_type_ids", "attention_mask")}


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest, at the positions that mean something."""
    mask = inputs()["attention_mask"].bool() if found.dim() == 3 else slice(None)
    return float((found - expected)[mask].abs().max())


def two_tensors() -> nn.Module:
    """A layer whose weight is made of other tensors."""
    layer = nn.Linear(3, 2)
    layer.weight = nn.Parameter(TwoTensor(torch.zeros(2, 3), torch.zeros(2, 3)))
    return layer


def write(folder: Path, values: dict[str, torch.Tensor]) -> str:
    prefix = str(folder / "model.ckpt")
    with BundleWriter(prefix + ".data-00000-of-00001", prefix + ".index", durable=False) as writer:
        for name in sorted(values):
            writer.add(name, values[name])
    return prefix


# --------------------------------------------------------------------------------------------------------------- BERT


@torch.no_grad()
@pytest.mark.parametrize("path", [GOLDEN, GOLDEN / "bert_model.ckpt", GOLDEN / "bert_model.ckpt.index"], ids=str)
def test_a_model_for_pre_training_computes_what_tensorflow_did(path: Path) -> None:
    model = BertForPreTraining(bert_config()).eval()
    status = load_name_based(model, path, BERT_FOR_PRE_TRAINING).assert_consumed().assert_nontrivial_match()
    assert (len(status.bound), status.unused_keys, status.inexact, status.global_step) == (46, {}, (), 0)
    assert len(status.ignored) == 2 * 46 + 1
    outputs = model(**inputs())
    assert difference(outputs.prediction_logits, golden("mlm_logits")) < TOLERANCE
    assert difference(outputs.seq_relationship_logits, golden("nsp_logits")) < TOLERANCE
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


@torch.no_grad()
def test_a_model_without_heads_computes_what_tensorflow_did() -> None:
    model = BertModel(bert_config()).eval()
    status = load_name_based(model, GOLDEN, BERT_MODEL).assert_consumed()
    assert [key for key in status.ignored if key.startswith("cls/") and "adam" not in key] != []
    outputs = model(**inputs())
    assert difference(outputs.last_hidden_state, golden("sequence_output")) < TOLERANCE
    assert difference(outputs.pooler_output, golden("pooled_output")) < TOLERANCE


def test_every_value_is_that_of_the_file() -> None:
    model = BertForPreTraining(bert_config())
    status = load_name_based(model, GOLDEN, BERT_FOR_PRE_TRAINING)
    reader, state = load_checkpoint(GOLDEN), model.state_dict()
    for name, key in status.bound.items():
        value = reader.get_tensor(key)
        assert isinstance(value, torch.Tensor)
        assert torch.equal(state[name], value.t() if key.endswith("kernel") else value), name


def test_a_checkpoint_of_another_program_is_loaded() -> None:
    path = CORPUS / "v2-bert-toy" / "bert_model.ckpt"
    shapes = load_checkpoint(path).get_variable_to_shape_map()
    layers = {key.split("/")[2] for key in shapes if key.startswith("bert/encoder/")}
    config = bert_config(
        hidden_size=4,
        vocab_size=shapes["bert/embeddings/word_embeddings"][0],
        max_position_embeddings=shapes["bert/embeddings/position_embeddings"][0],
        intermediate_size=shapes["bert/encoder/layer_0/intermediate/dense/kernel"][1],
        num_hidden_layers=len(layers),
    )
    status = load_name_based(BertForPreTraining(config), path, BERT_FOR_PRE_TRAINING).assert_consumed()
    assert len(status.bound) == len([key for key in shapes if "/adam_" not in key]) - 1


@pytest.mark.parametrize(
    ("model", "rules", "head"),
    [
        (BertForSequenceClassification, BERT_FOR_SEQUENCE_CLASSIFICATION, ""),
        (BertForQuestionAnswering, BERT_FOR_QUESTION_ANSWERING, "cls/squad/"),
    ],
    ids=["classifier", "squad"],
)
def test_a_model_that_was_fine_tuned_has_its_head(model: Any, rules: RuleSet, head: str, tmp_path: Path) -> None:
    reader = load_checkpoint(GOLDEN)
    kept = [key for key in reader if key.startswith("bert/")]
    values: dict[str, Any] = {key: reader.get_tensor(key) for key in kept}
    weights = torch.randn(2, 8)
    path = write(tmp_path, values | {f"{head}output_weights": weights, f"{head}output_bias": torch.ones(2)})
    live = model(bert_config(num_labels=2))
    load_name_based(live, path, rules).assert_consumed()
    layer = live.classifier if head == "" else live.qa_outputs
    assert torch.equal(layer.weight, weights)
    assert torch.equal(layer.bias, torch.ones(2))


def test_a_model_that_is_to_be_fine_tuned_keeps_its_new_head() -> None:
    model = BertForSequenceClassification(bert_config(num_labels=3))
    status = load_name_based(model, GOLDEN, BERT_FOR_SEQUENCE_CLASSIFICATION)
    assert status.unmatched_torch == ("classifier.weight", "classifier.bias")
    assert status.unused_keys == {}
    with pytest.raises(AssertionError, match=r"has nothing for 2 values of the program.*classifier\.weight"):
        status.assert_existing_objects_matched()


# --------------------------------------------------------------------------------------------------- other formats


def test_a_checkpoint_of_the_older_format_is_loaded() -> None:
    folder = CORPUS / "v1-deepq-rmsprop" / "saved_models"
    layers = (("input_layer", 0), ("hidden_layer_0", 2), ("hidden_layer_1", 4))
    rules = RuleSet(
        "an MLP",
        tuple(
            rule
            for layer, number in layers
            for rule in (
                Rule(f"MLP/{layer}/W_0", f"{number}.weight", TRANSPOSED),
                Rule(f"MLP/{layer}/b", f"{number}.bias"),
            )
        ),
    )
    net = nn.Sequential(nn.Linear(162, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 4))
    status = load_name_based(net, folder / "karpathy_game.ckpt", rules).assert_existing_objects_matched()
    assert len(status.unused_keys) == 6
    assert set(status.unused_keys.values()) == {"no rule matches it"}
    load_name_based(net, folder / "karpathy_game.ckpt", rules.ignoring("target_network/.*")).assert_consumed()
    stored = load_checkpoint(folder / "karpathy_game.ckpt").get_tensor("MLP/input_layer/W_0")
    assert isinstance(stored, torch.Tensor)
    assert torch.equal(net[0].weight, stored.t())


def test_a_saved_model_of_tensorflow_1_is_loaded() -> None:
    rules = RuleSet(
        "the deep half of an Estimator",
        (
            Rule(r"dnn/hiddenlayer_(\d)/kernel", "{1}.weight", TRANSPOSED),
            Rule(r"dnn/hiddenlayer_(\d)/bias", "{1}.bias"),
            Rule("dnn/logits/kernel", "4.weight", TRANSPOSED),
            Rule("dnn/logits/bias", "4.bias"),
        ),
    ).ignoring("linear/.*")
    folder = CORPUS / "sm1-taxi-2shards"
    sizes = (3, 100, 70, 48, 34, 1)
    net = nn.Sequential(*(nn.Linear(size, out) for size, out in itertools.pairwise(sizes)))
    status = load_name_based(net, folder, rules).assert_consumed()
    assert status.bound["4.weight"] == "dnn/logits/kernel"


def test_the_layer_after_flattened_maps_sees_them_in_another_order() -> None:
    rules = RuleSet(
        "a classifier of small images",
        (
            Rule("Wconv1", "conv.weight", CONV_2D),
            Rule("bconv1", "conv.bias"),
            Rule("W1", "fc.weight", DenseAfterFlatten(13, 13)),
            Rule("b1", "fc.bias"),
        ),
    )
    net = nn.ModuleDict({"conv": nn.Conv2d(3, 32, 7), "fc": nn.Linear(5408, 10)})
    folder = CORPUS / "v2-cifar-dotnet"
    load_name_based(net, folder, rules).assert_consumed()
    stored = load_checkpoint(folder).get_tensor("W1")
    assert isinstance(stored, torch.Tensor)
    assert net["fc"].weight[4, 3 * 169 + 5 * 13 + 6] == stored[(5 * 13 + 6) * 32 + 3, 4]


# ------------------------------------------------------------------------------------------------- what does not fit


def test_everything_that_does_not_fit_is_in_one_error(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": torch.ones(3, 2), "b": torch.ones(3), "c": torch.ones(2), "d": torch.ones(2).double()})
    net = nn.ParameterDict({name: torch.zeros(2) for name in ("b", "c", "d")} | {"a": torch.zeros(3, 2)})
    rules = RuleSet("mine", (Rule("a", "a", TRANSPOSED), Rule("(b|c|d)", "{1}")))
    with pytest.raises(MismatchError) as caught:
        load_name_based(net, path, rules)
    text = str(caught.value)
    assert f"{path!r} cannot be loaded by the rules 'mine' for 3 reasons; nothing has been assigned:" in text
    assert (
        "a: a has shape [3, 2] (transposed: [2, 3]), but the shape here is [3, 2]; make the module with the sizes of "
        "the file, or correct the rule 'a'"
    ) in text
    assert "b: b has shape [3], but the shape here is [2]" in text
    assert "d: d is float64, but the tensor here is float32; convert the module before" in text
    assert not any(tensor.any() for tensor in net.values())


def test_two_values_for_one_tensor_are_an_error_with_both_names(tmp_path: Path) -> None:
    path = write(tmp_path, VALUES | {"other/bias": torch.ones(2)})
    layer = nn.Linear(3, 2)
    rules = RuleSet("mine", (*DENSE.rules, Rule("other/bias", "bias")))
    with pytest.raises(MismatchError, match="bias: the rules map both 'dense/bias' and 'other/bias' to it"):
        load_name_based(layer, path, rules)
    load_name_based(layer, path, RuleSet("mine", rules.rules).ignoring("other/.*")).assert_consumed()


def test_two_values_for_a_tied_tensor_are_an_error_with_both_of_its_names(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": torch.ones(2, 2), "b": torch.ones(2, 2)})
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    rules = RuleSet("mine", (Rule("a", "0.weight"), Rule("b", "1.weight")))
    with pytest.raises(MismatchError, match=r"1\.weight, which is 0\.weight as well: the rules map both 'a' and 'b'"):
        load_name_based(net, path, rules)


def test_one_value_is_enough_for_a_tied_tensor(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    path = write(tmp_path, {"b": torch.ones(2, 2)})
    assert load_name_based(net, path, RuleSet("mine", (Rule("b", "1.weight"),))).assert_consumed().bound == {
        "1.weight": "b"
    }


def test_what_is_left_over_is_named_with_the_reason(tmp_path: Path) -> None:
    path = write(tmp_path, VALUES | {"x": torch.ones(1), "y": torch.ones(1)})
    layer = nn.Linear(3, 2)
    status = load_name_based(layer, path, RuleSet("mine", (*DENSE.rules, Rule("y", "scale"))))
    assert status.unused_keys == {"x": "no rule matches it", "y": "the module has no 'scale'"}
    status.assert_existing_objects_matched()
    with pytest.raises(AssertionError, match=r"x \(no rule matches it\), y \(the module has no 'scale'\)"):
        status.assert_consumed()
    assert "only in checkpoint  y" in str(status)


def test_a_file_that_no_rule_is_for_changes_nothing_and_is_told(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    status = load_name_based(layer, write(tmp_path, VALUES), BERT_MODEL)
    with pytest.raises(AssertionError, match=r"Nothing of .* goes to a tensor by the rules 'BertModel'"):
        status.assert_nontrivial_match()
    assert status.inexact == ()


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.LazyLinear(2), "weight .*not initialised yet; run one forward pass first"),
        (nn.Linear(3, 2, device="meta"), r"weight \(from dense/kernel\): .*on the meta device; give it memory first"),
        (nn.Linear(3, 2, dtype=torch.bfloat16), "dense/kernel is float32, but the tensor here is bfloat16"),
        (two_tensors(), "a TwoTensor cannot take values here; load before the module is sharded or quantised"),
    ],
    ids=["lazy", "meta", "dtype", "subclass"],
)
def test_a_tensor_that_cannot_take_values_is_refused(module: nn.Module, text: str, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=text):
        load_name_based(module, write(tmp_path, VALUES), DENSE)


def test_a_checkpoint_with_an_object_graph_is_refused(tmp_path: Path) -> None:
    path = Checkpoint(net=nn.Linear(3, 2)).write(tmp_path / "ckpt")
    with pytest.raises(UnsupportedFormatError, match="has an object graph"):
        load_name_based(nn.Linear(3, 2), path, DENSE)


def test_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        load_name_based(nn.Linear(3, 2), tmp_path / "none", DENSE)


def test_damage_leaves_the_module_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, VALUES)
    data = Path(path + ".data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    layer = nn.Linear(3, 2)
    before = [tensor.clone() for tensor in layer.parameters()]
    with pytest.raises(DataLossError, match="dense/kernel"):
        load_name_based(layer, path, DENSE)
    assert all(map(torch.equal, before, layer.parameters()))


# ------------------------------------------------------------------------------------------------------- what stays


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_tensors_are_filled_in_place_whatever_their_layout(memory_format: torch.memory_format, tmp_path: Path) -> None:
    kernel = torch.randn(3, 3, 4, 8)
    path = write(tmp_path, {"w": kernel})
    conv = nn.Conv2d(4, 8, 3, bias=False).to(memory_format=memory_format)  # type: ignore[call-overload]
    weight, address, version = conv.weight, conv.weight.data_ptr(), conv.weight._version
    load_name_based(conv, path, RuleSet("mine", (Rule("w", "weight", CONV_2D),))).assert_consumed()
    assert conv.weight is weight
    assert conv.weight.data_ptr() == address
    assert conv.weight.is_contiguous(memory_format=memory_format)
    assert conv.weight._version > version
    assert torch.equal(conv.weight, kernel.permute(3, 2, 0, 1))


def test_options_are_those_of_a_restore(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    options = CheckpointOptions(verify="before", progress=lambda done, total: told.append((done, total)))
    load_name_based(nn.Linear(3, 2), write(tmp_path, VALUES), DENSE, options=options)
    assert told[-1] == (32, 32)


# ----------------------------------------------------------------------------------------------------- moving averages

AVERAGED = VALUES | {"dense/kernel/ExponentialMovingAverage": torch.full((3, 2), 9.0)}


def test_moving_averages_are_left_out(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    status = load_name_based(layer, write(tmp_path, AVERAGED), DENSE).assert_consumed()
    assert torch.equal(layer.weight, VALUES["dense/kernel"].t())
    assert status.ignored == ("dense/kernel/ExponentialMovingAverage",)


def test_moving_averages_are_loaded_where_they_are_asked_for(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    status = load_name_based(layer, write(tmp_path, AVERAGED), DENSE, use_ema=True).assert_consumed()
    assert layer.weight.eq(9).all()
    assert status.bound["weight"] == "dense/kernel/ExponentialMovingAverage"
    assert torch.equal(layer.bias, VALUES["dense/bias"])
    assert status.inexact == (("dense/bias", "there is no moving average of it; the value itself was loaded"),)


def test_no_moving_average_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="use_ema=True asks for moving averages, but no name in the file ends in"):
        load_name_based(nn.Linear(3, 2), write(tmp_path, VALUES), DENSE, use_ema=True)


def test_an_average_without_its_value_is_told(tmp_path: Path) -> None:
    values = {"dense/kernel/ExponentialMovingAverage": torch.ones(3, 2), "dense/bias": torch.ones(2)}
    status = load_name_based(nn.Linear(3, 2), write(tmp_path, values), DENSE)
    assert "use_ema=True loads it" in status.unused_keys["dense/kernel/ExponentialMovingAverage"]
    assert status.unmatched_torch == ("weight",)
