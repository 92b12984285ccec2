"""Layers: a few pure functions each, knowing nothing of learning rules."""

from linfb.engine.layers.batchnorm import BatchNorm
from linfb.engine.layers.bias import Bias
from linfb.engine.layers.dense import Dense
from linfb.engine.layers.relu import ReLU

__all__ = ["BatchNorm", "Bias", "Dense", "ReLU"]
