"""Layers of Keras and of Sonnet, each with the module of torch that computes the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

from torch_trackckpt.interop.keras import KerasBatchNorm1d, KerasBatchNorm2d, KerasNormalization, dense_after_flatten
from torch_trackckpt.interop.keras.registry import Rule

Run = Callable[[nn.Module, Sequence[torch.Tensor]], torch.Tensor]


def plain(module: nn.Module, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return module(*inputs)


def channels_first(module: nn.Module, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return module(inputs[0].movedim(-1, 1)).movedim(1, -1)


def sequences(module: nn.Module, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return module(inputs[0])[0]


def cell(module: nn.Module, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    states = module(inputs[0], tuple(inputs[1:]) if len(inputs) == 3 else inputs[1])
    return states[0] if isinstance(states, tuple) else states


def attention(module: nn.Module, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    query, value, key = inputs
    return module(query, key, value, need_weights=False)[0]


def four_linears(heads: int, key_heads: int) -> Run:
    def run(parts: nn.Module, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        assert isinstance(parts, nn.ModuleDict)
        query, value, key = inputs
        split = [
            parts[name](tensor).unflatten(-1, (count, -1)).transpose(1, 2)
            for name, tensor, count in (("query", query, heads), ("key", key, key_heads), ("value", value, key_heads))
        ]
        grouped = [tensor.repeat_interleave(heads // tensor.shape[1], dim=1) for tensor in split]
        return parts["output"](functional.scaled_dot_product_attention(*grouped).transpose(1, 2).flatten(2))

    return run


def separable(parts: nn.Module, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    assert isinstance(parts, nn.ModuleDict)
    return parts["pointwise"](parts["depthwise"](inputs[0].movedim(-1, 1))).movedim(1, -1)


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer of Keras, and the module that it is."""

    layer: str
    inputs: Sequence[tuple[int, ...]]
    module: Callable[[], nn.Module]
    run: Run = plain
    generations: Sequence[str] = ("keras3", "tf_keras")
    call: str = "layer(*inputs)"
    rule: Rule | None = None
    integers: bool = False
    from_template: bool = False
    """A module that is another layer where no checkpoint says."""


SONNET = ("sonnet",)
KERAS_2, KERAS_3 = ("tf_keras",), ("keras3",)
ATTENTION = "layer(inputs[0], inputs[1], key=inputs[2])"
IMAGE, SEQUENCE = (2, 7, 6, 4), (2, 5, 3)

CASES: Mapping[str, Case] = {
    "dense": Case("layers.Dense(4)", [(2, 3)], lambda: nn.Linear(3, 4)),
    "dense of rank 3": Case("layers.Dense(4)", [SEQUENCE], lambda: nn.Linear(3, 4)),
    "dense without bias": Case("layers.Dense(4, use_bias=False)", [(2, 3)], lambda: nn.Linear(3, 4)),
    "dense after flatten": Case(
        "layers.Dense(5)",
        [(2, 24)],
        lambda: nn.Linear(24, 5),
        lambda module, inputs: module(inputs[0].reshape(2, 2, 3, 4).movedim(-1, 1).flatten(1)),
        rule=dense_after_flatten((2, 3, 4)),
    ),
    "einsum": Case("layers.EinsumDense('abc,cd->abd', (None, 4), bias_axes='d')", [SEQUENCE], lambda: nn.Linear(3, 4)),
    "einsum, outputs apart": Case(
        "layers.EinsumDense('abc,cde->abde', (None, 2, 4), bias_axes='de')",
        [SEQUENCE],
        lambda: nn.Linear(3, 8),
        lambda module, inputs: module(inputs[0]).unflatten(-1, (2, 4)),
        from_template=True,
    ),
    "einsum, inputs apart": Case(
        "layers.EinsumDense('abde,dec->abc', (None, 4), bias_axes='c')",
        [(2, 5, 2, 3)],
        lambda: nn.Linear(6, 4),
        lambda module, inputs: module(inputs[0].flatten(2)),
        from_template=True,
    ),
    "dense at each time": Case(
        "layers.TimeDistributed(layers.Dense(4))", [SEQUENCE], lambda: nn.Linear(3, 4), from_template=True
    ),
    "convolution at each time": Case(
        "layers.TimeDistributed(layers.Conv1D(4, 2))",
        [(2, 3, 5, 3)],
        lambda: nn.Conv1d(3, 4, 2),
        lambda module, inputs: module(inputs[0].flatten(0, 1).movedim(-1, 1)).movedim(1, -1).unflatten(0, (2, 3)),
        from_template=True,
    ),
    "embedding": Case("layers.Embedding(9, 4)", [(2, 5)], lambda: nn.Embedding(9, 4), integers=True),
    "convolution 1": Case("layers.Conv1D(4, 3, strides=2)", [(2, 9, 3)], lambda: nn.Conv1d(3, 4, 3, 2), channels_first),
    "convolution 2": Case(
        "layers.Conv2D(5, (5, 3), padding='same')",
        [IMAGE],
        lambda: nn.Conv2d(4, 5, (5, 3), padding="same"),
        channels_first,
    ),
    "convolution 3": Case("layers.Conv3D(4, 2)", [(2, 4, 3, 5, 3)], lambda: nn.Conv3d(3, 4, 2), channels_first),
    "causal convolution": Case(
        "layers.Conv1D(4, 3, dilation_rate=2, padding='causal')",
        [(2, 9, 3)],
        lambda: nn.Conv1d(3, 4, 3, dilation=2),
        lambda module, inputs: module(functional.pad(inputs[0].movedim(-1, 1), (4, 0))).movedim(1, -1),
    ),
    "grouped convolution": Case(
        "layers.Conv2D(6, 3, groups=2)", [IMAGE], lambda: nn.Conv2d(4, 6, 3, groups=2), channels_first
    ),
    "convolution with a group for each channel": Case(
        "layers.Conv2D(8, 3, groups=4)",
        [IMAGE],
        lambda: nn.Conv2d(4, 8, 3, groups=4),
        channels_first,
        from_template=True,
    ),
    "depthwise 1": Case(
        "layers.DepthwiseConv1D(3, depth_multiplier=2)",
        [(2, 9, 3)],
        lambda: nn.Conv1d(3, 6, 3, groups=3),
        channels_first,
    ),
    "depthwise 2": Case(
        "layers.DepthwiseConv2D((3, 2), depth_multiplier=2)",
        [IMAGE],
        lambda: nn.Conv2d(4, 8, (3, 2), groups=4),
        channels_first,
    ),
    "separable 1": Case(
        "layers.SeparableConv1D(5, 3, depth_multiplier=2)",
        [(2, 9, 3)],
        lambda: nn.ModuleDict({"depthwise": nn.Conv1d(3, 6, 3, groups=3, bias=False), "pointwise": nn.Conv1d(6, 5, 1)}),
        separable,
        from_template=True,
    ),
    "separable 2": Case(
        "layers.SeparableConv2D(5, 3, depth_multiplier=2)",
        [IMAGE],
        lambda: nn.ModuleDict({"depthwise": nn.Conv2d(4, 8, 3, groups=4, bias=False), "pointwise": nn.Conv2d(8, 5, 1)}),
        separable,
        from_template=True,
    ),
    "separable of one channel": Case(
        "layers.SeparableConv2D(5, 3)",
        [(2, 7, 6, 1)],
        lambda: nn.ModuleDict({"depthwise": nn.Conv2d(1, 1, 3, bias=False), "pointwise": nn.Conv2d(1, 5, 1)}),
        separable,
        from_template=True,
    ),
    "transposed 1": Case(
        "layers.Conv1DTranspose(4, 3, strides=2)",
        [(2, 5, 3)],
        lambda: nn.ConvTranspose1d(3, 4, 3, 2),
        channels_first,
    ),
    "transposed 2": Case(
        "layers.Conv2DTranspose(5, (3, 2), strides=2)",
        [IMAGE],
        lambda: nn.ConvTranspose2d(4, 5, (3, 2), 2),
        channels_first,
    ),
    "transposed 3": Case(
        "layers.Conv3DTranspose(4, 2)", [(2, 4, 3, 5, 3)], lambda: nn.ConvTranspose3d(3, 4, 2), channels_first
    ),
    "batch norm of rank 2": Case("layers.BatchNormalization()", [(4, 3)], lambda: nn.BatchNorm1d(3, eps=1e-3)),
    "batch norm of rank 3": Case(
        "layers.BatchNormalization()", [SEQUENCE], lambda: nn.BatchNorm1d(3, eps=1e-3), channels_first
    ),
    "batch norm of rank 4": Case(
        "layers.BatchNormalization()", [IMAGE], lambda: nn.BatchNorm2d(4, eps=1e-3), channels_first
    ),
    "batch norm of rank 5": Case(
        "layers.BatchNormalization()", [(2, 4, 3, 5, 3)], lambda: nn.BatchNorm3d(3, eps=1e-3), channels_first
    ),
    "batch norm without scale": Case(
        "layers.BatchNormalization(scale=False)", [IMAGE], lambda: nn.BatchNorm2d(4, eps=1e-3), channels_first
    ),
    "batch norm without center": Case(
        "layers.BatchNormalization(center=False)", [IMAGE], lambda: nn.BatchNorm2d(4, eps=1e-3), channels_first
    ),
    "batch norm without both": Case(
        "layers.BatchNormalization(center=False, scale=False)",
        [IMAGE],
        lambda: nn.BatchNorm2d(4, eps=1e-3, affine=False),
        channels_first,
    ),
    "layer norm": Case("layers.LayerNormalization()", [SEQUENCE], lambda: nn.LayerNorm(3, eps=1e-3)),
    "layer norm over channels-last axes": Case(
        "layers.LayerNormalization(axis=[1, 2, 3])", [IMAGE], lambda: nn.LayerNorm((7, 6, 4), eps=1e-3)
    ),
    "layer norm over channels-first axes": Case(
        "layers.LayerNormalization(axis=[1, 2, 3])",
        [IMAGE],
        lambda: nn.LayerNorm((4, 7, 6), eps=1e-3),
        channels_first,
        from_template=True,
    ),
    "layer norm without center": Case(
        "layers.LayerNormalization(center=False)", [SEQUENCE], lambda: nn.LayerNorm(3, eps=1e-3)
    ),
    "layer norm without scale": Case(
        "layers.LayerNormalization(scale=False)", [SEQUENCE], lambda: nn.LayerNorm(3, eps=1e-3)
    ),
    "group norm": Case("layers.GroupNormalization(2)", [IMAGE], lambda: nn.GroupNorm(2, 4, eps=1e-3), channels_first),
    "instance norm": Case(
        "layers.GroupNormalization(-1)",
        [IMAGE],
        lambda: nn.InstanceNorm2d(4, eps=1e-3, affine=True),
        channels_first,
    ),
    "rms norm": Case("layers.RMSNormalization()", [SEQUENCE], lambda: nn.RMSNorm(3, eps=1e-6), generations=KERAS_3),
    "prelu of rank 2": Case("layers.PReLU()", [(2, 3)], lambda: nn.PReLU(3)),
    "prelu, shared over time": Case(
        "layers.PReLU(shared_axes=[1])", [SEQUENCE], lambda: nn.PReLU(3), channels_first, from_template=True
    ),
    "prelu, shared over space": Case(
        "layers.PReLU(shared_axes=[1, 2])", [IMAGE], lambda: nn.PReLU(4), channels_first, from_template=True
    ),
    "lstm": Case(
        "layers.LSTM(4, return_sequences=True)", [SEQUENCE], lambda: nn.LSTM(3, 4, batch_first=True), sequences
    ),
    "lstm without bias": Case(
        "layers.LSTM(4, return_sequences=True, use_bias=False)",
        [SEQUENCE],
        lambda: nn.LSTM(3, 4, batch_first=True, bias=False),
        sequences,
    ),
    "lstm without bias for a module with one": Case(
        "layers.LSTM(4, return_sequences=True, use_bias=False)",
        [SEQUENCE],
        lambda: nn.LSTM(3, 4, batch_first=True),
        sequences,
    ),
    "rnn of an lstm cell": Case(
        "layers.RNN(layers.LSTMCell(4), return_sequences=True)",
        [SEQUENCE],
        lambda: nn.LSTM(3, 4, batch_first=True),
        sequences,
    ),
    "gru": Case("layers.GRU(4, return_sequences=True)", [SEQUENCE], lambda: nn.GRU(3, 4, batch_first=True), sequences),
    "gru without bias": Case(
        "layers.GRU(4, return_sequences=True, use_bias=False)",
        [SEQUENCE],
        lambda: nn.GRU(3, 4, batch_first=True, bias=False),
        sequences,
    ),
    "simple rnn": Case(
        "layers.SimpleRNN(4, return_sequences=True)", [SEQUENCE], lambda: nn.RNN(3, 4, batch_first=True), sequences
    ),
    "simple rnn with relu": Case(
        "layers.SimpleRNN(4, activation='relu', return_sequences=True)",
        [SEQUENCE],
        lambda: nn.RNN(3, 4, batch_first=True, nonlinearity="relu"),
        sequences,
    ),
    "bidirectional lstm": Case(
        "layers.Bidirectional(layers.LSTM(4, return_sequences=True))",
        [SEQUENCE],
        lambda: nn.LSTM(3, 4, batch_first=True, bidirectional=True),
        sequences,
    ),
    "bidirectional gru": Case(
        "layers.Bidirectional(layers.GRU(4, return_sequences=True))",
        [SEQUENCE],
        lambda: nn.GRU(3, 4, batch_first=True, bidirectional=True),
        sequences,
    ),
    "two lstms": Case(
        "Pair(layers.LSTM(4, return_sequences=True), layers.LSTM(4, return_sequences=True))",
        [SEQUENCE],
        lambda: nn.LSTM(3, 4, 2, batch_first=True),
        sequences,
        from_template=True,
    ),
    "two bidirectional grus": Case(
        "Pair(*(layers.Bidirectional(layers.GRU(4, return_sequences=True)) for _ in range(2)))",
        [SEQUENCE],
        lambda: nn.GRU(3, 4, 2, batch_first=True, bidirectional=True),
        sequences,
        from_template=True,
    ),
    "rnn of two lstm cells": Case(
        "layers.RNN([layers.LSTMCell(4), layers.LSTMCell(4)], return_sequences=True)",
        [SEQUENCE],
        lambda: nn.LSTM(3, 4, 2, batch_first=True),
        sequences,
        KERAS_2,
        from_template=True,
    ),
    "lstm cell": Case(
        "layers.LSTMCell(4)",
        [(2, 3), (2, 4), (2, 4)],
        lambda: nn.LSTMCell(3, 4),
        cell,
        call="layer(inputs[0], inputs[1:])[0]",
    ),
    "gru cell": Case("layers.GRUCell(4)", [(2, 3), (2, 4)], lambda: nn.GRUCell(3, 4), cell, call="layer(*inputs)[0]"),
    "simple rnn cell": Case(
        "layers.SimpleRNNCell(4)", [(2, 3), (2, 4)], lambda: nn.RNNCell(3, 4), cell, call="layer(*inputs)[0]"
    ),
    "lstm, step by step": Case(
        "layers.LSTM(4)",
        [(2, 1, 3), (2, 4), (2, 4)],
        lambda: nn.LSTMCell(3, 4),
        lambda module, inputs: cell(module, [inputs[0][:, 0], *inputs[1:]]),
        call="layer(inputs[0], initial_state=inputs[1:])",
        from_template=True,
    ),
    "attention": Case(
        "layers.MultiHeadAttention(2, 4)",
        [(2, 5, 8), (2, 6, 8), (2, 6, 8)],
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        attention,
        call=ATTENTION,
    ),
    "attention without bias": Case(
        "layers.MultiHeadAttention(2, 4, use_bias=False)",
        [(2, 5, 8), (2, 6, 8), (2, 6, 8)],
        lambda: nn.MultiheadAttention(8, 2, bias=False, batch_first=True),
        attention,
        call=ATTENTION,
    ),
    "attention to other widths": Case(
        "layers.MultiHeadAttention(2, 4)",
        [(2, 5, 8), (2, 6, 7), (2, 6, 3)],
        lambda: nn.MultiheadAttention(8, 2, kdim=3, vdim=7, batch_first=True),
        attention,
        call=ATTENTION,
    ),
    "attention as four linears": Case(
        "layers.MultiHeadAttention(2, 3, value_dim=5, output_shape=6)",
        [(2, 5, 8), (2, 6, 7), (2, 6, 4)],
        lambda: nn.ModuleDict(
            {"query": nn.Linear(8, 6), "key": nn.Linear(4, 6), "value": nn.Linear(7, 10), "output": nn.Linear(10, 6)}
        ),
        four_linears(2, 2),
        call=ATTENTION,
        from_template=True,
    ),
    "grouped attention as four linears": Case(
        "layers.GroupQueryAttention(3, 4, 2)",
        [(2, 5, 8), (2, 6, 8), (2, 6, 8)],
        lambda: nn.ModuleDict(
            {"query": nn.Linear(8, 12), "key": nn.Linear(8, 6), "value": nn.Linear(8, 6), "output": nn.Linear(12, 8)}
        ),
        four_linears(4, 2),
        KERAS_3,
        call=ATTENTION,
        from_template=True,
    ),
    "normalization": Case("layers.Normalization()", [(2, 3)], lambda: KerasNormalization([3])),
    "spectral normalization": Case(
        "layers.SpectralNormalization(layers.Dense(4))",
        [(2, 3)],
        lambda: nn.Linear(3, 4),
        generations=KERAS_3,
        from_template=True,
    ),
    "spectral normalization of a convolution": Case(
        "layers.SpectralNormalization(layers.Conv2D(4, 3))",
        [IMAGE],
        lambda: nn.Conv2d(4, 4, 3),
        channels_first,
        KERAS_3,
        from_template=True,
    ),
    "sonnet linear": Case("snt.Linear(4)", [(2, 3)], lambda: nn.Linear(3, 4), generations=SONNET),
    "sonnet linear after flatten": Case(
        "snt.Linear(5)",
        [(2, 24)],
        lambda: nn.Linear(24, 5),
        lambda module, inputs: module(inputs[0].reshape(2, 2, 3, 4).movedim(-1, 1).flatten(1)),
        SONNET,
        rule=dense_after_flatten((2, 3, 4)),
    ),
    "sonnet convolution": Case(
        "snt.Conv2D(5, 3, padding='VALID')", [IMAGE], lambda: nn.Conv2d(4, 5, 3), channels_first, SONNET
    ),
    "sonnet depthwise convolution": Case(
        "snt.DepthwiseConv2D(3, channel_multiplier=2, padding='VALID')",
        [IMAGE],
        lambda: nn.Conv2d(4, 8, 3, groups=4),
        channels_first,
        SONNET,
    ),
    "sonnet transposed convolution": Case(
        "snt.Conv2DTranspose(5, 3, (15, 13), stride=2, padding='VALID')",
        [IMAGE],
        lambda: nn.ConvTranspose2d(4, 5, 3, 2),
        channels_first,
        SONNET,
    ),
    "sonnet embed": Case("snt.Embed(9, 4)", [(2, 5)], lambda: nn.Embedding(9, 4), generations=SONNET, integers=True),
    "sonnet layer norm": Case(
        "snt.LayerNorm(-1, True, True, eps=1e-5)", [SEQUENCE], lambda: nn.LayerNorm(3), generations=SONNET
    ),
    "sonnet batch norm": Case(
        "snt.BatchNorm(True, True, eps=1e-5)",
        [IMAGE],
        lambda: nn.BatchNorm2d(4),
        channels_first,
        SONNET,
        "layer(*inputs, is_training=False)",
    ),
    "sonnet batch norm of rank 2": Case(
        "snt.BatchNorm(True, True, eps=1e-5)",
        [(4, 3)],
        lambda: nn.BatchNorm1d(3),
        plain,
        SONNET,
        "layer(*inputs, is_training=False)",
    ),
    "sonnet lstm": Case(
        "snt.LSTM(4)",
        [(2, 3), (2, 4), (2, 4)],
        lambda: nn.LSTMCell(3, 4),
        cell,
        SONNET,
        "layer(inputs[0], snt.LSTMState(*inputs[1:]))[0]",
    ),
    "sonnet lstm with a projection": Case(
        "snt.LSTM(4, projection_size=2)",
        [(2, 3), (2, 2), (2, 4)],
        lambda: nn.LSTM(3, 4, proj_size=2),
        lambda module, inputs: module(inputs[0][None], (inputs[1][None], inputs[2][None]))[0][0],
        SONNET,
        "layer(inputs[0], snt.LSTMState(*inputs[1:]))[0]",
    ),
    "sonnet lstm over a sequence": Case(
        "snt.UnrolledLSTM(4)",
        [(5, 2, 3)],
        lambda: nn.LSTM(3, 4),
        sequences,
        SONNET,
        "layer(*inputs, layer.initial_state(2))[0]",
    ),
    "sonnet rnn": Case(
        "snt.VanillaRNN(4)", [(2, 3), (2, 4)], lambda: nn.RNNCell(3, 4), cell, SONNET, "layer(*inputs)[0]"
    ),
}

# A step of training. Keras 2 takes the variance of images as torch does, all others are biased.
TRAINED: Mapping[str, Case] = {
    "batch norm of rank 2, trained": Case(
        "layers.BatchNormalization(momentum=0.9)",
        [(6, 3)],
        lambda: KerasBatchNorm1d(3, eps=1e-3, momentum=0.1),
        call="layer(*inputs, training=True)",
    ),
    "batch norm of rank 4, trained": Case(
        "layers.BatchNormalization(momentum=0.9)",
        [IMAGE],
        lambda: KerasBatchNorm2d(4, eps=1e-3, momentum=0.1),
        channels_first,
        KERAS_3,
        "layer(*inputs, training=True)",
    ),
    "batch norm of rank 4, trained by Keras 2": Case(
        "layers.BatchNormalization(momentum=0.9)",
        [IMAGE],
        lambda: nn.BatchNorm2d(4, eps=1e-3, momentum=0.1),
        channels_first,
        KERAS_2,
        "layer(*inputs, training=True)",
    ),
}

# Layers that a module seems to be and is not, with words of the reason.
REFUSED: Mapping[str, tuple[Case, str]] = {
    "gru that resets before": (
        Case("layers.GRU(4, reset_after=False)", [SEQUENCE], lambda: nn.GRU(3, 4)),
        r"bias of shape \[12\] is that of reset_after=False",
    ),
    "grouped attention": (
        Case(
            "layers.GroupQueryAttention(2, 4, 2)",
            [(2, 5, 8)] * 3,
            lambda: nn.MultiheadAttention(8, 4),
            generations=KERAS_3,
            call=ATTENTION,
        ),
        "4 heads share 2 keys and values",
    ),
    "prelu of each position": (
        Case("layers.PReLU()", [IMAGE], lambda: nn.PReLU(4)),
        r"alpha of shape \[7, 6, 4\] has a slope for each position",
    ),
    "low-rank dense": (
        Case("layers.Dense(4, lora_rank=2)", [(2, 3)], lambda: nn.Linear(3, 4), generations=KERAS_3),
        "alpha is not stored",
    ),
    "deviation around the mean": (
        Case(
            "layers.LayerNormalization(rms_scaling=True)",
            [SEQUENCE],
            lambda: nn.RMSNorm(3),
            generations=KERAS_3,
        ),
        "around the mean",
    ),
    "cells in both directions": (
        Case(
            "layers.RNN([layers.LSTMCell(4), layers.LSTMCell(4)])",
            [SEQUENCE],
            lambda: nn.LSTM(3, 4, 2, bidirectional=True),
            generations=KERAS_2,
        ),
        "one Bidirectional layer for each",
    ),
    "sonnet gru": (
        Case(
            "snt.GRU(4)",
            [(2, 3), (2, 4)],
            lambda: nn.GRUCell(3, 4),
            generations=SONNET,
            call="layer(*inputs)[0]",
        ),
        "before the matrix product",
    ),
}
