"""The directories that TensorFlow exports models to."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_trackckpt import (
    Checkpoint,
    CheckpointReader,
    latest_checkpoint,
    list_variables,
    load_checkpoint,
    load_variable,
)
from torch_trackckpt.errors import CheckpointNotFoundError, MismatchError

GOLDEN = Path(__file__).parent / "golden" / "saved_model" / "export"
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
W = "w/.ATTRIBUTES/VARIABLE_VALUE"


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A copy of TensorFlow's export."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "export"))


def live() -> dict[str, object]:
    return {"w": torch.zeros(1, 2), "layers": [torch.tensor(0, dtype=torch.int32)]}


def assert_restored(checkpoint: Checkpoint) -> None:
    assert torch.equal(checkpoint.w, torch.tensor([[1.0, 2.0]]))
    assert torch.equal(checkpoint.layers[0], torch.tensor(3, dtype=torch.int32))


# ------------------------------------------------------------------------------------------------------ restore


@pytest.mark.parametrize("as_text", [lambda path: path, str, lambda path: f"{path}/"], ids=["path", "text", "slash"])
def test_a_directory_is_restored(export: Path, as_text: object) -> None:
    """C340, C403"""
    checkpoint = Checkpoint(**live())
    status = checkpoint.restore(as_text(export))  # type: ignore[operator]
    assert status.expect_partial() is status
    assert_restored(checkpoint)
    assert checkpoint.save_counter == 0


def test_a_directory_is_restored_by_a_name_relative_to_the_working_directory(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C340"""
    for folder, name in [(export, "."), (export.parent, "export")]:
        monkeypatch.chdir(folder)
        checkpoint = Checkpoint(**live())
        checkpoint.restore(name)
        assert_restored(checkpoint)


def test_only_the_counter_and_functions_are_not_in_a_directory(export: Path) -> None:
    """C340: nodes without values, such as the exported functions, need no live object."""
    status = Checkpoint(**live()).restore(export)
    for check in (status.assert_consumed, status.assert_existing_objects_matched):
        with pytest.raises(AssertionError, match=r"^Found 1 Python objects [^\n]*: \(root\)\.save_counter\.[^\n]*$"):
            check()
    status.assert_nontrivial_match()


def test_a_directory_is_restored_into_a_root(export: Path) -> None:
    """C340"""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, 2))
            self.layers = nn.ParameterList([nn.Parameter(torch.tensor(0, dtype=torch.int32), requires_grad=False)])

    model = Model()
    Checkpoint(model).restore(export)
    assert torch.equal(model.w, torch.tensor([[1.0, 2.0]]))
    assert model.layers[0] == 3


def test_a_directory_of_text_is_recognised(export: Path) -> None:
    """C341"""
    (export / "saved_model.pb").rename(export / "saved_model.pbtxt")
    checkpoint = Checkpoint(**live())
    checkpoint.restore(export)
    assert_restored(checkpoint)


def test_what_does_not_fit_is_named_and_nothing_changes(export: Path) -> None:
    """C065"""
    checkpoint = Checkpoint(w=torch.zeros(2, 1), layers=[torch.tensor(0, dtype=torch.int32)])
    with pytest.raises(MismatchError, match=r"variables/variables' cannot be restored.*\n.*\(root\)\.w: .*\[1, 2\]"):
        checkpoint.restore(export)
    assert checkpoint.layers[0] == 0


def test_the_prefix_inside_of_a_directory_is_a_checkpoint_like_any_other(export: Path) -> None:
    """C340"""
    checkpoint = Checkpoint(**live())
    checkpoint.read(export / "variables" / "variables").assert_consumed()
    assert_restored(checkpoint)


# ------------------------------------------------------------------------------------------------------- errors


def test_reading_takes_no_directory_and_says_what_to_do(export: Path) -> None:
    """C342"""
    for function in (Checkpoint().read, CheckpointReader):
        with pytest.raises(
            CheckpointNotFoundError,
            match=rf"^'{export}' is a SavedModel directory, which Checkpoint\.restore takes; .*'{export}/variables/",
        ):
            function(export)


def test_a_wrong_path_is_not_found_in_terms_of_checkpoints_and_saved_models(tmp_path: Path) -> None:
    """C344"""
    checkpoint = Checkpoint(**live())
    with pytest.raises(
        CheckpointNotFoundError, match=rf"^Error when restoring from checkpoint or SavedModel at {tmp_path}/missing: "
    ) as caught:
        checkpoint.restore(tmp_path / "missing")
    assert isinstance(caught.value, FileNotFoundError)


def test_a_directory_without_a_model_is_not_found(tmp_path: Path) -> None:
    """C064, C344"""
    (tmp_path / "saved_model.pbx").touch()
    with pytest.raises(CheckpointNotFoundError, match=rf"checkpoint or SavedModel at {tmp_path}: .* is a directory"):
        Checkpoint(**live()).restore(tmp_path)


@pytest.mark.parametrize(
    "remove", ["variables", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
def test_a_directory_without_its_variables_is_not_found_by_their_path(export: Path, remove: str) -> None:
    """C344"""
    shutil.rmtree(export / remove) if (export / remove).is_dir() else (export / remove).unlink()
    checkpoint = Checkpoint(**live())
    with pytest.raises(FileNotFoundError, match=rf"{export}/variables/variables"):
        checkpoint.restore(export)
    assert not checkpoint.w.any()


def test_the_file_of_the_model_itself_is_no_checkpoint(export: Path) -> None:
    """C344"""
    with pytest.raises(OSError, match=rf"{export}/saved_model\.pb"):
        Checkpoint(**live()).restore(export / "saved_model.pb")


# -------------------------------------------------------------------------------------------------- inspection


def test_a_directory_can_be_looked_into(export: Path) -> None:
    """C345, C348"""
    assert load_checkpoint(export).file_prefix == f"{export}/variables/variables"
    assert list_variables(export) == [(GRAPH, []), ("layers/0/.ATTRIBUTES/VARIABLE_VALUE", []), (W, [1, 2])]
    assert torch.equal(torch.as_tensor(load_variable(export, W)), torch.tensor([[1.0, 2.0]]))


def test_a_directory_has_no_latest_checkpoint(export: Path) -> None:
    assert latest_checkpoint(export) is None


def test_of_a_directory_that_holds_checkpoints_too_the_model_is_restored_and_the_latest_checkpoint_opened(
    export: Path,
) -> None:
    """C340, C345"""
    path = Checkpoint(w=torch.full((1, 2), 7.0)).save(export / "ckpt")
    checkpoint = Checkpoint(**live())
    checkpoint.restore(export)
    assert_restored(checkpoint)
    assert load_checkpoint(export).file_prefix == latest_checkpoint(export) == path


def test_a_directory_stands_for_what_is_in_it_although_a_checkpoint_has_its_name(export: Path, tmp_path: Path) -> None:
    """C345: as in TensorFlow; the reader itself takes names of checkpoints alone."""
    path = Checkpoint(w=torch.full((1, 2), 7.0)).write(export)
    assert load_checkpoint(export).file_prefix == str(export / "variables" / "variables")
    assert CheckpointReader(export).file_prefix == path == str(export)
    (tmp_path / "empty").mkdir()
    assert load_checkpoint(Checkpoint().write(tmp_path / "empty")).file_prefix == str(tmp_path / "empty")


def test_saving_into_a_directory_of_a_model_leaves_the_model(export: Path) -> None:
    before = {path: path.read_bytes() for path in export.rglob("*") if path.is_file()}
    checkpoint = Checkpoint(**live())
    checkpoint.restore(export)
    checkpoint.save(export / "ckpt")
    assert {path: path.read_bytes() for path in before} == before
