"""Where the time of a run goes, and the programs that it compiled."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dlc import train

KINDS = ("compile", "start", "train", "evaluate", "save")


def gerund(verb: str) -> str:
    """evaluate: evaluating"""
    return f"{verb.removesuffix('e')}ing"


class Clock:
    """Seconds by what they were spent on, and compiled programs, which one clock may share with another.

    It calls `tell` with "compiling", "evaluating", ... before that begins.
    """

    def __init__(self, tell: Callable[[str], None] = lambda what: None) -> None:
        self._tell = tell
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.programs: dict[Any, Any] = {}

    def timed(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of `function`, once it has been computed. The time is added to `seconds[name]`.

        Time that `function` spends in `compiled` counts as "compile" only.
        """
        self._tell(gerund(name))
        began, compiling = time.perf_counter(), self.seconds["compile"]
        value = jax.block_until_ready(function(*arguments))
        elsewhere = self.seconds["compile"] - compiling
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began - elsewhere
        return value

    def compiled(
        self,
        function: Callable[..., Any],
        *example: Any,
        wrap: Callable[[Any], Any] | None = None,
        donate: bool = False,
    ) -> Callable[..., Any]:
        """`wrap(function)` as one program for arguments of these shapes. The time counts as "compile".

        The program is kept: the same function with the same shapes is not compiled again.
        """
        leaves, structure = jax.tree.flatten(example)
        shapes = str([(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves])
        wrapped = (wrap.func, wrap.args) if isinstance(wrap, functools.partial) else wrap
        key = (id(function), wrapped, structure, shapes, donate)
        if key not in self.programs:
            self._tell(gerund("compile"))
            began = time.perf_counter()
            whole = wrap(function) if wrap else function
            # The function is kept beside its program, so that its id cannot be given to another one.
            self.programs[key] = (train.compiled(whole, *example, donate=donate), function)
            self.seconds["compile"] += time.perf_counter() - began
        return self.programs[key][0]


class Tracing(Clock):
    """A clock that compiles and computes nothing: its programs return shapes, as `jax.ShapeDtypeStruct`s."""

    def compiled(self, function: Any, *example: Any, wrap: Any = None, donate: bool = False) -> Callable[..., Any]:
        """`wrap(function)`, traced whenever it is called."""
        whole = wrap(function) if wrap else function
        return lambda *arguments: jax.eval_shape(whole, *arguments)
