"""What the benchmarks save has the promised form, and its values can be told from others."""

from __future__ import annotations

import pytest
import torch

from benchmarks.workloads import SMALLEST, differing, digest, make_workload, num_bytes


def test_the_training_has_1168_tensors_of_1_27_gigabytes() -> None:
    small = make_workload("W1", 1e-3, seed=1)

    assert len(small.tensors()) == 1168
    assert num_bytes("W1", 1.0) == pytest.approx(1.27e9, rel=0.01)
    assert small.nbytes() == pytest.approx(num_bytes("W1", 1e-3), rel=0.25)
    assert small.one in small.tensors()


def test_the_dict_of_small_tensors_has_tensors_of_1_to_4_kibibytes() -> None:
    tensors = make_workload("W2", 0.1, seed=1).tensors()

    assert len(tensors) == 2000
    assert min(tensor.nbytes for tensor in tensors.values()) == 1024
    assert max(tensor.nbytes for tensor in tensors.values()) <= 4096


def test_the_dict_of_large_tensors_has_four() -> None:
    tensors = make_workload("W3", 1e-4, seed=1).tensors()

    assert len(tensors) == 4
    assert num_bytes("W3", 1.0) == 4 * 512 * 2**20


@pytest.mark.parametrize("name", sorted(SMALLEST))
def test_values_are_those_of_their_seed_until_a_bit_changes(name: str) -> None:
    workload = make_workload(name, SMALLEST[name], seed=1)
    assert differing(workload.tensors(), 1) == 0
    assert differing(workload.tensors(), 2) > 0
    before = digest(workload.tensors())

    last = list(workload.tensors().values())[-1]
    last.view(-1).view(torch.int32)[-1] ^= 1

    assert differing(workload.tensors(), 1) == 1
    assert digest(workload.tensors())[:-1] == before[:-1]
    assert digest(workload.tensors())[-1] != before[-1]


def test_a_training_takes_its_state_back() -> None:
    workload = make_workload("W1", SMALLEST["W1"], seed=1)
    state = {
        "model": {name: value.clone() for name, value in workload.state()["model"].items()},
        "optimizer": {
            "state": {
                number: {slot: value.clone() for slot, value in slots.items()}
                for number, slots in workload.state()["optimizer"]["state"].items()
            },
            "param_groups": workload.state()["optimizer"]["param_groups"],
        },
    }
    workload.fill(2)

    workload.load_state(state)

    assert differing(workload.tensors(), 1) == 0
