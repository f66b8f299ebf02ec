"""The cost of a model: its weights and the operations of one call, counted without running it.

    count = functools.partial(model.apply, variables)
    costs.macs(count, image)     # multiply-accumulates, the unit of the papers' tables
    costs.flops(count, image)    # XLA's own count of the same program, two for each multiply-accumulate

Arguments may be arrays or `jax.ShapeDtypeStruct`s. Both count the plain program, the one for GPU and TPU. A CPU may
compute the same numbers with fewer or more operations (`dlc/layers/cpu.py`).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core


def parameters(params: Any) -> int:
    """The number of elements in a tree of arrays or of `jax.ShapeDtypeStruct`s."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def macs(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiply-accumulates of all convolutions and matrix products in one call of `function`.

    They are counted as in papers: for each output, a convolution has one for every element of its kernel, even where
    the kernel lies over padding. Other arithmetic (norms, activations, pooling) is not counted. Of the branches of a
    `lax.cond`, the largest counts. A `lax.while_loop`, whose rounds are known only at run time, counts as one round.
    """
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def flops(function: Callable[..., Any], *arguments: Any) -> float:
    """XLA's count of the floating-point operations of one call, before optimisation: all arithmetic except on padding.

    XLA counts the body of a loop once. Here it counts as often as it runs, unless that is known only at run time
    (`lax.while_loop`). Of the branches of a `lax.cond`, the largest counts.
    """
    return _flops(jax.make_jaxpr(function)(*arguments))


def operations(jaxpr: Any) -> set[str]:
    """The names of the operations in a program that JAX traced."""
    inner = (operations(jaxpr) for equation in jaxpr.eqns for jaxpr in _inner(equation))
    return {equation.primitive.name for equation in jaxpr.eqns}.union(*inner)


def _flops(jaxpr: Any) -> float:
    return _flops_once(jaxpr) + _rest(jaxpr.jaxpr)


def _flops_once(jaxpr: Any) -> float:
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in jaxpr.in_avals]
    # On a TPU every layer has its plain form. For a GPU there may be cuDNN's, whose work XLA cannot count.
    lowered = jax.jit(jax.extend.core.jaxpr_as_fun(jaxpr)).trace(*shapes).lower(lowering_platforms=("tpu",))
    return float(lowered.cost_analysis().get("flops", 0.0))


def _rest(jaxpr: Any) -> float:
    """What `_flops_once` leaves out: the other rounds of all loops."""
    rest = 0.0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, _inner(equation)
        if name == "scan":
            rounds, body = equation.params["length"], equation.params["jaxpr"]
            rest += rounds and rounds * _flops(body) - _flops_once(body)
        elif name == "cond" and len(inner) > 1 and any(map(_rest, inner)):
            branches = equation.params["branches"]
            rest += max(map(_flops, branches)) - max(map(_flops_once, branches))
        else:
            rest += sum(map(_rest, inner))
    return rest


def _of(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    if name == "dlc_conv":  # of dlc/layers/cpu.py: a convolution or one of its gradients, which cost the same
        (a, b), out = (each.aval.shape for each in equation.invars), equation.outvars[0].aval.shape
        kernel, y = {"y": (b, out), "x": (a, b), "kernel": (out, b)}[params["wanted"]]
        return math.prod(y[:3]) * math.prod(kernel)
    if name == "dot_general":
        (axes, _), _ = params["dimension_numbers"]
        contracted = [equation.invars[0].aval.shape[axis] for axis in axes]
        return math.prod([*equation.outvars[0].aval.shape, *contracted])
    inner = [_of(jaxpr) for jaxpr in _inner(equation)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _of_convolution(equation: Any) -> int:
    numbers, (image, kernel) = equation.params["dimension_numbers"], (each.aval.shape for each in equation.invars)
    out = equation.outvars[0].aval.shape
    _, inputs, *sizes = (kernel[axis] for axis in numbers.rhs_spec)
    count = inputs * math.prod(out[axis] for axis in numbers.out_spec[:2])
    axes = zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strict=True)
    strides, dilation = equation.params["window_strides"], equation.params["lhs_dilation"]
    for (before, after), size, stride, apart in zip(axes, sizes, strides, dilation, strict=True):
        if apart == 1:
            count *= size * out[after]
        else:  # a transposed convolution: each input, not each output, meets a whole kernel
            count *= image[before] * min(size, out[after]) // stride
    return count


def _inner(equation: Any) -> list[Any]:
    """The programs inside an equation; for `lax.platform_dependent` only the last one, which is the default."""
    jaxprs = [value for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr) if _is_jaxpr(value)]
    jaxprs = jaxprs[-1:] if equation.params.get("branches_platforms") else jaxprs
    return [getattr(jaxpr, "jaxpr", jaxpr) for jaxpr in jaxprs]


def _is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")
