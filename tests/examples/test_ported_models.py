"""The models of examples/ported, with values converted by hand, do what TensorFlow does with the same files."""

import pytest
import torch
from ported_by_hand import PORTED, Ported


# Torch says on some machines that it has no fast LSTM with a projection.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")
@pytest.mark.parametrize("ported", PORTED, ids=str)
def test_a_ported_model_predicts_what_the_original_predicts(ported: Ported) -> None:
    example, stored = ported.example(), ported.stored()

    found = example.predict(ported.net(example), stored)

    assert found
    for name, values in found.items():
        expected = torch.from_numpy(stored[name])
        tolerance = ported.tolerance * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(values, expected, rtol=0, atol=tolerance)


def test_the_filters_that_are_constants_in_the_graph_of_basic_pitch_are_computed_alike() -> None:
    (ported,) = (ported for ported in PORTED if ported.name == "basic_pitch")
    stored = ported.stored()

    transform = ported.example().ConstantQTransform()

    for name in ("real", "imaginary"):
        torch.testing.assert_close(
            transform.get_buffer(name)[stored["tones"]], torch.from_numpy(stored[name]), rtol=0, atol=1e-8
        )
    torch.testing.assert_close(transform.low_pass, torch.from_numpy(stored["low_pass"]), rtol=0, atol=1e-7)


def test_guesslang_knows_its_languages_by_the_names_that_the_graph_has() -> None:
    (ported,) = (ported for ported in PORTED if ported.name == "guesslang")

    names = ported.stored()["classes"].astype(str)

    assert tuple(names) == ported.example().LANGUAGES
