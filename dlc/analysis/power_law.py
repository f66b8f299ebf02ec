"""Power laws: how an error falls with data, weights or computation, and how certain its exponent is.

    y = factor x^-exponent

is a straight line on two logarithmic axes. There is no irreducible term: over the one or two decades that a small
experiment spans, it and the exponent cannot be told apart. So a law holds for the range that it was fitted to.

Glossary: P points, S seeds, R resamples, N networks, E evaluations.

References: Hestness et al. 2017, "Deep learning scaling is predictable, empirically"; Kaplan et al. 2020, "Scaling laws
for neural language models", section 1.2.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

from dlc.errors import UserError


class PowerLaw(NamedTuple):
    """y = factor x^-exponent, the ends of the exponent's interval of 95 %, and the share of variance explained."""

    factor: float
    exponent: float
    low: float
    high: float
    r2: float

    def __call__(self, x: Num[np.ndarray, " P"] | float) -> Float[np.ndarray, " P"] | float:
        return self.factor * np.asarray(x, float) ** -self.exponent


def fit(x: Num[np.ndarray, " P"], y: Num[np.ndarray, "P S"], resamples: int = 2000, seed: int = 0) -> PowerLaw:
    """The law that fits the means over seeds best by least squares of logarithms.

    The interval is that of the bootstrap: at each point as many seeds are drawn, with replacement, as there are.

    Raises UserError if there are fewer than two points, or if a value is not positive.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < 2:
        raise UserError(f"a power law needs at least two points, not {len(x)}")
    if (x <= 0).any() or (y <= 0).any() or not np.isfinite(y).all():
        raise UserError("a power law needs positive values: leave out points that are zero or not finite")
    drawn = np.random.default_rng(seed).integers(y.shape[1], size=(resamples, *y.shape))
    means = np.take_along_axis(y[None], drawn, axis=2).mean(2)
    slopes, _ = _lines(np.log(x), np.log(means))
    low, high = np.quantile(-slopes, (0.025, 0.975))
    line = np.log(y.mean(1))
    (slope,), (offset,) = _lines(np.log(x), line[None])
    left = line - (offset + slope * np.log(x))
    around = ((line - line.mean()) ** 2).sum()
    r2 = 1 - float((left**2).sum() / around) if around else 1.0
    return PowerLaw(float(np.exp(offset)), -float(slope), float(low), float(high), r2)


def frontier(
    spent: Num[np.ndarray, "N E"], losses: Float[np.ndarray, "N S E"], points: int = 8
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, "P S"]]:
    """What computation buys: `points` amounts of it and, for each, the losses of the best of N networks.

    Of each network the E evaluations count up to which it had `spent` no more than the amount; the best network has the
    lowest mean over seeds. The amounts lie evenly on a logarithmic axis, from the last evaluation of the first network
    to the last one of the last.
    """
    amounts = np.geomspace(spent[0, -1], spent[-1, -1], points)
    so_far = np.minimum.accumulate(losses, axis=2)
    found = []
    for amount in amounts:
        counts = (spent <= amount * (1 + 1e-9)).sum(1)
        found.append(min((so_far[n, :, count - 1] for n, count in enumerate(counts) if count), key=np.mean))
    return amounts, np.stack(found)


def _lines(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and offsets [R] of the lines through x [P] and y [R, P]."""
    centred = x - x.mean()
    slope = (y * centred).sum(1) / (centred**2).sum()
    return slope, y.mean(1) - slope * x.mean()
