"""What a caller can choose, and when a wrong choice is refused."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from torch_trackckpt import Checkpoint, CheckpointOptions


def test_by_default_saves_are_durable_and_restores_check_on_the_way_with_slots() -> None:
    """C301"""
    options = CheckpointOptions()
    assert options.durable is True
    assert options.verify == "during"
    assert options.experimental_skip_slot_variables is False
    assert list(options.experimental_write_callbacks) == []
    assert options.experimental_io_device is None
    assert options.experimental_sharding_callback is None
    assert options.is_async is options.enable_async is options.experimental_enable_async_checkpoint is False
    assert options.progress is None


@pytest.mark.parametrize("name", ["enable_async", "experimental_enable_async_checkpoint"])
def test_saves_are_asynchronous_by_either_name_and_each_name_stays_as_it_was_given(name: str) -> None:
    """C302"""
    options = CheckpointOptions(**{name: True})
    assert options.is_async
    assert options.enable_async is (name == "enable_async")
    assert options.experimental_enable_async_checkpoint is not options.enable_async


def test_a_progress_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(ValueError, match="progress must be a function of two numbers of bytes, not 'bar'"):
        CheckpointOptions(progress="bar")


def test_a_device_for_input_and_output_is_accepted_and_changes_nothing(tmp_path: Path) -> None:
    """C311"""
    for name, device in (("with", "/job:localhost"), ("without", None)):
        x = torch.arange(3)
        options = CheckpointOptions(experimental_io_device=device)
        path = Checkpoint(x=x).save(tmp_path / name / "ckpt", options)
        x.zero_()
        Checkpoint(x=x).restore(path, options).assert_existing_objects_matched()
        assert x.tolist() == [0, 1, 2]
    for file in (tmp_path / "with").iterdir():
        assert file.read_bytes() == (tmp_path / "without" / file.name).read_bytes()


def test_an_unknown_option_is_refused() -> None:
    """C303"""
    with pytest.raises(TypeError, match="experimental_colour"):
        CheckpointOptions(experimental_colour="red")


def test_an_unknown_attribute_is_refused() -> None:
    """C303"""
    with pytest.raises(AttributeError, match="experimental_colour"):
        CheckpointOptions().experimental_colour  # noqa: B018


def test_options_cannot_be_changed() -> None:
    """C304"""
    with pytest.raises(dataclasses.FrozenInstanceError):
        CheckpointOptions().durable = False


def test_options_are_given_by_name_only() -> None:
    with pytest.raises(TypeError):
        CheckpointOptions(False)


def test_an_unknown_way_to_verify_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"verify must be 'during' or 'before', not 'never'"):
        CheckpointOptions(verify="never")


def test_a_callback_takes_nothing_or_the_path() -> None:
    """C305, C306"""
    calls: list[object] = []

    class Recorder:
        def record(self, path: str) -> None:
            calls.append(path)

    options = CheckpointOptions(
        experimental_write_callbacks=[lambda: calls.append("none"), calls.append, Recorder().record]
    )
    options.run_write_callbacks("ckpt-1")
    assert calls == ["none", "ckpt-1", "ckpt-1"]


def test_a_callback_with_a_second_parameter_is_refused_even_if_it_has_a_default() -> None:
    """C305"""
    with pytest.raises(ValueError, match=r"takes no argument or the path alone, but .* are \(path, mode"):
        CheckpointOptions(experimental_write_callbacks=[lambda path, mode="fast": None])


def test_a_copy_has_the_same_callbacks_and_other_values_where_asked() -> None:
    """C310"""

    def callback() -> None: ...

    options = CheckpointOptions(experimental_write_callbacks=[callback])
    other = dataclasses.replace(options, durable=False)
    assert other.experimental_write_callbacks == (callback,)
    assert other.experimental_write_callbacks[0] is callback
    assert other.durable is False
    assert copy.copy(options).experimental_write_callbacks[0] is callback
    more = dataclasses.replace(options, experimental_write_callbacks=[callback, callback])
    assert len(more.experimental_write_callbacks) == 2
    assert options.experimental_write_callbacks == (callback,)


def test_a_list_of_callbacks_that_changes_later_does_not_change_the_options() -> None:
    """C304, C305: what was checked at construction is what is called."""
    callbacks = [lambda: None]
    options = CheckpointOptions(experimental_write_callbacks=callbacks)
    callbacks.append(lambda one, two: None)
    assert len(options.experimental_write_callbacks) == 1


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_a_number_of_threads_below_one_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"num_threads must be None or a number from 1 to 1024, not {number}"):
        CheckpointOptions(num_threads=number)
