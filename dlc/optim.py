"""Schedules that several papers share, as Optax schedules: step -> learning rate."""

import optax


def by_epoch(lr: float, factors: dict[int, float], steps_per_epoch: int) -> optax.Schedule:
    """`lr` times the factor that holds since the latest of the epochs given: `{0: 1, 10: 0.1}` divides by 10 after ten.

    Epochs count from 0. Before the first one given the factor is 1.
    """
    starts = sorted(set(factors) - {0})
    rates = [lr * factors.get(0, 1.0), *(lr * factors[start] for start in starts)]
    boundaries = [start * steps_per_epoch for start in starts]
    return optax.join_schedules([optax.constant_schedule(rate) for rate in rates], boundaries)
