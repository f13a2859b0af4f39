"""What to do about an object that is not trackable stands in the error that refuses it."""

import dataclasses

import pytest
import torch

from torch_trackckpt import Checkpoint


@dataclasses.dataclass
class Progress:
    step: int = 0


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (3, "attribute of a torch_trackckpt.AutoTrackable"),
        (0.5, "attribute of a torch_trackckpt.AutoTrackable"),
        ("text", "attribute of a torch_trackckpt.AutoTrackable"),
        (Progress(), "Let the dataclass Progress derive from torch_trackckpt.AutoTrackable"),
        (torch.utils.data.DataLoader([1]), "wrap it in torch_trackckpt.data.ResumableLoader"),  # type: ignore[arg-type]
        (object(), "or register an adapter"),
        (Progress, "or register an adapter"),
    ],
    ids=["int", "float", "text", "dataclass", "loader", "object", "class"],
)
def test_the_error_says_what_to_do_about_an_object_of_this_kind(value: object, advice: str) -> None:
    """C033, C034"""
    with pytest.raises(ValueError, match=f"value is a {type(value).__name__}, which is not trackable.*{advice}"):
        Checkpoint(value=value)
    with pytest.raises(ValueError, match=f"root is a {type(value).__name__}, which is not trackable.*{advice}"):
        Checkpoint(value)
