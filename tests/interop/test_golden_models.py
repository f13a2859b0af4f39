"""The modules of the golden Keras checkpoints compute and train as Keras's models, once they have their values.

The values are converted by hand here, so that what the package's conversion is tested with is itself right.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interop.by_hand import (
    assert_loaded,
    assert_optimizer_loaded,
    in_torch,
    load_by_hand,
    load_optimizer_by_hand,
    step_by_hand,
)
from interop.golden_models import CASES, GOLDEN, GoldenCase

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_trained_case = pytest.mark.parametrize("case", [c for c in CASES if c.is_trained], ids=lambda case: case.name)


def difference_after_a_step(case: GoldenCase, *, exact_rmsprop: bool = True) -> float:
    """The largest difference of a weight or statistic from what Keras has after one more step."""
    net = case.net()
    optimizer = case.optimizer(net)
    load_by_hand(net, case)
    load_optimizer_by_hand(optimizer, net, case)
    step_by_hand(net, optimizer, case, exact_rmsprop=exact_rmsprop)
    found = net.state_dict()
    return max(float(np.abs(found[name].numpy() - array).max()) for name, array in in_torch(case, case.after()).items())


def test_every_golden_folder_has_a_module() -> None:
    # `tf1_bert_names` is a checkpoint without objects.
    folders = {path.parent.name for path in GOLDEN.glob("*/manifest.json")} - {"tf1_bert_names"}
    assert {case.name for case in CASES} == folders


@every_case
def test_outputs_are_those_of_keras(case: GoldenCase) -> None:
    torch.manual_seed(0)
    net = case.net()
    before = case.run(net)
    load_by_hand(net, case)
    for found, untrained, expected in zip(case.run(net), before, case.outputs(), strict=True):
        assert float((found - expected).abs().max()) <= case.outputs_within
        assert float((untrained - expected).abs().max()) > 100 * case.outputs_within


@every_trained_case
def test_one_more_step_leads_where_keras_goes(case: GoldenCase) -> None:
    assert case.step_within is not None
    assert difference_after_a_step(case) <= case.step_within


@every_trained_case
def test_a_step_from_another_state_leads_elsewhere(case: GoldenCase) -> None:
    assert case.step_within is not None
    net = case.net()
    load_by_hand(net, case)
    optimizer = case.optimizer(net)
    inputs, labels = case.next_batch()
    case.loss(net(*inputs), labels).backward()
    optimizer.step()
    found = net.state_dict()
    after = in_torch(case, case.after())
    assert max(float(np.abs(found[name].numpy() - array).max()) for name, array in after.items()) > 1e-3


def test_only_rmsprop_of_torch_takes_another_step() -> None:
    (case,) = [case for case in CASES if not case.is_step_exact]
    assert difference_after_a_step(case, exact_rmsprop=False) > 1e-2


@every_trained_case
def test_one_wrong_element_is_noticed(case: GoldenCase) -> None:
    net = case.net()
    optimizer = case.optimizer(net)
    load_by_hand(net, case)
    load_optimizer_by_hand(optimizer, net, case)
    assert_loaded(net, case)
    assert_optimizer_loaded(optimizer, case)
    parameter = next(parameter for parameter in net.parameters() if parameter.requires_grad)
    with torch.no_grad():
        parameter.view(-1)[-1] += 1e-6
    optimizer.state[parameter][next(iter(optimizer.state[parameter]))].view(-1)[-1] += 1e-6
    with pytest.raises(AssertionError):
        assert_loaded(net, case)
    with pytest.raises(AssertionError):
        assert_optimizer_loaded(optimizer, case)
