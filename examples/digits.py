"""Training that survives SIGKILL, on the handwritten digits that come with scikit-learn.

    python examples/digits.py [--directory run] [--steps N]     the demonstration
    python examples/digits.py train --directory run/mine        only the training; kill it and start it again

`train` is the part to copy: restore the latest checkpoint if there is one, go on, save now and then. The rest shows
that it holds what it promises. One process trains undisturbed; another is killed in mid-run; a new one finishes the
work of the killed one. Then both results are compared bit for bit, and TensorFlow reads the last checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from torch_trackckpt import Checkpoint, RNGState, latest_checkpoint, load_checkpoint
from torch_trackckpt.inspection.tree import format_tree

BATCH_SIZE = 64
NUM_TEST_IMAGES = 360
NUM_SAVES = 8
KILL_AFTER_SAVE = 4
FEWEST_STEPS = 2 * NUM_SAVES

Report = Callable[..., None]


# Training.


def train(directory: Path, steps: int, save_every: int, report: Report) -> None:
    """Trains up to a number of steps, going on from the latest checkpoint in the directory."""
    seed_everything(0)
    images, labels, test_images, test_labels = load_data()
    model = Network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    step, losses = torch.zeros((), dtype=torch.int64), torch.zeros(steps)
    checkpoint = Checkpoint(
        model=model, optimizer=optimizer, schedule=schedule, step=step, losses=losses, rng=RNGState()
    )

    latest = latest_checkpoint(directory)
    if latest is not None:
        checkpoint.restore(latest).assert_consumed()
        report(restored=latest, step=int(step))

    while step < steps:
        batch = torch.randperm(len(images))[:BATCH_SIZE]
        losses[step] = train_step(model, optimizer, images[batch], labels[batch])
        schedule.step()
        step += 1
        report(step=int(step), loss=float(losses[step - 1]))
        if step % save_every == 0 or step == steps:
            report(saved=checkpoint.save(directory / "ckpt"))

    report(accuracy=accuracy(model, test_images, test_labels))


def seed_everything(seed: int) -> None:
    """Seeds every generator that `RNGState` saves, the unused ones too, so that their states can be compared."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def load_data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images and labels to train on, images and labels to test with."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    test, training = order[:NUM_TEST_IMAGES], order[NUM_TEST_IMAGES:]
    return images[training], labels[training], images[test], labels[test]


class Network(nn.Module):
    """Two convolutions and a linear layer for images of 8 by 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.dropout = nn.Dropout(0.4)
        self.linear = nn.Linear(32 * 4 * 4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.relu(self.norm(self.conv1(images)))
        hidden = nn.functional.max_pool2d(nn.functional.relu(self.conv2(hidden)), 2)
        return self.linear(self.dropout(hidden.flatten(1)))


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    return float((model(images).argmax(1) == labels).float().mean())


def make_report(hold_after: int | None) -> Report:
    """Prints each event as a line of JSON.

    After step `hold_after` it waits for the demonstration's kill, so that on no machine the training outruns it.
    """

    def report(**event: Any) -> None:
        print(json.dumps(event), flush=True)
        if hold_after is not None and event.get("step") == hold_after:
            time.sleep(60)
            sys.exit("Nobody killed this process.")

    return report


# The demonstration: a parent that watches the training in other processes, and kills one.


class Run(NamedTuple):
    """What a training process reported."""

    losses: dict[int, float]
    """By step."""
    restored_step: int
    """0 for a training from the start."""
    accuracy: float | None
    """None for a process that was killed."""


def demonstrate(directory: Path, steps: int, use_tensorflow: bool) -> bool:
    """Runs everything and prints what happened.

    Returns:
        Whether the interrupted training ended like the uninterrupted one, bit for bit, and TensorFlow agreed.
    """
    save_every = steps // NUM_SAVES
    kill_after = KILL_AFTER_SAVE * save_every + max(1, save_every * 2 // 3)
    whole_directory, broken_directory = directory / "uninterrupted", directory / "interrupted"
    remove_checkpoints(whole_directory)
    remove_checkpoints(broken_directory)

    print(f"Training on scikit-learn's handwritten digits: {steps} steps, a checkpoint every {save_every}.\n")
    with make_progress() as progress:
        whole = watch(progress, "uninterrupted", whole_directory, steps)
        killed = watch(progress, "another, killed", broken_directory, steps, kill_after)
        resumed = watch(progress, "a new process", broken_directory, steps)

    assert whole.accuracy is not None
    assert resumed.accuracy is not None
    last, restored = len(killed.losses), resumed.restored_step
    print(f"\nSIGKILL came after step {last}, the latest checkpoint after step {restored}: {last - restored} lost.")
    print("A new process restored that checkpoint, did the lost steps again, and finished.")
    print(f"Test accuracy: {whole.accuracy:.2%} uninterrupted, {resumed.accuracy:.2%} killed and resumed.\n")

    whole_path, broken_path = latest_checkpoint(whole_directory), latest_checkpoint(broken_directory)
    assert whole_path is not None
    assert broken_path is not None
    print(f"What {broken_path} holds:\n\n{format_tree(broken_path)}\n")
    is_same = compare(whole_path, broken_path) and whole.accuracy == resumed.accuracy
    is_read = not use_tensorflow or compare_with_tensorflow(broken_path)
    plot(directory / "losses.png", whole, killed, resumed, is_same)
    print(f"The loss curves: {directory / 'losses.png'}")
    return is_same and is_read


def remove_checkpoints(directory: Path) -> None:
    """Removes what an earlier demonstration left; the training would go on from it."""
    for path in [*directory.glob("ckpt-*"), *directory.glob("checkpoint")]:
        path.unlink()


def make_progress() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description:<15}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[news]}"),
    )


def watch(progress: Any, name: str, directory: Path, steps: int, kill_after: int | None = None) -> Run:
    """Trains in a process of its own, and kills that after a step if asked to."""
    task = progress.add_task(name, total=steps, news="starting")
    command = [sys.executable, __file__, "train", f"--directory={directory}", f"--steps={steps}"]
    if kill_after is not None:
        before_next_save = (KILL_AFTER_SAVE + 1) * (steps // NUM_SAVES) - 1
        command.append(f"--hold-after={before_next_save}")
    losses: dict[int, float] = {}
    restored_step, reached = 0, None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for event in events(process):
            if "loss" in event:
                losses[event["step"]] = event["loss"]
                progress.update(task, completed=event["step"])
            elif "restored" in event:
                restored_step = event["step"]
            reached = event.get("accuracy", reached)
            progress.update(task, news=news(event, progress.tasks[task].fields["news"]))
            if kill_after is not None and event.get("step") == kill_after:
                process.kill()
    if process.returncode != (0 if kill_after is None else -9):
        sys.exit(f"The process {name!r} ended with status {process.returncode}.")
    if kill_after is not None:
        progress.update(task, news=f"SIGKILL after step {len(losses)}")
        progress.stop_task(task)
    return Run(losses, restored_step, reached)


def events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    return map(json.loads, process.stdout)


def news(event: dict[str, Any], last: str) -> str:
    """What to say of an event behind the progress bar."""
    if "saved" in event:
        return f"saved {Path(event['saved']).name}"
    if "restored" in event:
        return f"restored {Path(event['restored']).name}, step {event['step']}"
    return last


# Comparing.


def compare(whole_path: str, broken_path: str) -> bool:
    """Shows the checksums of two checkpoints side by side; tells whether every value has the same bits."""
    whole, broken = checksums(whole_path), checksums(broken_path)
    rows = [
        (part, joint_checksum(whole, part), joint_checksum(broken, part)) for part in sorted({*map(part_of, whole)})
    ]
    print_table(["SHA-256 of", "uninterrupted", "killed and resumed", ""], [(*row, row[1] == row[2]) for row in rows])
    is_same = whole == broken
    if is_same:
        print(f"Bit-identical: {len(whole) - 1} values and the object graph of the two last checkpoints are equal.\n")
    else:
        differing = [key for key in sorted({*whole, *broken}) if whole.get(key) != broken.get(key)]
        print(f"NOT bit-identical: {len(differing)} of {len(whole)} values differ, the first is {differing[0]}.\n")
    return is_same


def checksums(path: str) -> dict[str, str]:
    """The SHA-256 of each value's bytes, by key."""
    reader = load_checkpoint(path)
    return {key: sha256(reader.get_tensor(key)) for key in reader.get_variable_to_shape_map()}


def sha256(value: Any) -> str:
    return hashlib.sha256(value if isinstance(value, bytes) else value.numpy().tobytes()).hexdigest()


def part_of(key: str) -> str:
    """What a value belongs to, in words for the table."""
    names = {
        "_CHECKPOINTABLE_OBJECT_GRAPH": "object graph",
        "model": "weights and buffers",
        "rng": "random state",
        "save_counter": "save counter",
        "step": "step counter",
    }
    first = "optimizer" if "/.OPTIMIZER_SLOT/" in key else key.split("/")[0]
    return names.get(first, first)


def joint_checksum(by_key: dict[str, str], part: str) -> str:
    """One checksum for all values of a part."""
    return sha256("".join(f"{key} {by_key[key]}\n" for key in sorted(by_key) if part_of(key) == part).encode())


def print_table(headings: list[str], rows: list[tuple[str, str, str, bool]], shown_digits: int = 16) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name, one, other, is_equal in rows:
        verdict = Text("equal", "green") if is_equal else Text("DIFFERENT", "bold red")
        table.add_row(Text(name), Text(one[:shown_digits]), Text(other[:shown_digits]), verdict)
    Console().print(table)
    print()


# TensorFlow, in a process that knows nothing of torch.

TENSORFLOW_READER = """
import hashlib, json, sys
import numpy
import tensorflow

reader = tensorflow.train.load_checkpoint(sys.argv[1])
sums = {}
for key in reader.get_variable_to_shape_map():
    value = reader.get_tensor(key)
    sums[key] = hashlib.sha256(value if isinstance(value, bytes) else numpy.asarray(value).tobytes()).hexdigest()
print(json.dumps({"version": tensorflow.__version__, "sums": sums}))
"""


def compare_with_tensorflow(path: str, num_shown: int = 8) -> bool:
    """Lets TensorFlow read a checkpoint and compares checksums; passes where TensorFlow is absent."""
    if importlib.util.find_spec("tensorflow") is None:
        print("TensorFlow is not installed, so it did not read the checkpoint here: pip install tensorflow-cpu\n")
        return True
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, "-c", TENSORFLOW_READER, path], capture_output=True, text=True, env=environment
    )
    if result.returncode != 0:
        print(f"TensorFlow could not read the checkpoint:\n{result.stderr}")
        return False
    answer = json.loads(result.stdout.splitlines()[-1])
    ours, theirs = checksums(path), answer["sums"]
    rows = [(readable_key(key), ours[key], theirs.get(key, "-"), ours[key] == theirs.get(key)) for key in sorted(ours)]
    # The first row is the object graph, which has a long name and no meaning to the eye.
    print_table(["SHA-256 of", "torch_trackckpt", "TensorFlow", ""], rows[1 : num_shown + 1], shown_digits=12)
    num_equal = sum(row[3] for row in rows)
    counted = f"all {len(rows)} are equal" if ours == theirs else f"only {num_equal} of {len(rows)} are equal"
    print(f"TensorFlow {answer['version']} reads the same checkpoint: of its values and the object graph, {counted}.\n")
    return bool(ours == theirs)


def readable_key(key: str) -> str:
    return key.replace("/.ATTRIBUTES/VARIABLE_VALUE", "").replace("/.OPTIMIZER_SLOT/optimizer/", "  ")


# The plot.


def plot(path: Path, whole: Run, killed: Run, resumed: Run, is_same: bool) -> None:
    """Draws the losses of all three processes, above whole and below around the kill."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 7.5), height_ratios=[3, 2], layout="constrained")
    restored, last = resumed.restored_step, len(killed.losses)
    for axes, marker in ((above, ""), (below, "o")):
        draw_losses(axes, whole, killed, resumed, marker)
        axes.axvspan(restored, last, color="tab:red", alpha=0.08, linewidth=0)
        axes.set(xlabel="training step", ylabel="loss (cross-entropy)", yscale="log")
        axes.grid(alpha=0.25)
    margin = max(2, (last - restored) // 4)
    near = [loss for step, loss in whole.losses.items() if restored - margin <= step <= last + margin]
    below.set(xlim=(restored - margin, last + margin), ylim=(min(near) / 2, max(near) * 2))
    below.set_title("Around the kill, step by step (the lost steps are shaded)", fontsize="medium")
    above.legend(fontsize="small", loc="upper right")
    above.set_title(
        f"Killed after step {last}, resumed from the checkpoint of step {restored}: "
        f"{'the same training, bit for bit' if is_same else 'NOT the same training'}\n"
        f"test accuracy: {whole.accuracy:.2%} uninterrupted, {resumed.accuracy:.2%} killed and resumed",
        fontsize="medium",
    )
    figure.savefig(path, dpi=120)


def draw_losses(axes: Any, whole: Run, killed: Run, resumed: Run, marker: str) -> None:
    restored = resumed.restored_step
    kept = {step: loss for step, loss in killed.losses.items() if step <= restored}
    # A curve that begins at the checkpoint is joined to the last step before it.
    joint = {restored: kept[restored]}
    lost = joint | {step: loss for step, loss in killed.losses.items() if step > restored}
    curves: list[tuple[dict[int, float], str, dict[str, Any]]] = [
        (whole.losses, "uninterrupted", {"color": "0.8", "linewidth": 7}),
        (kept, "killed process, up to its last checkpoint", {"color": "tab:blue", "linewidth": 1.3}),
        (lost, "killed process, steps lost with it", {"color": "tab:red", "linewidth": 3, "alpha": 0.7}),
        (joint | resumed.losses, "new process, from that checkpoint", {"color": "k", "linewidth": 1.1, "ls": "--"}),
    ]
    for losses, label, style in curves:
        axes.plot(losses.keys(), losses.values(), label=label, marker=marker, markersize=3, **style)


# The command line.


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", title="without the demonstration")
    training = commands.add_parser("train", help="train, going on from the latest checkpoint")
    for command in (parser, training):
        command.add_argument("--directory", type=Path, default=Path("run"), help="where files go (default: run)")
        command.add_argument("--steps", type=int, default=600, help=f"at least {FEWEST_STEPS} (default: 600)")
    training.add_argument("--hold-after", type=int, help="wait for a SIGKILL after this step")
    parser.add_argument("--no-tensorflow", action="store_true", help="do not let TensorFlow read the checkpoint")
    arguments = parser.parse_args()
    if arguments.steps < FEWEST_STEPS:
        parser.error(f"--steps {arguments.steps} is too few; take {FEWEST_STEPS} or more")
    return arguments


def require(packages: dict[str, str]) -> None:
    """Ends with a sentence if a module is missing; the packages that have them are given by module."""
    missing = [package for module, package in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        sys.exit(f"This example also needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)  # One thread adds in one order, so that equal runs have equal bits.
    require({"sklearn": "scikit-learn"})
    if arguments.command == "train":
        save_every = arguments.steps // NUM_SAVES
        train(arguments.directory, arguments.steps, save_every, make_report(arguments.hold_after))
        return
    require({"matplotlib": "matplotlib", "rich": "rich"})
    if not demonstrate(arguments.directory, arguments.steps, not arguments.no_tensorflow):
        sys.exit(1)


if __name__ == "__main__":
    main()
