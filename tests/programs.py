"""Small trainings that between them hold everything that carries state.

Each is written twice in one function: as it was when it was saved, and as somebody rebuilt it, with its parts made in
another order, other initial values, and other wrappers. `observe` turns all that one holds into plain data.
"""

import dataclasses
import hashlib
import math
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from torch_trackckpt import AutoTrackable, RNGState


class Objects(dict[str, Any]):
    """The objects of a program by name."""

    stream: Iterator[object] | None = None
    """What comes next from the data."""


_WRAPPERS = re.compile(r"\b(module|_orig_mod|_checkpoint_wrapped_module)\.")


@dataclasses.dataclass(frozen=True)
class Program:
    """One training."""

    make: Callable[[bool], dict[str, Any]]
    """Makes its objects; the argument tells whether it is the rebuilt one."""
    step: Callable[[Objects], object]
    """Trains for one step, and returns what it has drawn, seen or computed."""
    needs: tuple[str, ...] = ()
    """Packages beyond those of the test extra that every platform has."""

    def start(self, rebuilt: bool) -> Objects:
        """The objects; nothing in a rebuilt program is as it was."""
        seed = 1 + rebuilt
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            # Of the packages that are used here.
            warnings.simplefilter("ignore")
            return Objects(self.make(rebuilt))

    def run(self, objects: Objects, num_steps: int) -> list[object]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [plain(self.step(objects)) for _ in range(num_steps)]


def plain(value: object) -> object:
    """A value as JSON-like data that is equal only where every bit is."""
    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous()
        bits = data.reshape(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b""
        return [str(value.dtype), list(value.shape), hashlib.sha256(bits).hexdigest()]
    if isinstance(value, np.ndarray):
        return [value.dtype.str, list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, Mapping):
        return {"type": "dict", "items": [[plain(key), plain(item)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, [plain(item) for item in value]]
    return [type(value).__name__, repr(value)]


def observe(objects: Objects) -> dict[str, object]:
    """All that the objects of a program hold."""
    named = sorted(
        (f"{key}.{_WRAPPERS.sub('', name)}", id(parameter))
        for key, module in objects.items()
        if isinstance(module, nn.Module)
        for name, parameter in module.named_parameters(remove_duplicate=False)
    )
    names = {identity: name for name, identity in reversed(named)}
    return {name: plain(_content(value, names)) for name, value in sorted(objects.items())}


def _content(value: Any, names: Mapping[int, str]) -> object:
    if isinstance(value, nn.Module):
        state = value.state_dict(keep_vars=True)
        return dict(sorted((_WRAPPERS.sub("", name), _inner(tensor)) for name, tensor in state.items()))
    if isinstance(value, torch.optim.Optimizer):
        by_name = {
            names[id(parameter)]: {
                "state": dict(sorted(value.state.get(parameter, {}).items())),
                "group": dict(sorted((k, v) for k, v in group.items() if k not in ("params", "param_names"))),
            }
            for group in value.param_groups
            for parameter in group["params"]
        }
        return dict(sorted(by_name.items()))
    if isinstance(value, schedules.LRScheduler):
        group_names = [min(names[id(member)] for member in group["params"]) for group in value.optimizer.param_groups]
        return _by_group(value.state_dict(), group_names)
    if isinstance(value, RNGState):
        return value.state_dict()
    if isinstance(value, torch.utils.data.DistributedSampler):
        return {"epoch": value.epoch, "seed": value.seed}
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, AutoTrackable):
        return {name: _content(item, names) for name, item in vars(value).items() if name != "_tracking"}
    if isinstance(value, (list, tuple)):
        return [_content(item, names) for item in value]
    if isinstance(value, dict):
        return {key: _content(item, names) for key, item in value.items()}
    return value.state_dict() if hasattr(value, "state_dict") else value


def _by_group(state: Any, group_names: list[str]) -> Any:
    """A schedule's state, with what it keeps for each group by the names of the groups."""
    if isinstance(state, dict):
        is_per_group = {"base_lrs", "min_lrs", "_last_lr"} & state.keys()
        return {
            name: dict(sorted(zip(group_names, item, strict=True)))
            if name in is_per_group and isinstance(item, list)
            else _by_group(item, group_names)
            for name, item in state.items()
        }
    return [_by_group(item, group_names) for item in state] if isinstance(state, list) else state


def _inner(tensor: object) -> object:
    """The tensors that a tensor of a subclass is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return {name: getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]}
    return tensor


# ------------------------------------------------------------------------------------------------- parts


class Net(nn.Module):
    """Two layers with dropout between them; the order in which they are registered can be turned round."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        parts: dict[str, Callable[[], nn.Module]] = {
            "first": lambda: nn.Linear(4, 6),
            "norm": lambda: nn.BatchNorm1d(6),
            "second": lambda: nn.Linear(6, 2),
        }
        for name in reversed(parts) if turned else parts:
            self.add_module(name, parts[name]())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.dropout(torch.tanh(self.norm(self.first(x))), 0.2, self.training)
        y: torch.Tensor = self.second(hidden)
        return y


def adamw(model: nn.Module, rebuilt: bool, **options: Any) -> torch.optim.Optimizer:
    """Two groups; where rebuilt, both they and their members in another order."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim <= 1], "lr": 0.02},
    ]
    for group in groups if rebuilt else ():
        group["params"].reverse()  # type: ignore[attr-defined]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups[::-1] if rebuilt else groups, lr=0.01, **options)


def train(objects: Objects, model: str = "model") -> torch.Tensor:
    """One step on random data; returns the loss, and a random number drawn after it."""
    x = torch.randn(5, 4)
    loss = (objects[model](x) - x[:, :2]).square().mean()
    objects["optimizer"].zero_grad()
    loss.backward()
    objects["optimizer"].step()
    return torch.stack([loss.detach(), torch.rand(())])


def training(model: Callable[[bool], nn.Module], **parts: Callable[[Any], Any]) -> Callable[[bool], dict[str, Any]]:
    """A model with its optimizer and random state; `parts` are made of the objects so far."""

    def make(rebuilt: bool) -> dict[str, Any]:
        made = model(rebuilt)
        objects: dict[str, Any] = {"model": made, "optimizer": adamw(made, rebuilt), "rng": RNGState()}
        for name, part in parts.items():
            objects[name] = part(objects)
        return dict(reversed(objects.items())) if rebuilt else objects

    return make


def scheduled(make: Callable[[torch.optim.Optimizer], Any]) -> Program:
    """A training with a learning rate schedule."""

    def step(objects: Objects) -> object:
        seen = train(objects)
        schedule = objects["schedule"]
        schedule.step(*([seen[0]] if isinstance(schedule, schedules.ReduceLROnPlateau) else []))
        rates = {group["weight_decay"]: group["lr"] for group in objects["optimizer"].param_groups}
        return [seen, dict(sorted(rates.items()))]

    return Program(training(Net, schedule=lambda objects: make(objects["optimizer"])), step)


# --------------------------------------------------------------------------------------------- wrappers


def checkpointed(module: nn.Module) -> nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    module.first = checkpoint_wrapper(module.first)  # type: ignore[arg-type]
    return module


def compiled(module: nn.Module) -> nn.Module:
    wrapped = torch.compile(module, backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


def wrapped(wrap: Callable[[nn.Module], nn.Module], *, when_rebuilt: bool) -> Program:
    """Wrapped in one of the two programs only."""
    return Program(
        training(lambda rebuilt: wrap(Net(rebuilt)) if rebuilt == when_rebuilt else Net(rebuilt)),
        train,
    )


def average_step(objects: Objects) -> object:
    seen = train(objects)
    objects["ema"].update_parameters(objects["model"])
    objects["swalr"].step()
    return [seen, objects["ema"].eval()(torch.ones(1, 4))]


# -------------------------------------------------------------------------------- modules of all kinds


class Parametrized(Net):
    def __init__(self, turned: bool) -> None:
        super().__init__(turned)
        # The power iteration of the spectral norm changes its buffers in each forward pass.
        self.first = parametrizations.spectral_norm(self.first)
        self.second = parametrizations.weight_norm(self.second)


class Pruned(Net):
    def __init__(self, turned: bool) -> None:
        super().__init__(turned)
        prune.random_unstructured(self.first, "weight", 0.4)


class OldNorms(Net):
    def __init__(self, turned: bool) -> None:
        super().__init__(turned)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.first = nn.utils.spectral_norm(self.first)
            self.second = nn.utils.weight_norm(self.second)


class Lists(nn.Module):
    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(4, 6), torch.randn(6, 2)])
        names = ["low", "high"]
        self.factors = nn.ParameterDict({name: torch.randn(2) for name in (reversed(names) if turned else names)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.tanh(x @ self.weights[0]) @ self.weights[1] * self.factors["low"] + self.factors["high"]
        return y


class Tied(nn.Module):
    """Two layers with one weight, and a buffer that is a view of another."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        for name in ("second", "first") if turned else ("first", "second"):
            self.add_module(name, nn.Linear(4, 4, bias=name == "second"))
        self.second.weight = self.first.weight
        self.register_buffer("history", torch.zeros(4, 2))
        self.register_buffer("newest", self.history[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(torch.tanh(self.first(x)))[:, :2]
        with torch.no_grad():
            self.newest += y[0]
        return y + self.history.sum(0)


class Counting(Net):
    """State beyond its tensors."""

    def __init__(self, turned: bool) -> None:
        super().__init__(turned)
        self.num_calls = 0
        self.sizes: set[tuple[int, ...]] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        self.sizes.add((self.num_calls, *x.shape))
        return super().forward(x) * (1 + 0.01 * self.num_calls)

    def get_extra_state(self) -> object:
        return {"num_calls": self.num_calls, "sizes": self.sizes}

    def set_extra_state(self, state: Any) -> None:
        self.num_calls, self.sizes = state["num_calls"], state["sizes"]


class Image(nn.Module):
    """A convolutional net in the style of timm: depthwise convolution, squeeze and excitation, layer scale."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.gamma = nn.Parameter(torch.full((8, 1, 1), 0.1))
        self.register_buffer("stochastic_depth", torch.linspace(0, 0.5, 3), persistent=False)
        self.head = nn.Linear(8, 2)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = self.stem(x.reshape(-1, 1, 1, 4).expand(-1, 1, 4, 4))
        hidden = torch.relu(self.norm(self.depthwise(images)))
        hidden = hidden * torch.sigmoid(self.excite(torch.relu(self.squeeze(hidden.mean((2, 3), keepdim=True)))))
        y: torch.Tensor = self.head((images + self.gamma * hidden).mean((2, 3)))
        return y


def lazy(rebuilt: bool) -> dict[str, Any]:
    model = nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(2))
    if not rebuilt:
        model(torch.ones(1, 4))
    return {"model": model, "rng": RNGState()}


# --------------------------------------------------------------------------------------- mixed precision


def amp_step(objects: Objects) -> object:
    x = torch.randn(5, 4)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = (objects["model"](x).float() - x[:, :2]).square().mean()
    objects["optimizer"].zero_grad()
    scaler = objects["scaler"]
    scaler.scale(loss).backward()
    scaler.step(objects["optimizer"])
    scaler.update()
    return [loss, scaler.get_scale()]


# -------------------------------------------------------------------------------------------- random state


def draw(objects: Objects) -> object:
    return [
        random.random(), random.gauss(0, 1), np.random.normal(size=3), torch.randn(3), torch.randperm(5),
        torch.rand(2, generator=objects["torch"]), objects["numpy"].normal(size=3), objects["numpy"].integers(9),
        objects["legacy"].normal(size=3), objects["python"].gauss(0, 1), objects["python"].random(),
    ]  # fmt: skip


def generators(rebuilt: bool) -> dict[str, Any]:
    seed = 5 + rebuilt
    return {
        "rng": RNGState(),
        "torch": torch.Generator().manual_seed(seed),
        "numpy": np.random.Generator(np.random.Philox(seed)),
        "legacy": np.random.RandomState(seed),
        "python": random.Random(seed),
    }


# ---------------------------------------------------------------------------------------------------- data


class Squares(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, index * index])


def next_batch(objects: Objects) -> object:
    """The next batch of an endless stream of epochs."""
    if objects.stream is None:
        objects.stream = _endless(objects["loader"], objects.get("sampler"))
    return [next(objects.stream), torch.rand(())]


def _endless(loader: Any, sampler: Any) -> Iterator[object]:
    epoch = getattr(sampler, "epoch", 0)
    while True:
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def stateful_loader(num_workers: int) -> Callable[[bool], dict[str, Any]]:
    def make(rebuilt: bool) -> dict[str, Any]:
        from torchdata.stateful_dataloader import StatefulDataLoader

        generator = torch.Generator().manual_seed(3 + rebuilt)
        return {
            "loader": StatefulDataLoader(
                Squares(), batch_size=4, shuffle=True, num_workers=num_workers, generator=generator
            ),
            "rng": RNGState(),
        }

    return make


def resumable_loader(rebuilt: bool) -> dict[str, Any]:
    from torch_trackckpt.data import ResumableLoader

    loader = torch.utils.data.DataLoader(Squares(), batch_size=4, shuffle=True)
    return {"loader": ResumableLoader(loader), "rng": RNGState()}


def distributed_loader(rebuilt: bool) -> dict[str, Any]:
    from torch_trackckpt.data import ResumableLoader

    sampler: Any = torch.utils.data.DistributedSampler(Squares(), num_replicas=2, rank=1, seed=8)
    loader = torch.utils.data.DataLoader(Squares(), batch_size=4, sampler=sampler)
    return {"loader": ResumableLoader(loader), "sampler": sampler, "rng": RNGState()}


# -------------------------------------------------------------------------------------- a program's own objects


@dataclasses.dataclass
class Progress(AutoTrackable):
    step: int = 0
    best_loss: float = math.inf
    ema_decay: float = 0.9
    history: list[float] = dataclasses.field(default_factory=list)


class Smoother:
    """A class with the two methods that torch calls stateful."""

    def __init__(self) -> None:
        self.values: dict[int, float] = {}
        self.mean = torch.zeros(())

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values, "mean": self.mean, "shape": (1, 2)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values, self.mean = state["values"], state["mean"]


def own_step(objects: Objects) -> object:
    loss = train(objects)[0].item()
    progress, smoother = objects["progress"], objects["smoother"]
    progress.step += 1
    progress.best_loss = min(progress.best_loss, loss)
    progress.ema_decay *= 0.99
    progress.history.append(loss)
    smoother.values[progress.step] = loss
    smoother.mean = progress.ema_decay * smoother.mean + loss
    return [loss, smoother.mean]


def metrics(rebuilt: bool) -> dict[str, Any]:
    from torchmetrics import CatMetric, MeanMetric, MetricCollection
    from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

    collection = MetricCollection([MulticlassAccuracy(3), MulticlassConfusionMatrix(3)])
    made = {"mean": MeanMetric(), "all": CatMetric(), "collection": collection}
    for metric in made.values():
        metric.persistent(True)
    return {**made, "rng": RNGState()}


def metric_step(objects: Objects) -> object:
    objects["mean"].update(torch.rand(3))
    objects["all"].update(torch.rand(2))
    objects["collection"].update(torch.randint(3, (7,)), torch.randint(3, (7,)))
    return [objects[name].compute() for name in ("mean", "all", "collection")]


# ----------------------------------------------------------------------------------------------- other packages


def gpt2(rebuilt: bool) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)


def bert(rebuilt: bool) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8,
    )  # fmt: skip
    return BertForMaskedLM(config)


def adapted_gpt2(rebuilt: bool) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    model: nn.Module = get_peft_model(
        gpt2(rebuilt), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, lora_dropout=0.1)
    )
    return model


def language_step(objects: Objects) -> object:
    tokens = torch.randint(20, (3, 8))
    loss = objects["model"].train()(input_ids=tokens, labels=tokens).loss
    objects["optimizer"].zero_grad()
    loss.backward()
    objects["optimizer"].step()
    return [loss, torch.rand(())]


class QuantizedBase(nn.Module):
    """A frozen quantised layer below one that is trained."""

    def __init__(self, turned: bool) -> None:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        super().__init__()
        self.base = nn.Sequential(nn.Linear(4, 6))
        quantize_(self.base, Int8WeightOnlyConfig())
        self.base.requires_grad_(False)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(torch.tanh(self.base(x)))
        return y


# ----------------------------------------------------------------------------------------------------- the table


def _ema(objects: Objects) -> AveragedModel:
    return AveragedModel(objects["model"], multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)


PROGRAMS: dict[str, Program] = {
    "DataParallel, then none": wrapped(nn.DataParallel, when_rebuilt=False),
    "none, then DataParallel": wrapped(nn.DataParallel, when_rebuilt=True),
    "checkpointed layers, then none": wrapped(checkpointed, when_rebuilt=False),
    "none, then checkpointed layers": wrapped(checkpointed, when_rebuilt=True),
    "none, then torch.compile": wrapped(compiled, when_rebuilt=True),
    "AveragedModel and SWALR": Program(
        training(Net, ema=_ema, swalr=lambda objects: SWALR(objects["optimizer"], 0.001, 3)), average_step
    ),
    "parametrizations": Program(training(Parametrized), train),
    "weight and spectral norm of old": Program(training(OldNorms), train),
    "pruning masks": Program(training(Pruned), train),
    "ParameterList and ParameterDict": Program(training(Lists), train),
    "tied weights and views": Program(training(Tied), train),
    "extra state": Program(training(Counting), train),
    "convolutions, channels_last": Program(training(Image), train),
    "lazy modules": Program(lazy, lambda objects: objects["model"](torch.randn(2, 4))),
    "OneCycleLR": scheduled(lambda optimizer: schedules.OneCycleLR(optimizer, 0.1, total_steps=30)),
    "ReduceLROnPlateau": scheduled(lambda optimizer: schedules.ReduceLROnPlateau(optimizer, patience=1)),
    "SequentialLR": scheduled(
        lambda optimizer: schedules.SequentialLR(
            optimizer,
            [schedules.LinearLR(optimizer, 0.1, total_iters=4), schedules.CosineAnnealingWarmRestarts(optimizer, 3)],
            [4],
        )
    ),
    "ChainedScheduler": scheduled(
        lambda optimizer: schedules.ChainedScheduler(
            [schedules.ExponentialLR(optimizer, 0.95), schedules.MultiStepLR(optimizer, [4, 4, 6])], optimizer
        )
    ),
    "GradScaler": Program(
        training(
            Net,
            scaler=lambda _: torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2),
        ),
        amp_step,
    ),
    "random state": Program(generators, draw),
    "StatefulDataLoader": Program(stateful_loader(0), next_batch, ("torchdata",)),
    "StatefulDataLoader, 2 workers": Program(stateful_loader(2), next_batch, ("torchdata",)),
    "DataLoader": Program(resumable_loader, next_batch),
    "DistributedSampler": Program(distributed_loader, next_batch),
    "a program's own objects": Program(
        training(Net, progress=lambda _: Progress(), smoother=lambda _: Smoother()), own_step
    ),
    "torchmetrics": Program(metrics, metric_step, ("torchmetrics",)),
    "GPT-2": Program(training(gpt2), language_step, ("transformers",)),
    "BERT": Program(training(bert), language_step, ("transformers",)),
    "LoRA": Program(training(adapted_gpt2), language_step, ("peft",)),
    "quantised base": Program(training(QuantizedBase), train, ("torchao",)),
}
