"""What a restore says of every value: as data, as a table and as HTML."""

import html.parser
import xml.etree.ElementTree as ET
from collections import OrderedDict

import pytest
import torch
from checkpoints import Text, thing
from named_values import full, ones, scalar, write_named, zeros
from torch import nn

from torch_trackckpt import Checkpoint, CheckpointOptions, streaming_restore
from torch_trackckpt.restore.report import RestoreReport, ValueReport


def trained(**parameters: torch.Tensor) -> tuple[nn.ParameterDict, torch.optim.Optimizer]:
    model = nn.ParameterDict(parameters)
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer


def names(values: tuple[ValueReport, ...]) -> list[str]:
    return [value.name for value in values]


def lines(report: object) -> list[str]:
    return str(report).splitlines()


# --------------------------------------------------------------------------------------------------------- as data


def test_a_value_tells_its_name_its_key_its_type_and_its_shape(prefix: str) -> None:
    Checkpoint(a=thing(x=torch.zeros(2, 3, dtype=torch.int16))).write(prefix)
    report = Checkpoint(a=thing(x=torch.ones(2, 3, dtype=torch.int16))).read(prefix).report()
    assert report.restored == (ValueReport("(root).a.x", "a/x/.ATTRIBUTES/VARIABLE_VALUE", "int16", (2, 3)),)
    assert report.is_complete
    assert report.checkpoint == prefix


def test_each_value_is_under_what_became_of_it(prefix: str) -> None:
    Checkpoint(here=ones(), later=ones(), other=thing(x=ones())).write(prefix)
    checkpoint = Checkpoint(here=zeros(), more=zeros(), other=zeros())
    report = checkpoint.read(prefix).expect_partial().report()
    assert names(report.restored) == ["(root).here"]
    assert names(report.waiting) == ["(root).later"]
    assert names(report.only_in_checkpoint) == ["(root).other.x"]
    assert names(report.only_in_program) == ["(root).other", "(root).more"]
    assert not report.superseded
    assert not report.is_complete


def test_a_report_is_of_the_moment_and_does_not_change_afterwards(prefix: str) -> None:
    """C131"""
    Checkpoint(x=ones()).write(prefix)
    checkpoint = Checkpoint()
    status = checkpoint.read(prefix)
    before = status.report()
    checkpoint.x = zeros()
    assert names(before.waiting) == names(status.report().restored) == ["(root).x"]


def test_a_report_changes_nothing(prefix: str) -> None:
    """What an object got since that tells nobody is restored on request only."""
    Checkpoint(items=[ones(), ones()]).write(prefix)
    items = OrderedDict({"0": zeros()})
    status = Checkpoint(items=items).read(prefix)
    items["1"] = zeros()
    report = status.report()
    assert not items["1"].any()
    assert [(value.name, value.note) for value in report.waiting] == [
        ("(root).items.1", "is there, but nobody told of it: call run_restore_ops()")
    ]
    status.run_restore_ops()
    assert items["1"].all()
    assert status.report().is_complete


def test_what_waits_on_the_meta_device_says_so(prefix: str) -> None:
    Checkpoint(x=ones()).write(prefix)
    status = Checkpoint(x=torch.zeros(2, device="meta")).read(prefix).expect_partial()
    assert [value.note for value in status.report().waiting] == ["on the meta device: call run_restore_ops()"]
    assert not status.report().only_in_program
    streaming_restore(status)
    assert status.report().is_complete


def test_what_a_later_restore_has_given_is_superseded(prefix: str) -> None:
    old = Checkpoint(x=full(1.0), y=full(1.0)).write(prefix + "-old")
    new = Checkpoint(x=full(2.0)).write(prefix + "-new")
    checkpoint = Checkpoint()
    first = checkpoint.read(old)
    second = checkpoint.read(new)
    checkpoint.x = zeros()
    assert names(first.expect_partial().report().superseded) == ["(root).x"]
    assert names(second.report().restored) == ["(root).x"]


def test_what_load_state_dict_has_given_is_superseded(prefix: str) -> None:
    net = nn.Linear(2, 1)
    Checkpoint(net=net).write(prefix)
    live = nn.Linear(2, 1, device="meta")
    status = Checkpoint(net=live).read(prefix)
    live.load_state_dict({"bias": torch.ones(1)}, strict=False, assign=True)
    report = status.report()
    assert names(report.restored) == ["(root).net.weight"]
    assert names(report.superseded) == ["(root).net.bias"]
    assert report.is_complete
    status.assert_consumed()


def test_a_value_whose_object_took_that_of_another_name_is_superseded(prefix: str) -> None:
    """C136"""
    Checkpoint(a=full(1.0), b=full(2.0)).write(prefix)
    shared = zeros()
    status = Checkpoint(a=shared, b=shared).read(prefix)
    report = status.report()
    assert names(report.restored) == ["(root).a"]
    assert [(value.name, value.note) for value in report.superseded] == [
        ("(root).b", "the object of this name has another name as well, and the value of that")
    ]
    assert report.is_complete
    status.assert_consumed()


def test_a_value_that_its_object_does_not_know_is_only_in_the_checkpoint(prefix: str) -> None:
    """C133"""
    Checkpoint(x=Text("saved")).write(prefix)
    (value,) = Checkpoint(x=thing()).read(prefix).expect_partial().report().only_in_checkpoint
    assert value.name == "(root).x: py_state"
    assert value.key == "x/.ATTRIBUTES/py_state"
    assert value.note == "the object of this name does not take it"


def test_skipped_slots_are_counted_as_such(prefix: str) -> None:
    """C116"""
    model, optimizer = trained(w=ones())
    Checkpoint(model=model, optimizer=optimizer).write(prefix)
    options = CheckpointOptions(experimental_skip_slot_variables=True)
    report = Checkpoint(model=model, optimizer=optimizer).read(prefix, options).report()
    assert [value.slot_name for value in report.skipped] == ["exp_avg", "exp_avg_sq", "step"]
    assert report.is_complete
    assert lines(report) == [f"{prefix}: 2 values restored, 3 skipped"]


def test_slots_tell_whose_they_are(prefix: str) -> None:
    """C146"""
    model, optimizer = trained(w=ones())
    Checkpoint(model=model, optimizer=optimizer).write(prefix)
    report = Checkpoint(model=model).read(prefix).expect_partial().report()
    slot = next(value for value in report.waiting if value.slot_name == "exp_avg")
    assert slot.name == "(root).optimizer's state 'exp_avg' for (root).model.w"
    assert slot.slots == "(root).optimizer's state for (root).model.w"
    assert (slot.dtype, slot.shape) == ("float32", (2,))


# ----------------------------------------------------------------------------------------------------------- hints


def test_of_a_renamed_value_each_side_points_to_the_other(prefix: str) -> None:
    Checkpoint(net=thing(weight=ones(), scale=ones())).write(prefix)
    report = Checkpoint(net=thing(weights=zeros(), scale=zeros())).read(prefix).expect_partial().report()
    assert [value.hint for value in report.waiting] == ["(root).net.weights"]
    assert [value.hint for value in report.only_in_program] == ["(root).net.weight"]


def test_of_renamed_layers_each_points_to_that_of_its_own_number(prefix: str) -> None:
    def net(name: str) -> object:
        return thing(**{name: [thing(weight=ones(), bias=ones()) for _ in range(12)]})

    Checkpoint(net=net("layers")).write(prefix)
    report = Checkpoint(net=net("blocks")).read(prefix).expect_partial().report()
    hints = {value.name: value.hint for value in report.waiting if value.hint}
    assert len(hints) == 20  # the first ones
    assert all(hint == name.replace("layers", "blocks") for name, hint in hints.items())


def test_a_value_of_another_shape_or_type_or_of_quite_another_name_is_no_hint(prefix: str) -> None:
    Checkpoint(weight=ones()).write(prefix)
    live = {"weights": torch.zeros(3), "weight_": torch.zeros(2, dtype=torch.float64), "convolution": zeros()}
    report = Checkpoint(**live).read(prefix).expect_partial().report()
    assert [value.hint for value in report.waiting] == [""]


def test_a_renamed_optimizer_is_found_by_what_it_is(prefix: str) -> None:
    model, optimizer = trained(w=ones())
    Checkpoint(model=model, opt=optimizer).write(prefix)
    report = Checkpoint(model=model, optimizer=optimizer).read(prefix).expect_partial().report()
    assert report.waiting[0].name == "(root).opt.param_groups: py_state"
    assert report.waiting[0].hint == "(root).optimizer.param_groups"


# ------------------------------------------------------------------------------------------------------- the table


def test_a_full_restore_is_one_line(prefix: str) -> None:
    Checkpoint(x=ones(), y=ones()).write(prefix)
    status = Checkpoint(x=zeros(), y=zeros()).read(prefix)
    assert lines(status) == [f"{prefix}: 2 values restored"]


def test_one_value_is_one_value(prefix: str) -> None:
    Checkpoint(x=ones()).write(prefix)
    assert lines(Checkpoint(x=zeros()).read(prefix)) == [f"{prefix}: 1 value restored"]
    assert lines(Checkpoint().read(prefix).expect_partial())[0] == f"{prefix}: 0 values restored, 1 waiting"


def test_the_columns_are_aligned(prefix: str) -> None:
    Checkpoint(a=thing(weight=torch.zeros(2, 3)), text=Text(), z=scalar()).write(prefix)
    status = Checkpoint(a=thing(weights=torch.zeros(2, 3))).read(prefix).expect_partial()
    assert lines(status) == [
        f"{prefix}: 0 values restored, 3 waiting, 1 only in program",
        "  waiting          (root).text: py_state  string",
        "  waiting          (root).z               float32",
        "  waiting          (root).a.weight        float32 [2, 3]  like (root).a.weights?",
        "  only in program  (root).a.weights       float32 [2, 3]  like (root).a.weight?",
    ]


def test_the_slots_of_a_variable_are_one_row(prefix: str) -> None:
    model, optimizer = trained(v=ones(), w=ones())
    Checkpoint(model=model, optimizer=optimizer).write(prefix)
    status = Checkpoint(model=model).read(prefix).expect_partial()
    assert lines(status) == [
        f"{prefix}: 2 values restored, 7 waiting",
        "  waiting  (root).optimizer.param_groups: py_state      string",
        "  waiting  (root).optimizer's state for (root).model.v  exp_avg, exp_avg_sq, step",
        "  waiting  (root).optimizer's state for (root).model.w  exp_avg, exp_avg_sq, step",
    ]


def test_of_many_values_the_first_are_shown_and_the_others_counted(prefix: str) -> None:
    """C143"""
    Checkpoint(items=[ones() for _ in range(1000)]).write(prefix)
    shown = lines(Checkpoint().read(prefix).expect_partial())
    assert len(shown) == 12
    assert shown[0] == f"{prefix}: 0 values restored, 1000 waiting"
    assert shown[-1] == "  waiting  and 990 more"


def test_of_many_slots_all_values_that_are_not_shown_are_counted(prefix: str) -> None:
    model, optimizer = trained(**{f"w{index}": ones() for index in range(12)})
    Checkpoint(model=model, optimizer=optimizer).write(prefix)
    shown = lines(Checkpoint(model=model).read(prefix).expect_partial())
    # One row is that of the groups; nine are of three slots each.
    assert shown[-1].split() == ["waiting", "and", "9", "more"]


def test_one_very_long_name_does_not_move_the_columns_of_all_others(prefix: str) -> None:
    Checkpoint(**{"a" * 200: ones(), "b": ones()}).write(prefix)
    _, long, short = lines(Checkpoint().read(prefix).expect_partial())
    assert f"(root).{'a' * 200}  float32 [2]" in long
    assert len(short) < 100


def test_tables_are_the_same_each_time(prefix: str) -> None:
    model, optimizer = trained(v=ones(), w=ones())
    Checkpoint(model=model, optimizer=optimizer, old=ones()).write(prefix)

    def table() -> str:
        live, its_optimizer = trained(u=ones(), w=ones())
        return str(Checkpoint(model=live, optimizer=its_optimizer, new=ones()).read(prefix).expect_partial())

    assert len({table() for _ in range(3)}) == 1


# ------------------------------------------------------------------------------------------------------------ HTML


class Checker(html.parser.HTMLParser):
    """Collects the rows, and sees that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


def test_a_notebook_shows_a_table(prefix: str) -> None:
    Checkpoint(x=ones(), y=ones()).write(prefix)
    shown = Checkpoint(x=zeros(), z=zeros()).read(prefix).expect_partial()._repr_html_()
    table = ET.fromstring(shown)
    assert table.tag == "table"
    assert [part.tag for part in table] == ["caption", "thead", "tbody"]
    assert table.findtext("caption") == f"{prefix}: 1 value restored, 1 waiting, 1 only in program"
    assert [[cell.text or "" for cell in row] for row in table.iter("tr")] == [
        ["state", "name", "value", "note"],
        ["waiting", "(root).y", "float32 [2]", "like (root).z?"],
        ["only in program", "(root).z", "float32 [2]", "like (root).y?"],
    ]


def test_names_are_escaped(prefix: str) -> None:
    name = "<script>alert('&')</script>"
    Checkpoint(x={name: ones()}).write(prefix)
    checker = Checker()
    checker.feed(Checkpoint().read(prefix).expect_partial()._repr_html_())
    assert not checker.open
    assert f"(root).x.{name}" in checker.cells
    report = RestoreReport("<b>&", only_in_program=(ValueReport("a<b", dtype="<i>", note="1 < 2"),))
    assert ET.fromstring(report._repr_html_()).findtext("caption") == "<b>&: 0 values restored, 1 only in program"


def test_a_table_without_rows_is_a_table(prefix: str) -> None:
    Checkpoint(x=ones()).write(prefix)
    table = ET.fromstring(Checkpoint(x=zeros()).read(prefix)._repr_html_())
    assert [part.tag for part in table] == ["caption", "tbody"]
    assert not list(table.iter("tr"))


# ------------------------------------------------------------------------------------------- other kinds of status


def test_without_a_checkpoint_everything_is_only_in_the_program() -> None:
    """C060"""
    model, optimizer = trained(w=ones())
    status = Checkpoint(model=model, optimizer=optimizer, text=Text()).restore(None)
    assert lines(status) == [
        "no checkpoint: 0 values restored, 7 only in program",
        "  only in program  (root).text                                  Text",
        "  only in program  (root).save_counter                          int64",
        "  only in program  (root).model.w                               float32 [2]",
        "  only in program  (root).optimizer.param_groups",
        "  only in program  (root).optimizer's state for (root).model.w  exp_avg, exp_avg_sq, step",
    ]
    assert status.report().checkpoint == ""


def test_by_names_each_value_is_under_what_became_of_it(prefix: str) -> None:
    write_named(prefix, {"weight": ones(), "weight/exp_avg": ones(), "kernel": ones(), "global_step": scalar()})
    model, optimizer = trained(weight=zeros(), kernels=zeros())
    report = Checkpoint(model=model, optimizer=optimizer).read(prefix).report()
    assert [(value.name, value.key) for value in report.restored] == [
        ("(root).model.weight", "weight"),
        ("(root).optimizer's state 'exp_avg' for (root).model.weight", "weight/exp_avg"),
    ]
    assert [(value.name, value.hint) for value in report.only_in_program if not value.slots] == [
        ("(root).model.kernels", "")
    ]
    assert [(value.name, value.dtype, value.shape) for value in report.only_in_checkpoint] == [
        ("global_step", "float32", ()),
        ("kernel", "float32", (2,)),
    ]


def test_by_names_the_counter_need_not_be_there(prefix: str) -> None:
    write_named(prefix, {"weight": ones()})
    status = Checkpoint(model=nn.ParameterDict({"weight": zeros()})).restore(prefix)
    assert lines(status) == [f"{prefix}: 1 value restored"]


def test_by_names_a_report_changes_nothing(prefix: str) -> None:
    write_named(prefix, {"weight": ones(), "other": ones()})
    model = nn.Module()
    status = Checkpoint(model=model).read(prefix)
    model.weight = nn.Parameter(zeros())
    model.other = nn.Parameter(torch.zeros(2, device="meta"))
    assert [(value.name, value.note) for value in status.report().waiting] == [
        ("(root).model.weight", "is there, but nobody told of it: call run_restore_ops()"),
        ("(root).model.other", "on the meta device: call run_restore_ops()"),
    ]
    assert not model.weight.any()
    with pytest.raises(AssertionError, match=r"^1 tensor of the meta device waits for values .*\(root\)\.model\.other"):
        status.assert_consumed()
    status.run_restore_ops()
    assert status.report().is_complete


def test_by_names_what_a_later_restore_has_given_is_superseded(prefix: str) -> None:
    write_named(prefix, {"weight": ones()})
    checkpoint = Checkpoint(model=nn.ParameterDict({"weight": zeros()}))
    first = checkpoint.read(prefix)
    checkpoint.read(prefix)
    assert names(first.report().superseded) == ["(root).model.weight"]


# ------------------------------------------------------------------------------------------------------------ size


@pytest.mark.parametrize("renamed", [False, True])
def test_many_values_are_reported_in_time(prefix: str, renamed: bool) -> None:
    """In about a second; work that grew with the square of the number would take the patience of the test run."""

    def net(name: str) -> nn.Module:
        return nn.ParameterDict({f"{name}{index}_weight": nn.Parameter(torch.zeros(4)) for index in range(10_000)})

    Checkpoint(net=net("layer")).write(prefix)
    status = Checkpoint(net=net("block" if renamed else "layer")).read(prefix).expect_partial()
    report = status.report()
    assert len(report.waiting) == len(report.only_in_program) == (10_000 if renamed else 0)
    assert len(report.restored) == (0 if renamed else 10_000)
    assert len(lines(report)) == (23 if renamed else 1)
