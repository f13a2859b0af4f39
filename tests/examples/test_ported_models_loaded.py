"""The models of examples/ported, loaded by the one line that is in each, have the values of a conversion by hand."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ported_by_hand import EXAMPLES, PORTED, Ported


@pytest.mark.parametrize("ported", PORTED, ids=str)
def test_a_ported_model_is_loaded_bit_for_bit_as_it_is_converted_by_hand(ported: Ported) -> None:
    example = ported.example()
    expected = ported.net(example).state_dict()

    found = example.load(ported.path).state_dict()

    assert list(found) == list(expected)
    for name, value in found.items():
        assert value.dtype == expected[name].dtype
        assert value.shape == expected[name].shape
        assert value.contiguous().numpy().tobytes() == expected[name].contiguous().numpy().tobytes(), name


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")
@pytest.mark.parametrize("ported", PORTED, ids=str)
def test_a_loaded_model_predicts_what_the_original_predicts(ported: Ported) -> None:
    example, stored = ported.example(), ported.stored()

    found = example.predict(example.load(ported.path), stored)

    for name, values in found.items():
        expected = torch.from_numpy(stored[name])
        tolerance = ported.tolerance * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(values, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("ported", PORTED, ids=str)
def test_an_example_takes_the_file_from_the_command_line_and_prints_what_it_predicts(
    ported: Ported, tmp_path: Path
) -> None:
    command = [sys.executable, str(EXAMPLES / f"{ported.name}.py"), str(ported.path)]

    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300)

    assert result.returncode == 0, result.stderr
    assert result.stdout
