"""Layers: a few pure functions each, knowing nothing of learning rules."""

from linfb.engine.layers.activations import GELU, Erf, Identity, ReLU, Tanh
from linfb.engine.layers.attention import Attention
from linfb.engine.layers.batchnorm import BatchNorm
from linfb.engine.layers.bias import Bias
from linfb.engine.layers.branches import residual
from linfb.engine.layers.convolution import Conv2d
from linfb.engine.layers.dense import Dense
from linfb.engine.layers.dropout import Dropout, StochasticDepth
from linfb.engine.layers.embedding import ClassToken, PatchEmbedding, PositionalEmbedding, TakeToken, TokenEmbedding
from linfb.engine.layers.layernorm import LayerNorm
from linfb.engine.layers.pooling import Flatten, GlobalAveragePool, MaxPool2d

__all__ = [
    "GELU",
    "Attention",
    "BatchNorm",
    "Bias",
    "ClassToken",
    "Conv2d",
    "Dense",
    "Dropout",
    "Erf",
    "Flatten",
    "GlobalAveragePool",
    "Identity",
    "LayerNorm",
    "MaxPool2d",
    "PatchEmbedding",
    "PositionalEmbedding",
    "ReLU",
    "StochasticDepth",
    "TakeToken",
    "Tanh",
    "TokenEmbedding",
    "residual",
]
