"""Parameters of code that knows nothing of checkpoints become children of a template."""

import contextlib
import copy
import functools
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from torch_trackckpt import AutoTrackable, Checkpoint, CheckpointOptions, capture_dependencies, list_variables
from torch_trackckpt.errors import MismatchError

FAST = CheckpointOptions(durable=False)


@pytest.fixture(autouse=True)
def _torch_is_left_as_it_was() -> Iterator[None]:
    def hooks() -> list[dict[int, object]]:
        return [
            dict(torch_module._global_parameter_registration_hooks),
            dict(torch_module._global_buffer_registration_hooks),
            dict(torch_module._global_module_registration_hooks),
        ]

    before = hooks()
    yield
    assert hooks() == before


def names(template: AutoTrackable) -> list[str]:
    return list(template._trackable_children())


def perceptron() -> nn.Sequential:
    """Code that knows nothing of checkpoints."""
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1, bias=False))


class GRUStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.cells = nn.ModuleList([nn.GRUCell(1, 1, bias=False)])
        self.register_buffer("offset", torch.zeros(1))
        self.register_buffer("cache", torch.zeros(1), persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("none", None)


# ------------------------------------------------------------------------------------------------------------ names


def test_layers_are_named_by_class_and_numbered_in_order() -> None:
    template = AutoTrackable()
    with capture_dependencies(template):
        first, batch_norm, second = nn.Linear(2, 1), nn.BatchNorm1d(2), nn.Linear(1, 1, bias=False)
    assert names(template) == [
        "linear/weight",
        "linear/bias",
        *(f"batch_norm1d/{name}" for name in batch_norm.state_dict()),
        "linear_1/weight",
    ]
    assert template._lookup_dependency("linear/bias") is first.bias
    assert template._lookup_dependency("batch_norm1d/running_var") is batch_norm.running_var
    assert template._lookup_dependency("linear_1/weight") is second.weight


def test_only_the_outermost_module_is_a_scope_and_the_others_are_parts_of_the_way() -> None:
    template = AutoTrackable()
    with capture_dependencies(template):
        perceptron()
        perceptron()
    expected = [name.replace(".", "/") for name in perceptron().state_dict()]
    assert names(template) == [*(f"sequential/{n}" for n in expected), *(f"sequential_1/{n}" for n in expected)]


def test_a_module_counts_as_made_once_although_its_parts_were_made_before_it() -> None:
    template = AutoTrackable()
    with capture_dependencies(template):
        part = nn.Linear(1, 1, bias=False)
        nn.Linear(1, 1, bias=False)
        nn.Sequential(part)
    assert names(template) == ["linear/weight", "sequential/0/weight"]


def test_parameters_and_persistent_buffers_are_captured() -> None:
    template = AutoTrackable()
    with capture_dependencies(template):
        module = GRUStack()
    assert names(template) == [
        "gru_stack/scale",
        "gru_stack/offset",
        "gru_stack/cells/0/weight_ih",
        "gru_stack/cells/0/weight_hh",
    ]
    assert template._lookup_dependency("gru_stack/offset") is module.offset


@pytest.mark.parametrize(
    ("name", "scope"),
    [("Linear", "linear"), ("BatchNorm2d", "batch_norm2d"), ("GRUCell", "gru_cell"), ("LSTM", "lstm"), ("A1B", "a1_b")],
)
def test_a_scope_is_a_class_in_snake_case(name: str, scope: str) -> None:
    template = AutoTrackable()
    kind = type(name, (nn.Module,), {})
    with capture_dependencies(template):
        kind().register_parameter("w", nn.Parameter(torch.ones(1)))
    assert names(template) == [f"{scope}/w"]


def test_modules_without_parameters_have_no_number() -> None:
    template = AutoTrackable()
    with capture_dependencies(template):
        nn.Sequential(nn.ReLU())
        nn.Sequential(nn.Linear(1, 1, bias=False))
    assert names(template) == ["sequential/0/weight"]


def test_names_lose_the_scope_that_is_given() -> None:
    template = AutoTrackable()
    with capture_dependencies(template, scope="sequential"):
        nn.Sequential(nn.Linear(1, 1, bias=False))
        nn.Sequential(nn.Linear(1, 1, bias=False))
        nn.Linear(1, 1, bias=False)
    assert names(template) == ["0/weight", "sequential_1/0/weight", "linear/weight"]


def test_numbers_go_on_in_the_next_block() -> None:
    template = AutoTrackable()
    template.linear = nn.Linear(1, 1)
    for _ in range(2):
        with capture_dependencies(template):
            nn.Linear(1, 1, bias=False)
    assert names(template) == ["linear", "linear/weight", "linear_1/weight"]


def test_a_name_that_another_child_has_is_an_error() -> None:
    template = AutoTrackable()
    template._track_trackable(torch.ones(1), "weight")
    with pytest.raises(ValueError, match="already has a child called 'weight'"):  # noqa: SIM117
        with capture_dependencies(template, scope="linear"):
            nn.Linear(1, 1)


# -------------------------------------------------------------------------------------------------- what is captured


def test_copies_are_captured_with_what_is_put_around_them() -> None:
    template = AutoTrackable()
    with capture_dependencies(template):
        layer = nn.Linear(1, 1, bias=False)
        copies = nn.ModuleList(copy.deepcopy(layer) for _ in range(2))
    assert names(template) == ["linear/weight", "module_list/0/weight", "module_list/1/weight"]
    assert template._lookup_dependency("module_list/1/weight") is copies[1].weight


def test_of_a_module_that_was_there_before_only_what_is_new_is_captured() -> None:
    template, module = AutoTrackable(), nn.Sequential(nn.Linear(1, 1))
    with capture_dependencies(template):
        module.register_buffer("extra", torch.ones(1))
        module[0].scale = nn.Parameter(torch.ones(1))
        module.append(nn.Linear(1, 1, bias=False))
    assert names(template) == ["sequential/extra", "sequential/0/scale", "sequential/1/weight"]


def test_what_is_registered_outside_is_not_captured() -> None:
    template = AutoTrackable()
    before = nn.Linear(1, 1)
    with capture_dependencies(template):
        nn.Linear(1, 1, bias=False)
    before.extra = nn.Parameter(torch.ones(1))
    nn.Linear(1, 1)
    assert names(template) == ["linear/weight"]


def test_what_was_replaced_or_removed_in_the_block_is_not_captured() -> None:
    template = AutoTrackable()
    with capture_dependencies(template):
        layer = nn.Linear(1, 1)
        layer.weight = nn.Parameter(torch.ones(1, 1))
        del layer.bias
    assert names(template) == ["linear/weight"]
    assert template._lookup_dependency("linear/weight") is layer.weight


def test_what_the_template_leads_to_is_not_captured_twice() -> None:
    template = AutoTrackable()
    template.layers = nn.ModuleList()
    with capture_dependencies(template):
        template.model = perceptron()
        template.parts = [nn.Linear(1, 1)]
        template.layers.append(nn.Linear(1, 1))
        nn.Linear(1, 1, bias=False)
    assert names(template) == ["layers", "model", "parts", "linear/weight"]


def test_a_module_around_one_of_the_template_is_captured_without_it() -> None:
    template = AutoTrackable()
    template.layer = nn.Linear(1, 1)
    with capture_dependencies(template):
        nn.Sequential(template.layer, nn.Linear(1, 1, bias=False))
    assert names(template) == ["layer", "sequential/1/weight"]


def test_a_parameter_that_two_modules_share_has_both_names() -> None:
    template = AutoTrackable()
    with capture_dependencies(template):
        first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        second.weight = first.weight
    assert names(template) == ["linear/weight", "linear_1/weight"]
    assert template._lookup_dependency("linear_1/weight") is first.weight


def test_a_wrapper_leaves_no_trace_in_the_names() -> None:
    template = AutoTrackable()
    with capture_dependencies(template):
        nn.Sequential(nn.DataParallel(nn.Linear(1, 1, bias=False)))
    assert names(template) == ["sequential/0/weight"]


# -------------------------------------------------------------------------------------------------- ends of a block


@pytest.mark.parametrize("template", [None, nn.Linear(1, 1), {}, object()])
def test_a_template_that_cannot_get_children_is_refused(template: object) -> None:
    kind = type(template).__name__
    with pytest.raises(ValueError, match=f"the template is a {kind}; only an AutoTrackable"):  # noqa: SIM117
        with capture_dependencies(template):  # type: ignore[arg-type]
            raise AssertionError("the block was entered")


def test_an_exception_passes_and_nothing_is_captured() -> None:
    template = AutoTrackable()
    with pytest.raises(KeyError, match="mine"), capture_dependencies(template):  # noqa: PT012
        nn.Linear(1, 1)
        raise KeyError("mine")
    assert names(template) == []
    with capture_dependencies(template):
        nn.Linear(1, 1, bias=False)
    assert names(template) == ["linear/weight"]


def test_an_exception_in_an_inner_block_leaves_the_outer_one_open() -> None:
    outer = AutoTrackable()
    with capture_dependencies(outer):
        with pytest.raises(KeyError), capture_dependencies(AutoTrackable()):  # noqa: PT012
            nn.Linear(1, 1)
            raise KeyError("mine")
        nn.Conv1d(1, 1, 1, bias=False)
    assert names(outer) == ["conv1d/weight"]


# ---------------------------------------------------------------------------------------------------- nested blocks


class Block(AutoTrackable):
    pass


def test_the_innermost_block_captures_and_its_template_belongs_to_the_outer_one() -> None:
    outer, inner = AutoTrackable(), Block()
    with capture_dependencies(outer):
        nn.Linear(1, 1, bias=False)
        with capture_dependencies(inner):
            part = nn.Linear(1, 1, bias=False)
        nn.Sequential(part, nn.Linear(1, 1, bias=False))
    assert names(inner) == ["linear/weight"]
    assert names(outer) == ["block", "linear/weight", "sequential/1/weight"]
    assert outer._lookup_dependency("block") is inner


def test_an_inner_template_that_is_there_already_or_captures_nothing_is_not_added() -> None:
    outer, empty = AutoTrackable(), Block()
    outer.inner = Block()
    with capture_dependencies(outer):
        for template in (outer.inner, empty):
            with capture_dependencies(template):
                if template is outer.inner:
                    nn.Linear(1, 1, bias=False)
    assert names(outer) == ["inner"]


def test_inner_templates_are_numbered_over_blocks() -> None:
    outer = AutoTrackable()
    for _ in range(2):
        with capture_dependencies(outer), capture_dependencies(Block()):
            nn.Linear(1, 1)
    assert names(outer) == ["block", "block_1"]


def test_one_template_can_have_a_block_inside_its_own() -> None:
    template = AutoTrackable()
    with capture_dependencies(template):
        nn.Linear(1, 1, bias=False)
        with capture_dependencies(template):
            nn.Linear(1, 1, bias=False)
    assert names(template) == ["linear/weight", "linear_1/weight"]


# ----------------------------------------------------------------------------------------------------------- threads


def test_what_another_thread_registers_is_not_captured() -> None:
    template = AutoTrackable()
    with capture_dependencies(template):
        thread = threading.Thread(target=perceptron)
        thread.start()
        thread.join()
    assert names(template) == []


def test_blocks_in_many_threads_do_not_disturb_each_other() -> None:
    templates = [AutoTrackable() for _ in range(8)]
    failed: list[BaseException] = []
    # Torch's hooks must not change while another thread registers something; inside the blocks everything may.
    inside = threading.Barrier(len(templates) + 1, timeout=60)

    def build(template: AutoTrackable | None) -> None:
        try:
            with contextlib.nullcontext() if template is None else capture_dependencies(template):
                inside.wait()
                for _ in range(20):
                    perceptron()
                inside.wait()
        except BaseException as error:
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=build, args=(template,)) for template in (*templates, None)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failed == []
    expected = [name.replace(".", "/") for name in perceptron().state_dict()]
    scopes = ["sequential", *(f"sequential_{number}" for number in range(1, 20))]
    for template in templates:
        assert names(template) == [f"{scope}/{name}" for scope in scopes for name in expected]


# --------------------------------------------------------------------------------------------- saving and restoring


def program(checkpoint: Checkpoint) -> nn.Module:
    """Makes its model by foreign code inside a block."""
    with capture_dependencies(checkpoint):
        return perceptron()


def test_captured_parameters_are_saved_under_their_names(prefix: str) -> None:
    checkpoint = Checkpoint()
    program(checkpoint)
    keys = [key for key, _ in list_variables(checkpoint.write(prefix, FAST))]
    assert "sequential.S0.Sweight/.ATTRIBUTES/VARIABLE_VALUE" in keys
    assert len(keys) == 9


def test_a_fresh_program_restores_them(prefix: str) -> None:
    first = Checkpoint()
    model = program(first)
    path = first.save(prefix, FAST)
    second = Checkpoint()
    other = program(second)
    second.restore(path).assert_consumed()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("is_below", [False, True])
def test_a_template_whose_values_were_restored_before_gives_them_out(prefix: str, is_below: bool) -> None:
    """The values wait for the block, whether the template is the checkpoint or below it."""

    def make() -> tuple[Checkpoint, AutoTrackable]:
        template = AutoTrackable()
        checkpoint = Checkpoint(part=template) if is_below else Checkpoint()
        return checkpoint, template if is_below else checkpoint

    build = functools.partial(perceptron)
    first, template = make()
    with capture_dependencies(template):
        model = build()
    path = first.save(prefix, FAST)
    second, template = make()
    status = second.restore(path)
    with capture_dependencies(template):
        other = build()
        assert not torch.equal(other[0].weight, model[0].weight)
    status.assert_consumed()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_values_that_do_not_fit_are_an_error_at_the_end_of_the_block(tmp_path: Path) -> None:
    first, second = Checkpoint(), Checkpoint()
    program(first)
    second.restore(first.save(tmp_path / "ckpt", FAST))
    with pytest.raises(MismatchError, match=r"sequential/0/weight"):  # noqa: SIM117
        with capture_dependencies(second):
            nn.Sequential(nn.Linear(5, 3))
