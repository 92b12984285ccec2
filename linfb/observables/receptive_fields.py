"""Numbers for receptive fields: how oriented they are, how much like centre and surround, and what is chance."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from linfb._checks import integer, real, real_array
from linfb.backend import stream

__all__ = [
    "CentreSurround", "Orientedness", "bar_responses", "centre_surround", "orientedness", "random_fields", "smoothness",
]  # fmt: skip

_WIDTHS = 10
"""How many widths of Gaussians the search for the best difference of Gaussians begins with."""


class Orientedness(NamedTuple):
    """What :func:`orientedness` returns.

    Attributes
    ----------
    ratio : numpy.ndarray, shape (...)
        Response at the preferred angle over that at the orthogonal one, at least 1.
    spread : numpy.ndarray, shape (...)
        Standard deviation of the response over angles, in units of the response at the preferred one: at most 1/2.
    """

    ratio: np.ndarray
    spread: np.ndarray


class CentreSurround(NamedTuple):
    r"""What :func:`centre_surround` returns.

    Attributes
    ----------
    explained : numpy.ndarray, shape (...)
        Share of the field that the best difference of Gaussians explains, from 0 to 1.
    surround : numpy.ndarray, shape (...)
        How much of one Gaussian's volume, :math:`a\sigma^2`, the other cancels: the smaller volume over the larger, 0
        for a Gaussian alone, 1 for a field that does not see uniform light.
    """

    explained: np.ndarray
    surround: np.ndarray


def _fields(value: Any, at_least: int = 3) -> np.ndarray:
    fields = real_array("fields", value)
    if fields.ndim < 2 or min(fields.shape[-2:]) < at_least:
        raise ValueError(f"fields has shape {fields.shape}, expected (..., height, width) of {at_least} pixels or more")
    return fields


def _scaled(fields: np.ndarray) -> np.ndarray:
    """Return fields over their largest entries, so that squares neither overflow nor vanish; NaN for empty ones."""
    largest = np.abs(fields).max(axis=(-2, -1), keepdims=True)
    return fields / np.where(largest > 0, largest, np.nan)


def bar_responses(
    fields: Any, *, angles: int = 50, widths: int = 30, phases: int = 30
) -> Float[np.ndarray, "*run angle"]:
    r"""Return the largest response of each field to bars of every angle, over their widths and places.

    .. math:: \rho(\theta) = \max_{w,\phi}\Bigl|\sum_p F_p\, b_{\theta w\phi}(p)\Bigr|

    A bar is 1 where its middle line, at distance :math:`\phi` from the middle of the field, is nearer than w/2, 0
    elsewhere, and falls linearly over one pixel between; dark bars, -b, count like bright ones. Bars are shown
    through a round window, the largest that fits, of radius R: corners would favour diagonals.

    Parameters
    ----------
    fields : array_like, shape (..., height, width)
    angles : int
        Even number of angles, in equal steps over 180 degrees; at the first, bars are parallel to the rows.
    widths : int
        Number of widths, in equal steps from one pixel to R.
    phases : int
        Number of places, in equal steps from -R to R.

    Returns
    -------
    numpy.ndarray, shape (..., angle)
        In the unit of the field.

    Raises
    ------
    TypeError, ValueError
        If `fields` is not real and finite or has less than 3 pixels a side; for an odd number of angles.

    References
    ----------
    The bank of 50 x 30 x 30 bars is that of :cite:t:`lindsey2019`; how bars are drawn and seen is said above.

    Examples
    --------
    >>> row = np.zeros((9, 9))
    >>> row[4] = 1.0
    >>> int(bar_responses(row, angles=4).argmax()), bar_responses(row, angles=4, phases=31)[[0, 2]]
    (0, array([9. , 4.5]))
    """
    fields = _fields(fields)
    if integer("angles", angles, at_least=2) % 2:
        raise ValueError(f"angles must be even, so that each has an orthogonal one, got {angles}")
    integer("widths", widths, at_least=1)
    integer("phases", phases, at_least=1)
    y, x = (np.arange(size) - (size - 1) / 2 for size in fields.shape[-2:])
    radius = min(fields.shape[-2:]) / 2
    seen = (y[:, None] ** 2 + x**2 <= radius**2).ravel()
    rows, columns = (grid.ravel()[seen] for grid in np.meshgrid(y, x, indexing="ij"))
    flat = fields.reshape(-1, seen.size)[:, seen]
    half = np.linspace(1.0, radius, widths)[:, None, None] / 2
    middle = np.linspace(-radius, radius, phases)[:, None]
    found = np.empty((len(flat), angles))
    for i, angle in enumerate(np.pi * np.arange(angles) / angles):
        distance = np.abs(np.cos(angle) * rows + np.sin(angle) * columns - middle)
        bars = np.clip(half + 0.5 - distance, 0.0, 1.0).reshape(-1, rows.size)
        found[:, i] = np.abs(flat @ bars.T).max(axis=1)
    return found.reshape(*fields.shape[:-2], angles)


def orientedness(fields: Any, *, angles: int = 50, widths: int = 30, phases: int = 30) -> Orientedness:
    r"""Return how oriented fields are, in two numbers, from their responses to bars.

    .. math:: \frac{\rho(\theta^*)}{\rho(\theta^* + 90^\circ)}, \qquad
              \frac{\mathrm{sd}_\theta\,\rho(\theta)}{\rho(\theta^*)}, \qquad
              \theta^* = \operatorname*{argmax}_\theta \rho(\theta)

    with :math:`\rho` of :func:`bar_responses`.

    Parameters
    ----------
    fields : array_like, shape (..., height, width)
    angles, widths, phases : int
        Of the bank of bars, see :func:`bar_responses`.

    Returns
    -------
    Orientedness
        Both without unit and independent of the field's scale and sign; NaN for a field of zeros.

    Raises
    ------
    TypeError, ValueError
        As :func:`bar_responses`.

    Notes
    -----
    Noise has a ratio above 1, the more so the smoother it is: compare with :func:`random_fields`.
    ``tests/test_receptive_fields.py`` has plain loops over the definition, and known fields.

    References
    ----------
    :cite:t:`lindsey2019`

    Examples
    --------
    >>> y, x = np.mgrid[-8:9, -8:9]
    >>> envelope = np.exp(-(x**2 + y**2) / 18)
    >>> ratio, spread = orientedness([envelope, envelope * np.cos(x)])
    >>> ratio.round(2), spread.round(2)
    (array([ 1.  , 19.37]), array([0.  , 0.32]))
    """
    responses = bar_responses(fields, angles=angles, widths=widths, phases=phases)
    best = responses.argmax(axis=-1)[..., None]
    preferred = np.take_along_axis(responses, best, -1)
    relative = responses / np.where(preferred > 0, preferred, np.nan)
    with np.errstate(divide="ignore"):
        ratio = 1 / np.take_along_axis(relative, (best + angles // 2) % angles, -1)[..., 0]
    return Orientedness(np.asarray(ratio), np.asarray(relative.std(axis=-1)))


def centre_surround(fields: Any) -> CentreSurround:
    r"""Return how much of each field the best circularly symmetric difference of Gaussians explains.

    .. math:: 1 - \min_{\mu,\sigma_c\le\sigma_s,\,a_c a_s \ge 0}
              \frac{\sum_p\bigl(F_p - a_c e^{-|p-\mu|^2/2\sigma_c^2} + a_s e^{-|p-\mu|^2/2\sigma_s^2}\bigr)^2}
                   {\sum_p F_p^2}

    The share is one of the variance about zero, no influence, which a field has outside; so an offset explains
    nothing. The middle :math:`\mu` may lie anywhere in the field, widths between half a pixel and the longer side.

    Parameters
    ----------
    fields : array_like, shape (..., height, width)

    Returns
    -------
    CentreSurround
        Both without unit and independent of the field's scale and sign; NaN for a field of zeros.

    Raises
    ------
    TypeError, ValueError
        If `fields` is not real and finite or has less than 3 pixels a side.

    Notes
    -----
    Amplitudes are linear and solved for. Every pixel as the middle and every pair of ten widths are tried, then
    :func:`scipy.optimize.least_squares` moves middle and widths from the best of them. A Gaussian alone is explained
    wholly too: `surround` tells it from a difference. A few pixels of noise are explained in part by any five
    numbers: compare with :func:`random_fields` of the same size. ``tests/test_receptive_fields.py`` has known fields.

    References
    ----------
    Differences of Gaussians describe ganglion cells of the retina since :cite:t:`rodieck1965`.

    Examples
    --------
    >>> y, x = np.mgrid[-8:9, -8:9]
    >>> r2 = x**2 + y**2
    >>> explained, surround = centre_surround([np.exp(-r2 / 8) - np.exp(-r2 / 18) / 3, np.exp(-r2 / 18) * np.sin(x)])
    >>> explained.round(2), surround.round(2)
    (array([1.  , 0.32]), array([0.75, 1.  ]))
    """
    fields = _scaled(_fields(fields))
    flat = fields.reshape(-1, *fields.shape[-2:])
    found = np.array([_best_difference(field) if np.isfinite(field[0, 0]) else (np.nan,) * 2 for field in flat])
    explained, surround = found.reshape(-1, 2).T
    return CentreSurround(explained.reshape(fields.shape[:-2]), surround.reshape(fields.shape[:-2]))


def _best_difference(field: np.ndarray) -> tuple[float, float]:
    """Return the share explained by the best difference of Gaussians, and how much of it cancels."""
    from scipy.optimize import least_squares

    rows, columns = (np.arange(float(size)) for size in field.shape)
    widest = math.log(max(field.shape))
    bounds = ([0.0, 0.0, math.log(0.5), math.log(0.5)], [rows[-1], columns[-1], widest, widest])
    total = np.sum(field**2)

    def fitted(place: np.ndarray) -> tuple[np.ndarray, float, float]:
        logs = np.sort(place[2:])
        down, across = (_gaussian(axis - at, np.exp(logs)) for axis, at in ((rows, place[0]), (columns, place[1])))
        overlap = np.sum((down @ field) * across, axis=1)
        gram = (down @ down.T) * (across @ across.T)
        centre, surround = _amplitudes(overlap[0], overlap[1], gram[0, 0], gram[0, 1], gram[1, 1])
        rest = field - centre * np.outer(down[0], across[0]) - surround * np.outer(down[1], across[1])
        volumes = np.abs([centre, surround]) * np.exp(2 * logs)
        return rest.ravel(), float(np.sum(rest**2)), float(volumes.min() / max(volumes.max(), np.finfo(float).tiny))

    start = _first_guess(field, rows, columns, np.geomspace(0.6, max(field.shape) / 2, _WIDTHS))
    settings: dict[str, Any] = {"bounds": bounds, "xtol": 1e-6, "ftol": 1e-6, "max_nfev": 50}
    best = least_squares(lambda place: fitted(place)[0], np.clip(start, *bounds), **settings)
    places = [start, best.x]
    _, left, cancelled = min((fitted(place) for place in places), key=lambda found: found[1])
    return float(np.clip(1 - left / total, 0.0, 1.0)), cancelled


def _gaussian(distance: np.ndarray, widths: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * (distance / widths[:, None]) ** 2)


def _amplitudes(c: Any, s: Any, cc: Any, cs: Any, ss: Any) -> tuple[Any, Any]:
    """Return the amplitudes of centre and surround, of opposite signs or one of them zero, with the least squares.

    From the overlaps c and s of the field with two Gaussians, and theirs with each other.
    """
    scale = cc * ss - cs**2
    apart = scale > 1e-10 * cc * ss
    safe = np.where(apart, scale, 1.0)
    centre, surround = (ss * c - cs * s) / safe, (cc * s - cs * c) / safe
    both = apart & (centre * surround < 0)
    first = c**2 / cc >= s**2 / ss
    return np.where(both, centre, np.where(first, c / cc, 0.0)), np.where(both, surround, np.where(first, 0.0, s / ss))


def _first_guess(field: np.ndarray, rows: np.ndarray, columns: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return the best of all pixels and pairs of widths: the middle and the logarithms of the widths."""
    down = np.stack([_gaussian(rows - at, widths) for at in rows], axis=1)
    across = np.stack([_gaussian(columns - at, widths) for at in columns], axis=1)
    overlap = down @ field @ np.swapaxes(across, -1, -2)
    i, j = np.triu_indices(len(widths), 1)

    def products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.sum(down[a] * down[b], axis=-1)[..., None] * np.sum(across[a] * across[b], axis=-1)[:, None, :]

    c, s, cc, cs, ss = overlap[i], overlap[j], products(i, i), products(i, j), products(j, j)
    centre, surround = _amplitudes(c, s, cc, cs, ss)
    explained = 2 * (centre * c + surround * s) - centre**2 * cc - 2 * centre * surround * cs - surround**2 * ss
    pair, y, x = np.unravel_index(explained.argmax(), explained.shape)
    return np.array([rows[y], columns[x], math.log(widths[i[pair]]), math.log(widths[j[pair]])])


def smoothness(fields: Any) -> Float[np.ndarray, "*run"]:
    r"""Return how smooth each field is: the width of the Gaussian that makes white noise so smooth.

    .. math:: s = \frac{1}{2\sqrt{-\ln c}}, \qquad
              c = \frac{\langle F_p F_q\rangle_{|p-q|=1}}{\langle F_p^2\rangle}

    Parameters
    ----------
    fields : array_like, shape (..., height, width)

    Returns
    -------
    numpy.ndarray, shape (...)
        Standard deviation of the Gaussian, in pixels; 0 without positive correlation c between neighbours, infinite
        for one of 1, NaN for a field of zeros.

    Examples
    --------
    >>> float(smoothness(random_fields(50, 20, smoothness=1.5, seed=0)).mean().round(1))
    1.5
    """
    fields = _scaled(_fields(fields))
    down = np.mean(fields[..., 1:, :] * fields[..., :-1, :], axis=(-2, -1))
    across = np.mean(fields[..., 1:] * fields[..., :-1], axis=(-2, -1))
    correlation = np.clip((down + across) / 2 / np.mean(fields**2, axis=(-2, -1)), 0.0, 1.0)
    with np.errstate(divide="ignore"):
        return np.asarray(0.5 / np.sqrt(np.log(1 / correlation)))


def random_fields(
    number: int, size: int, *, smoothness: float = 0.0, seed: int
) -> Float[np.ndarray, "field size size"]:
    """Return fields of noise, of which any index has its distribution by chance.

    Parameters
    ----------
    number : int
    size : int
        Pixels a side.
    smoothness : float
        Standard deviation, in pixels, of the Gaussian that white noise of unit variance is filtered with, beyond the
        edges of the field; 0 leaves it white. See :func:`smoothness`.
    seed : int

    Returns
    -------
    numpy.ndarray, shape (number, size, size)

    Examples
    --------
    >>> noise = random_fields(40, 9, seed=0)
    >>> noise.shape, float(np.median(orientedness(noise).ratio).round(1))
    ((40, 9, 9), 1.4)
    """
    integer("number", number, at_least=1)
    integer("size", size, at_least=1)
    margin = math.ceil(4 * real("smoothness", smoothness, at_least=0.0))
    rng = stream(integer("seed", seed, at_least=0), "receptive fields")
    noise = rng.standard_normal((number, size + 2 * margin, size + 2 * margin))
    if not margin:
        return noise
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(noise, smoothness, axes=(1, 2))[:, margin:-margin, margin:-margin]
