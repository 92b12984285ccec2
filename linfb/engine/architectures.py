"""Architectures: the networks of the paper and of its readers' questions, each a plain tuple of layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from linfb._checks import choice, integer
from linfb.engine.layers import (
    GELU,
    Attention,
    BatchNorm,
    Bias,
    ClassToken,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool,
    LayerNorm,
    MaxPool2d,
    PatchEmbedding,
    PositionalEmbedding,
    ReLU,
    StochasticDepth,
    TakeToken,
    TokenEmbedding,
    residual,
)  # fmt: skip
from linfb.engine.models import Model

__all__ = ["decoder", "mlp", "resnet18", "resnet20", "retina", "vgg_like", "vit"]

NORMS: dict[str, Any] = {"batch": BatchNorm}


def _norm(norm: str | None) -> Any:
    """Return the kind of layer that stands before a ReLU."""
    return Bias if norm is None else NORMS[choice("norm", norm, NORMS)]


def _sizes(name: str, values: Any) -> list[int]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a sequence of widths, got {values!r}")
    return [integer(name, value, at_least=1) for value in values]


def _image(shape: Any) -> tuple[int, int, int]:
    sizes = _sizes("shape", shape)
    if len(sizes) != 3:
        raise ValueError(f"shape must be that of an image, (height, width, channel), got {shape}")
    return sizes[0], sizes[1], sizes[2]


def mlp(n_in: int, widths: Sequence[int], n_out: int, *, norm: str | None = "batch") -> Model:
    """Return a multilayer perceptron: dense, normalisation and ReLU for each hidden layer, then dense and bias.

    Parameters
    ----------
    n_in : int
        Width of the input.
    widths : sequence of int
        Widths of the hidden layers.
    n_out : int
        Number of outputs (classes).
    norm : {"batch", None}
        Normalisation before each ReLU; None puts a bias there.

    Examples
    --------
    >>> [type(layer).__name__ for layer in mlp(64, (32,), 10).layers]
    ['Dense', 'BatchNorm', 'ReLU', 'Dense', 'Bias']
    """
    middle = _norm(norm)
    layers: list[Any] = []
    for below, width in pairwise(sizes := [integer("n_in", n_in, at_least=1), *_sizes("widths", widths)]):
        layers += [Dense(below, width), middle(width), ReLU()]
    return Model((*layers, Dense(sizes[-1], integer("n_out", n_out, at_least=1)), Bias(n_out)))


def _convolved(n_in: int, n_out: int, size: int = 3, stride: int = 1, *, norm: str | None = "batch") -> tuple[Any, ...]:
    """Return a convolution that keeps the image's size (over the stride), and its normalisation."""
    return Conv2d(n_in, n_out, size, stride=stride, padding=size // 2), _norm(norm)(n_out)


def vgg_like(
    shape: Sequence[int],
    n_out: int,
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    dense: int = 256,
    dropout: float = 0.4,
    norm: str | None = "batch",
) -> Model:
    """Return the paper's convolutional network: pairs of 3x3 convolutions, pooled between, then two dense layers.

    64-64-pool-128-128-pool-256-256-pool-512-512, each with batch normalisation and ReLU, global average pool, dense
    256 with ReLU and dropout, dense `n_out`.

    Parameters
    ----------
    shape : (height, width, channel)
        Of an image.
    n_out : int
        Number of classes.
    widths : sequence of int
        Channels of each pair of convolutions.
    dense : int
        Width of the hidden dense layer.
    dropout : float
        Share of its units that is dropped.
    norm : {"batch", None}
        Normalisation before each ReLU of the convolutions; None puts a bias there.

    References
    ----------
    :cite:t:`hanut2025`, after :cite:t:`simonyan2015`.

    Examples
    --------
    >>> vgg_like((32, 32, 3), 10).kernels
    (0, 3, 7, 10, 14, 17, 21, 24, 28, 32)
    """
    below = _image(shape)[2]
    layers: list[Any] = []
    for i, width in enumerate(_sizes("widths", widths)):
        layers += [MaxPool2d(2)] if i else []
        for n_in in (below, width):
            layers += [*_convolved(n_in, width, norm=norm), ReLU()]
        below = width
    head = (Dense(below, dense), Bias(dense), ReLU(), Dropout(dropout), Dense(dense, n_out), Bias(n_out))
    return Model((*layers, GlobalAveragePool(), *head), _image(shape))


def _resnet(shape: Sequence[int], n_out: int, widths: Sequence[int], blocks: int) -> Model:
    """Return a residual network for small images: a 3x3 stem, then stages of blocks of two 3x3 convolutions."""
    below = widths[0]
    layers: list[Any] = [*_convolved(_image(shape)[2], below), ReLU()]
    for i, width in enumerate(widths):
        for j in range(blocks):
            stride = 2 if i and not j else 1
            branch = (*_convolved(below, width, stride=stride), ReLU(), *_convolved(width, width))
            shortcut = _convolved(below, width, size=1, stride=stride) if stride > 1 else ()
            layers += [*residual(*branch, shortcut=shortcut), ReLU()]
            below = width
    return Model((*layers, GlobalAveragePool(), Dense(below, n_out), Bias(n_out)), _image(shape))


def resnet18(shape: Sequence[int], n_out: int, *, width: int = 64) -> Model:
    """Return ResNet-18 for small images: stem of 3x3 without pooling, four stages of two blocks.

    Parameters
    ----------
    shape : (height, width, channel)
        Of an image.
    n_out : int
        Number of classes.
    width : int
        Channels of the first stage; they double from stage to stage.

    References
    ----------
    :cite:t:`he2016`.

    Examples
    --------
    >>> len(resnet18((32, 32, 3), 10).kernels)
    21
    """
    integer("width", width, at_least=1)
    return _resnet(shape, n_out, [width, 2 * width, 4 * width, 8 * width], 2)


def resnet20(shape: Sequence[int], n_out: int, *, width: int = 16) -> Model:
    """Return ResNet-20: three stages of three blocks, 16, 32 and 64 channels.

    Shortcuts between stages are 1x1 convolutions with batch normalisation (the original pads with zeros).

    Parameters
    ----------
    shape : (height, width, channel)
        Of an image.
    n_out : int
        Number of classes.
    width : int
        Channels of the first stage; they double from stage to stage.

    References
    ----------
    :cite:t:`he2016`.

    Examples
    --------
    >>> len(resnet20((32, 32, 3), 10).kernels)
    22
    """
    integer("width", width, at_least=1)
    return _resnet(shape, n_out, [width, 2 * width, 4 * width], 3)


def _blocks(
    width: int, depth: int, heads: int, mlp_ratio: int, dropout: float, drop_path: float, *, causal: bool
) -> tuple[Any, ...]:
    """Return transformer blocks with the normalisation in front: attention, then two dense layers, each residual."""
    hidden = mlp_ratio * width
    layers: list[Any] = []
    for _ in range(integer("depth", depth, at_least=1)):
        attend = (Dense(width, 3 * width, blocks=3), Bias(3 * width), Attention(width, heads, causal=causal))
        last = (Dropout(dropout), StochasticDepth(drop_path))
        layers += residual(LayerNorm(width), *attend, Dense(width, width), Bias(width), *last)
        expand = (Dense(width, hidden), Bias(hidden), GELU(), Dropout(dropout))
        layers += residual(LayerNorm(width), *expand, Dense(hidden, width), Bias(width), *last)
    return tuple(layers)


def vit(
    shape: Sequence[int],
    n_out: int,
    *,
    patch: int = 4,
    width: int = 384,
    depth: int = 8,
    heads: int = 8,
    mlp_ratio: int = 2,
    dropout: float = 0.1,
    drop_path: float = 0.1,
) -> Model:
    """Return a vision transformer, by default the paper's: patches, class token, blocks, readout of the class token.

    Parameters
    ----------
    shape : (height, width, channel)
        Of an image.
    n_out : int
        Number of classes.
    patch : int
        Side of a patch.
    width, depth, heads : int
        Features of a token, number of blocks, number of attention heads.
    mlp_ratio : int
        Hidden width of a block's dense layers over `width`.
    dropout, drop_path : float
        Rates of dropout (after the embedding and in every branch) and of stochastic depth (the same in every block).

    References
    ----------
    :cite:t:`dosovitskiy2021`; its sizes and rates as in :cite:t:`hanut2025`.

    Examples
    --------
    >>> model = vit((32, 32, 3), 10)
    >>> len(model.kernels), model.shapes[3]
    (34, (65, 384))
    """
    image = _image(shape)
    embed = PatchEmbedding(image, patch, width)
    tokens = embed.out_shape(image)[0] + 1
    start = (embed, Bias(width), ClassToken(width), PositionalEmbedding(tokens, width), Dropout(dropout))
    blocks = _blocks(width, depth, heads, mlp_ratio, dropout, drop_path, causal=False)
    return Model((*start, *blocks, LayerNorm(width), TakeToken(), Dense(width, n_out), Bias(n_out)), image)


def retina(
    shape: Sequence[int],
    n_out: int,
    *,
    width: int = 32,
    bottleneck: int = 32,
    size: int = 9,
    ventral: int = 3,
    dense: int = 1024,
    dropout: float = 0.5,
    norm: str | None = None,
) -> Model:
    """Return the model of retina and ventral stream: two convolutions, a bottleneck between, more convolutions, dense.

    The retina is two layers, the second with `bottleneck` channels (the optic nerve); the ventral stream is `ventral`
    layers. The channel into the retina's output is that of kernel layer 2.

    Parameters
    ----------
    shape : (height, width, channel)
        Of an image.
    n_out : int
        Number of classes.
    width : int
        Channels of every other convolution.
    bottleneck : int
        Channels of the retina's output.
    size : int
        Side of all kernels.
    ventral : int
        Number of convolutions of the ventral stream.
    dense : int
        Width of the hidden dense layer.
    dropout : float
        Share of its units that is dropped.
    norm : {None, "batch"}
        Normalisation before each ReLU of the convolutions.

    References
    ----------
    :cite:t:`lindsey2019`, :cite:t:`hanut2025`.

    Examples
    --------
    >>> [retina((32, 32, 1), 10, bottleneck=4).shapes[i] for i in (3, 6)]
    [(32, 32, 32), (32, 32, 4)]
    """
    image, channels = _image(shape), [width, bottleneck, *[width] * integer("ventral", ventral, at_least=1)]
    layers: list[Any] = []
    for n_in, channel in pairwise([image[2], *channels]):
        layers += [*_convolved(n_in, channel, size=size, norm=norm), ReLU()]
    pixels = image[0] * image[1] * width
    head = (Dense(pixels, dense), Bias(dense), ReLU(), Dropout(dropout), Dense(dense, n_out), Bias(n_out))
    return Model((*layers, Flatten(), *head), image)


def decoder(
    length: int,
    n_tokens: int,
    *,
    width: int = 128,
    depth: int = 2,
    heads: int = 4,
    mlp_ratio: int = 4,
    dropout: float = 0.0,
) -> Model:
    """Return a small causal language model: token and position embedding, blocks, readout of the next token.

    Parameters
    ----------
    length : int
        Number of tokens of a sample.
    n_tokens : int
        Size of the vocabulary.
    width, depth, heads : int
        Features of a token, number of blocks, number of attention heads.
    mlp_ratio : int
        Hidden width of a block's dense layers over `width`.
    dropout : float
        After the embedding and in every branch.

    References
    ----------
    :cite:t:`vaswani2017`.

    Examples
    --------
    >>> decoder(16, 30, depth=1).shapes[-1]
    (16, 30)
    """
    start = (TokenEmbedding(n_tokens, width), PositionalEmbedding(length, width), Dropout(dropout))
    blocks = _blocks(width, depth, heads, mlp_ratio, dropout, 0.0, causal=True)
    return Model((*start, *blocks, LayerNorm(width), Dense(width, n_tokens), Bias(n_tokens)), (length,))
