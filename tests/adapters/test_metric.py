"""Metrics of torchmetrics are saved with their persistent states, and go on where they were."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from torch_trackckpt import Checkpoint, CheckpointOptions, frozen_saver, list_variables
from torch_trackckpt.errors import MismatchError, UnsupportedValueError

torchmetrics = pytest.importorskip("torchmetrics")
wrappers = torchmetrics.wrappers
classification = torchmetrics.classification

CLASSES = 3


def persistent(metric: nn.Module) -> Any:
    """Has every metric in it keep its states, which most wrappers leave to the metrics inside."""
    for part in metric.modules():
        if isinstance(part, torchmetrics.Metric):
            part.persistent(True)
    return metric


def scores(seed: int, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(CLASSES, (count,), generator=generator)
    return torch.rand(count, CLASSES, generator=generator).softmax(1), target


def values(seed: int, count: int = 8) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, generator=generator),)


def pairs(seed: int, count: int = 8) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, generator=generator), torch.randn(count, 2, generator=generator)


def accuracy(**options: Any) -> Any:
    return classification.MulticlassAccuracy(CLASSES, **options)


METRICS: list[tuple[Callable[[], Any], Callable[[int], tuple[torch.Tensor, ...]]]] = [
    (lambda: torchmetrics.CatMetric(), values),
    (lambda: torchmetrics.MeanMetric(), values),
    (lambda: torchmetrics.SumMetric(), values),
    (lambda: torchmetrics.MaxMetric(), values),
    (lambda: accuracy(), scores),
    (lambda: classification.MulticlassConfusionMatrix(CLASSES), scores),
    (lambda: classification.MulticlassAUROC(CLASSES), scores),
    (lambda: classification.MulticlassAUROC(CLASSES, thresholds=5), scores),
    (lambda: torchmetrics.MeanSquaredError(num_outputs=2), pairs),
    (lambda: torchmetrics.ExplainedVariance(), pairs),
    (lambda: torchmetrics.R2Score(multioutput="raw_values"), pairs),
    (lambda: torchmetrics.PearsonCorrCoef(num_outputs=2), pairs),
    (lambda: torchmetrics.SpearmanCorrCoef(num_outputs=2), pairs),
    (lambda: accuracy() + classification.MulticlassF1Score(CLASSES), scores),
    (lambda: torchmetrics.MetricCollection([accuracy(), classification.MulticlassPrecision(CLASSES)]), scores),
    (
        lambda: torchmetrics.MetricCollection(
            {"a": accuracy(), "b": classification.MulticlassAUROC(CLASSES)}, prefix="val_", compute_groups=False
        ),
        scores,
    ),
    (lambda: wrappers.MinMaxMetric(accuracy()), scores),
    (lambda: wrappers.ClasswiseWrapper(accuracy(average=None)), scores),
    (lambda: wrappers.BootStrapper(accuracy(), num_bootstraps=3), scores),
    (lambda: wrappers.MultioutputWrapper(torchmetrics.MeanSquaredError(), 2), pairs),
    (lambda: wrappers.Running(torchmetrics.SumMetric(), window=3), values),
]


@pytest.fixture(autouse=True)
def no_warning_of_updates() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Metric `SpearmanCorrcoef`|.*will save all|No (positive|negative) samples")
        yield


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    return first.dtype == second.dtype and torch.equal(first, second)


def updated(metric: Any, batches: Callable[[int], tuple[torch.Tensor, ...]], seeds: range) -> None:
    for seed in seeds:
        torch.manual_seed(seed)
        if seed % 2:
            metric.update(*batches(seed))
        else:
            metric(*batches(seed))


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("num_updates", [0, 1, 4])
@pytest.mark.parametrize(("made", "batches"), METRICS)
def test_a_metric_goes_on_bit_for_bit(
    made: Callable[[], Any], batches: Any, num_updates: int, computed: bool, prefix: str
) -> None:
    metric, live = persistent(made()), persistent(made())
    updated(metric, batches, range(5))
    if computed:
        metric.compute()
    path = Checkpoint(metric=metric).write(prefix)
    updated(live, batches, range(20, 20 + num_updates))
    Checkpoint(metric=live).read(path).assert_consumed()
    assert equal(live.compute(), metric.compute())
    updated(metric, batches, range(5, 8))
    updated(live, batches, range(5, 8))
    assert equal(live.compute(), metric.compute())
    metric.reset()
    live.reset()
    updated(metric, batches, range(8, 10))
    updated(live, batches, range(8, 10))
    assert equal(live.compute(), metric.compute())


def test_what_is_saved_are_states_and_counters(prefix: str) -> None:
    metric = persistent(
        torchmetrics.MetricCollection({"mean": torchmetrics.MeanMetric(), "cat": torchmetrics.CatMetric()})
    )
    updated(metric, values, range(2))
    Checkpoint(metric=metric).write(prefix)
    assert [name for name, _ in list_variables(prefix)] == [
        "_CHECKPOINTABLE_OBJECT_GRAPH",
        "metric/cat/.ATTRIBUTES/py_state",
        "metric/cat/value/.ATTRIBUTES/py_state",
        "metric/cat/value/0/.ATTRIBUTES/VARIABLE_VALUE",
        "metric/cat/value/1/.ATTRIBUTES/VARIABLE_VALUE",
        "metric/mean/.ATTRIBUTES/py_state",
        "metric/mean/mean_value/.ATTRIBUTES/VARIABLE_VALUE",
        "metric/mean/weight/.ATTRIBUTES/VARIABLE_VALUE",
    ]


def test_restored_states_are_nobody_elses_tensors(prefix: str) -> None:
    metric = persistent(accuracy())
    path = Checkpoint(metric=metric).write(prefix)
    Checkpoint(metric=metric).read(path).assert_consumed()
    before = metric._defaults["tp"].clone()
    metric.update(*scores(0))
    assert torch.equal(metric._defaults["tp"], before)
    assert metric.tp is not metric._defaults["tp"]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, CLASSES)
        self.accuracy = persistent(accuracy())


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, CLASSES)
        self.metrics = persistent(torchmetrics.MetricCollection([accuracy()]))


class Peculiar(Model):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return super().state_dict(*args, **kwargs)


@pytest.mark.parametrize("made", [Model, Module, Peculiar])
def test_metrics_of_a_model_are_saved_with_it(made: type[nn.Module], prefix: str) -> None:
    model, live = made(), made()
    name = "metrics" if made is Module else "accuracy"
    getattr(model, name).update(*scores(0))
    path = Checkpoint(model=model).write(prefix)
    Checkpoint(model=live).read(path).assert_consumed()
    assert equal(getattr(live, name).compute(), getattr(model, name).compute())


def test_a_tracker_gets_the_values_of_each_increment_when_that_is_made(prefix: str) -> None:
    tracker, live = (wrappers.MetricTracker(persistent(accuracy())) for _ in range(2))
    for seed in range(3):
        tracker.increment()
        tracker.update(*scores(seed))
    path = Checkpoint(tracker=tracker).write(prefix)
    live.increment()
    status = Checkpoint(tracker=live).read(path)
    live.increment()
    live.increment()
    assert torch.equal(live.compute_all(), tracker.compute_all())
    status.assert_consumed()


def test_a_metric_of_other_classes_is_a_mismatch_and_nothing_changes(prefix: str) -> None:
    metric = persistent(classification.MulticlassConfusionMatrix(CLASSES))
    metric.update(*scores(0))
    path = Checkpoint(metric=metric, x=torch.ones(1)).write(prefix)
    live, x = persistent(classification.MulticlassConfusionMatrix(4)), torch.zeros(1)
    with pytest.raises(MismatchError, match=r"\(root\)\.metric\.confmat .*shape \[3, 3\] .*shape \[4, 4\]"):
        Checkpoint(metric=live, x=x).read(path)
    assert live.update_count == 0
    assert x.item() == 0


def test_a_metric_that_is_not_persistent_takes_what_is_stored(prefix: str) -> None:
    """As ``load_state_dict`` does."""
    metric, live = persistent(accuracy()), accuracy()
    metric.update(*scores(0))
    path = Checkpoint(metric=metric).write(prefix)
    Checkpoint(metric=live).read(path).assert_consumed()
    assert torch.equal(live.compute(), metric.compute())


def test_a_state_that_was_not_saved_is_named(prefix: str) -> None:
    path = Checkpoint(metric=torchmetrics.MeanMetric()).write(prefix, CheckpointOptions(warn_of_lost_values=False))
    status = Checkpoint(metric=persistent(torchmetrics.MeanMetric())).read(path)
    with pytest.raises(AssertionError, match=r"\(root\)\.metric\.mean_value, \(root\)\.metric\.weight"):
        status.assert_existing_objects_matched()


def test_metrics_that_are_not_persistent_are_named_once(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict({"a": accuracy(), "b": persistent(accuracy()), "c": wrappers.ClasswiseWrapper(accuracy())})
    checkpoint = Checkpoint(model=model)
    checkpoint.save(prefix)
    checkpoint.save(prefix)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    message = record.getMessage()
    assert message.startswith("The states of 2 metrics are not saved, because none of them is persistent: call ")
    assert "metric.persistent(True) on (root).model.a, (root).model.c.metric." in message


def test_every_save_of_a_frozen_saver_has_the_states_of_its_time(prefix: str) -> None:
    metric, live = persistent(accuracy()), persistent(accuracy())
    saver = frozen_saver(Checkpoint(metric=metric))
    for seed in range(3):
        metric.update(*scores(seed))
        path = saver.save(prefix)
        Checkpoint(metric=live).read(path).assert_consumed()
        assert torch.equal(live.compute(), metric.compute())


def test_a_users_metric_with_a_state_dict_of_its_own_is_refused_for_what_has_no_node(prefix: str) -> None:
    class Extra(torchmetrics.MeanMetric):  # type: ignore[misc, name-defined]
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return {**super().state_dict(*args, **kwargs), "extra": torch.ones(1)}

    with pytest.raises(UnsupportedValueError, match=r"\(root\)\.metric cannot be saved: .*: extra\."):
        Checkpoint(metric=persistent(Extra())).write(prefix)
