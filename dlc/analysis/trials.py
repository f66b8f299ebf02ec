"""Comparing repeated trials: steps to a target, their ratio with an interval, and which differences are significant.

Glossary: S seeds, E evaluations.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float, Num
from scipy import stats

from dlc.errors import UserError


def steps_to(
    steps: Num[np.ndarray, " E"], losses: Num[np.ndarray, "*S E"], target: float | int
) -> Float[np.ndarray, "*S"]:
    """The step at which a curve first is at or below `target`, on a straight line between evaluations; inf if never.

    A curve that begins below the target gives its first step.
    """
    losses = np.asarray(losses, float)
    reached = losses <= target
    place = reached.argmax(-1)
    before = np.maximum(place - 1, 0)
    high, low = (np.take_along_axis(losses, i[..., None], -1)[..., 0] for i in (before, place))
    steps = np.asarray(steps, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where((place > 0) & np.isfinite(high), (high - target) / (high - low), 1.0)
    return np.where(reached.any(-1), steps[before] + share * (steps[place] - steps[before]), np.inf)


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """The mean of S values and the ends of its interval of Student's t."""
    values = _several(values)
    half = stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def ratio_interval(
    above: Sequence[float] | np.ndarray, below: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> tuple[float, float, float]:
    """The ratio of the geometric means of two samples of positive values, and the ends of its interval.

    The interval is Welch's, for the difference of the logarithms. If a value is infinite, so is the interval.
    """
    above, below = _several(above), _several(below)
    if not (np.isfinite(above).all() and np.isfinite(below).all()):
        middle = float(np.median(above) / np.median(below)) if np.isfinite(np.median(below)) else np.nan
        return middle, 0.0, np.inf
    if np.ptp(above) == np.ptp(below) == 0:
        return (float(above[0] / below[0]),) * 3
    interval = stats.ttest_ind(np.log(above), np.log(below), equal_var=False).confidence_interval(confidence)
    middle = np.log(above).mean() - np.log(below).mean()
    return tuple(float(np.exp(value)) for value in (middle, *interval))  # type: ignore[return-value]


def pairwise(samples: dict[str, np.ndarray]) -> dict[tuple[str, str], float]:
    """The p-value of the two-sided Mann-Whitney test for each pair of samples, corrected by Holm's method.

    The test compares ranks, so a run that never reached its target counts as the last one (inf).

    References: Mann, Whitney 1947, "On a test of whether one of two random variables is stochastically larger than the
    other"; Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    pairs = list(combinations(samples, 2))
    p = np.array([_mann_whitney(samples[one], samples[other]) for one, other in pairs])
    corrected, largest = np.empty(len(p)), 0.0
    for rank, i in enumerate(p.argsort(kind="stable")):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return dict(zip(pairs, corrected.tolist(), strict=True))


def _mann_whitney(one: np.ndarray, other: np.ndarray) -> float:
    one, other = _several(one), _several(other)
    last = 1 + max([0.0, *(value for value in (*one, *other) if np.isfinite(value))])
    ranked = [np.where(np.isfinite(values), values, last) for values in (one, other)]
    if np.ptp(np.concatenate(ranked)) == 0:
        return 1.0
    return float(stats.mannwhitneyu(*ranked, alternative="two-sided").pvalue)


def _several(values: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 1 or len(values) < 2:
        raise UserError(f"an interval needs at least two trials, not {values.size}: take more seeds")
    return values
