"""A minimal array engine for nonlinear networks: layers as pure functions, any learning rule on each of them."""

from __future__ import annotations

from linfb.engine.architectures import mlp
from linfb.engine.layers import BatchNorm, Bias, Dense, ReLU
from linfb.engine.losses import cross_entropy, squared_error
from linfb.engine.models import Model
from linfb.engine.optimisers import Optimizers, adam, adamw, amsgrad, sgd
from linfb.engine.schedules import Constant, Cosine, Exponential
from linfb.engine.training import train

__all__ = [
    "BatchNorm", "Bias", "Constant", "Cosine", "Dense", "Exponential", "Model", "Optimizers", "ReLU", "adam", "adamw",
    "amsgrad", "cross_entropy", "mlp", "sgd", "squared_error", "train",
]  # fmt: skip
