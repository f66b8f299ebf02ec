"""The operations of a training, found by tracing it up to its first step.

A run counts its operations itself; this is for configurations that have not run, and for records without a count.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dlc.errors import UserError
from dlc.run.clock import Clock
from dlc.run.run import Run


def operations(train: Callable[[Any, Run], Any], config: Any) -> float:
    """The operations that `train(config, run)` would take, by XLA's count (`dlc.costs.flops`). It reads its data.

    Raises UserError if it trains several parts in turn, because one part may decide the size of the next, or if it
    does not train with `dlc.run.fit`.
    """
    run = _Counting()
    with contextlib.suppress(_Counted):
        train(config, run)
    if not run.work:
        raise UserError("it does not say what it computes before its first step: only the run itself can count")
    return sum((count() * steps for count, steps in run.work), 0.0)


class _Counted(BaseException):
    """Raised instead of the first step. Like KeyboardInterrupt, it is not an Exception."""


class _Tracing(Clock):
    """Programs are traced and return zeros, except for training steps, which raise `_Counted`."""

    def compiled(
        self,
        function: Callable[..., Any],
        *example: Any,
        wrap: Callable[[Any], Any] | None = None,
        donate: bool = False,
    ) -> Callable[..., Any]:
        def traced(*arguments: Any) -> Any:
            if donate:  # a step
                raise _Counted
            shapes = jax.eval_shape(wrap(function) if wrap else function, *arguments)
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        return traced


class _Counting(Run):
    """A run that trains nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = _Tracing()

    def part(self, name: str) -> Run:
        raise UserError("it trains several parts in turn, which only the run itself can count")
