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
    the kernel lies over padding. Other arithmetic (norms, activations, pooling) is not counted.
    """
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def flops(function: Callable[..., Any], *arguments: Any) -> float:
    """XLA's count of the floating-point operations of one call, before optimisation: all arithmetic except on padding.

    XLA counts the body of a loop once. Here it counts as often as it runs, unless that is known only at run time
    (`lax.while_loop`). The work of cuDNN's fused kernels is not counted.
    """
    return _flops(jax.make_jaxpr(function)(*arguments))


def _flops(jaxpr: Any) -> float:
    rest = sum(rounds * _flops(body) - _flops_once(body) for rounds, body in _loops(jaxpr.jaxpr))
    return _flops_once(jaxpr) + rest


def _flops_once(jaxpr: Any) -> float:
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in jaxpr.in_avals]
    lowered = jax.jit(jax.extend.core.jaxpr_as_fun(jaxpr)).trace(*shapes).lower(lowering_platforms=("cuda",))
    return float(lowered.cost_analysis().get("flops", 0.0))


def _loops(jaxpr: Any) -> list[tuple[int, Any]]:
    """(rounds, body) of every loop that is not inside another loop."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            found.append((equation.params["length"], equation.params["jaxpr"]))
        else:
            found += [loop for inner in _inner(equation) for loop in _loops(inner)]
    return found


def _of(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        # A transposed convolution has zeros between its inputs: each input, not each output, meets a whole kernel.
        return out // math.prod(params["lhs_dilation"]) * math.prod(kernel) // features // params["batch_group_count"]
    if name == "dot_general":
        (axes, _), _ = params["dimension_numbers"]
        return out * math.prod(equation.invars[0].aval.shape[axis] for axis in axes)
    inner = [_of(jaxpr) for jaxpr in _inner(equation)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _inner(equation: Any) -> list[Any]:
    """The programs inside an equation; for `lax.platform_dependent` only the last one, which is the default."""
    jaxprs = [value for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr) if _is_jaxpr(value)]
    jaxprs = jaxprs[-1:] if equation.params.get("branches_platforms") else jaxprs
    return [getattr(jaxpr, "jaxpr", jaxpr) for jaxpr in jaxprs]


def _is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")
