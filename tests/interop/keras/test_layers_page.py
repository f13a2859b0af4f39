"""The table of layers in the documentation."""

from __future__ import annotations

from pathlib import Path

import torch

from torch_trackckpt.interop.keras.registry import _rule
from torch_trackckpt.interop.keras.table import _EXAMPLES, layers_page, mapping_rows

PAGE = Path(__file__).parents[3] / "docs" / "from-keras-layers.md"


def test_the_page_is_what_the_rules_say() -> None:
    assert PAGE.read_text() == layers_page(), "make layers-page"


def test_every_rule_of_torch_has_an_example() -> None:
    with torch.device("meta"):
        modules = [example.make() for example in _EXAMPLES]

    of_torch = [kind for kind in _rule.registry if kind.__module__.startswith("torch.nn.modules.")]

    without = [
        kind
        for kind in of_torch
        if kind not in (torch.nn.Module, torch.nn.EmbeddingBag)
        and not any(isinstance(module, kind) for module in modules)
    ]
    assert without == []


def test_a_row_says_which_tensors_a_variable_is_made_of() -> None:
    rows = {(row.torch, row.variable): row for row in mapping_rows()}

    assert rows["LSTM", "cell/bias"].tensors == "bias_ih_l0 + bias_hh_l0"
    assert rows["MultiheadAttention", "key_dense/kernel"].tensors == "in_proj_weight[8:16]"
    assert rows["BatchNorm1d, 2d, 3d, SyncBatchNorm", "gamma"].absent == "1"


def test_making_the_page_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()

    layers_page()

    assert torch.equal(torch.get_rng_state(), before)
