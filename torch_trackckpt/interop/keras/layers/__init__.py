"""The rules of torch.nn: each module that computes what a Keras layer does, and keeps the same numbers."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.rnn import RNNCellBase

from torch_trackckpt.interop.keras.layers.attention import multihead_attention
from torch_trackckpt.interop.keras.layers.convolution import convolution, transposed_convolution
from torch_trackckpt.interop.keras.layers.dense import dense_after_flatten, embedding, linear
from torch_trackckpt.interop.keras.layers.normalization import (
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    prelu,
    rms_norm,
)
from torch_trackckpt.interop.keras.layers.preprocessing import normalization
from torch_trackckpt.interop.keras.layers.recurrent import recurrent, recurrent_cell, recurrent_parts
from torch_trackckpt.interop.keras.modules import KerasNormalization
from torch_trackckpt.interop.keras.registry import parts_of, register_keras_layer

__all__ = ["dense_after_flatten"]

register_keras_layer(nn.Linear, linear)
register_keras_layer(nn.Embedding, embedding)
register_keras_layer(nn.EmbeddingBag, embedding)
register_keras_layer(_ConvNd, convolution)
register_keras_layer(_ConvTransposeNd, transposed_convolution)
register_keras_layer(_BatchNorm, batch_norm)
register_keras_layer(_InstanceNorm, instance_norm)
register_keras_layer(nn.LayerNorm, layer_norm)
register_keras_layer(nn.GroupNorm, group_norm)
register_keras_layer(nn.RMSNorm, rms_norm)
register_keras_layer(nn.PReLU, prelu)
register_keras_layer(nn.RNNBase, recurrent)
parts_of.register(nn.RNNBase, recurrent_parts)
register_keras_layer(RNNCellBase, recurrent_cell)
register_keras_layer(nn.MultiheadAttention, multihead_attention)
register_keras_layer(KerasNormalization, normalization)
