"""Guesslang, which tells in which of 54 languages a text is written, in PyTorch.

    python examples/ported/guesslang.py [tests/corpus/sm2-guesslang-estimator] [--file FILE ...]

The SavedModel comes with the package guesslang 2.2.1 (MIT, Copyright 2021 Y. SOMDA,
https://github.com/yoeo/guesslang). It was written by an Estimator, so that its values have names, but no object graph.
Two models work together and their logits are added: a linear one, with weights for each pair of neighbouring bytes, and
a deep one on the mean of what it has learnt of each of the pairs.

In TensorFlow, texts go in and the graph makes features of them; here `features` does. A feature is the number of one of
5000 buckets, which a hash chooses: FarmHash's Fingerprint64, for texts of three bytes.
"""

import argparse
import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from torch_trackckpt.interop import TRANSPOSED, Rule, RuleSet, Scope, load_name_based

CORPUS = Path(__file__).parents[2] / "tests" / "corpus"

NUM_BUCKETS = 5000
MOST_FEATURES = 10000
# fmt: off
LANGUAGES = (
    "asm", "bat", "c", "cs", "cpp", "clj", "cmake", "cbl", "coffee", "css", "csv", "dart", "dm", "dockerfile", "ex",
    "erl", "f90", "go", "groovy", "hs", "html", "ini", "java", "js", "json", "jl", "kt", "lisp", "lua", "makefile",
    "md", "matlab", "mm", "ml", "pas", "pm", "php", "ps1", "prolog", "py", "r", "rb", "rs", "scala", "sh", "sql",
    "swift", "tex", "toml", "ts", "v", "vba", "xml", "yaml",
)
# fmt: on


class Guesslang(nn.Module):
    """Probabilities of languages, of shape [texts, 54].

    Takes the features of all texts one after the other, and for each text the place of its first one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.EmbeddingBag(NUM_BUCKETS, len(LANGUAGES), mode="sum")
        self.linear_bias = nn.Parameter(torch.zeros(len(LANGUAGES)))
        self.embedding = nn.EmbeddingBag(NUM_BUCKETS, 70, mode="mean")
        self.hidden = nn.ModuleList([nn.Linear(70, 512), nn.Linear(512, 32)])
        self.logits = nn.Linear(32, len(LANGUAGES))

    def forward(self, features: Tensor, offsets: Tensor) -> Tensor:
        deep = self.embedding(features, offsets)
        for layer in self.hidden:
            deep = layer(deep).relu()
        wide = self.linear(features, offsets) + self.linear_bias
        return (self.logits(deep) + wide).softmax(-1)


def features(text: bytes) -> Tensor:
    """The features of a text: a bucket for each pair of neighbouring bytes, as long as there are not too many."""
    pairs = itertools.pairwise(text[: MOST_FEATURES + 1])
    return torch.tensor([fingerprint(first, second) % NUM_BUCKETS for first, second in pairs], dtype=torch.int64)


def fingerprint(first: int, second: int) -> int:
    """Fingerprint64 of two bytes with a space between them."""
    space, length, mask = ord(" "), 3, 2**64 - 1
    mixed = ((first + (space << 8)) * 0x9AE16A3B2F90404F & mask) ^ (
        (length + (second << 2)) * 0xC3A5C85C97CB3127 & mask
    )
    return (mixed ^ mixed >> 47) * 0x9AE16A3B2F90404F & mask


def probabilities(net: Guesslang, texts: Iterable[bytes]) -> Tensor:
    """What the model says of texts."""
    bags = [features(text) for text in texts]
    offsets = torch.tensor([0] + [len(bag) for bag in bags[:-1]]).cumsum(0)
    with torch.no_grad():
        return net(torch.cat(bags), offsets)


def load(path: str | os.PathLike[str]) -> Guesslang:
    """The model with the values of a SavedModel or a checkpoint."""
    dense = (Rule("kernel", "weight", TRANSPOSED), Rule("bias", "bias"))
    inputs = "dnn/input_from_feature_columns/input_layer"
    rules = RuleSet(
        "Guesslang",
        (
            Rule("linear/linear_model/content/weights", "linear.weight"),
            Rule("linear/linear_model/bias_weights", "linear_bias"),
            Rule(f"{inputs}/content_embedding/embedding_weights", "embedding.weight"),
            Scope(r"dnn/hiddenlayer_(\d+)", "hidden.{1}", dense),
            Scope("dnn/logits", "logits", dense),
        ),
    )
    net = Guesslang()
    load_name_based(net, path, rules).assert_consumed()
    return net.eval()


def predict(net: Guesslang, stored: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """What the model says of the stored texts."""
    return {"scores": probabilities(net, stored["texts"].tolist())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, default=CORPUS / "sm2-guesslang-estimator")
    parser.add_argument("--file", nargs="+", type=Path, help="guess the language of these files")
    arguments = parser.parse_args()
    net = load(arguments.path)
    if arguments.file:
        names, texts = arguments.file, [file.read_bytes() for file in arguments.file]
    else:
        texts = np.load(CORPUS / "ported" / "guesslang.npz")["texts"].tolist()
        names = [text[:40] for text in texts]
    for name, row in zip(names, probabilities(net, texts), strict=True):
        best = row.topk(3)
        guesses = (f"{LANGUAGES[index]} {value:.1%}" for value, index in zip(*best, strict=True))
        print(f"{name!s:45} {', '.join(guesses)}")


if __name__ == "__main__":
    main()
