"""A minimal array engine for nonlinear networks: layers as pure functions, any learning rule on each of them."""

from __future__ import annotations

from linfb.engine import layers
from linfb.engine.architectures import decoder, mlp, resnet18, resnet20, retina, vgg_like, vit
from linfb.engine.costs import cost
from linfb.engine.ensembles import Member, grid, train_ensemble
from linfb.engine.layers import *  # noqa: F403 - every layer, as the package of layers lists them
from linfb.engine.losses import cross_entropy, squared_error
from linfb.engine.models import Model
from linfb.engine.optimisers import Optimizers, adam, adamw, amsgrad, muon, rmsprop, sgd
from linfb.engine.schedules import Constant, Cosine, Exponential, Step, Warmup
from linfb.engine.training import train

__all__ = [
    *layers.__all__, "Constant", "Cosine", "Exponential", "Member", "Model", "Optimizers", "Step", "Warmup", "adam",
    "adamw", "amsgrad", "cost", "cross_entropy", "decoder", "grid", "mlp", "muon", "resnet18", "resnet20", "retina",
    "rmsprop", "sgd", "squared_error", "train", "train_ensemble", "vgg_like", "vit",
]  # fmt: skip
