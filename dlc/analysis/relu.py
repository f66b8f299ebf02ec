"""ReLU with another gradient, inside any function.

Three ways to look back from a unit of a network to the image differ only in how a gradient g passes ReLU at x:

    the gradient            g (x > 0)
    the deconvnet           max(g, 0)
    guided backpropagation  max(g, 0) (x > 0)

`with_gradient` traces a function, finds every max(x, 0) in it and gives it the gradient that a rule says. The function
may be a Flax model's `apply` or any other; it is not changed, and its values stay the same.

References: Zeiler, Fergus 2014, "Visualizing and understanding convolutional networks", section 2.1; Springenberg,
Dosovitskiy, Brox, Riedmiller 2014, "Striving for simplicity: the all convolutional net", figure 1.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# JAX has no public way to rewrite a traced function; `jax.extend` is where it shows the parts, and may change them.
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jaxtyping import Array, Float

from dlc.errors import UserError

Rule = Callable[[Any, Any], Any]  # x and the gradient after ReLU -> the gradient before it

# What only calls another function: a ReLU inside is reached by writing that function out.
CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2")


def deconvnet(x: Float[Array, "*B"], g: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """The deconvnet's rule: ReLU of what comes back, whatever went forward."""
    return jnp.maximum(g, 0)


def guided(x: Float[Array, "*B"], g: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """The rule of guided backpropagation: only what is positive on both ways passes."""
    return jnp.where(x > 0, jnp.maximum(g, 0), 0)


def with_gradient(function: Callable[..., Any], rule: Rule) -> Callable[..., Any]:
    """`function` with the same values, where each max(x, 0) has the gradient `rule(x, g)`.

    It can be compiled, mapped, and differentiated in reverse mode. Raises UserError at the call if there is no ReLU, or
    if one is inside a loop or a branch.
    """

    @jax.custom_vjp
    def relu(x: Any) -> Any:
        return jnp.maximum(x, 0)

    relu.defvjp(lambda x: (jnp.maximum(x, 0), x), lambda x, g: (rule(x, g),))

    def changed(*arguments: Any) -> Any:
        traced, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        if not any(_is_relu(operation) for operation in operations(traced.jaxpr)):
            raise UserError("this network has no ReLU, whose gradient this method replaces: use the plain gradient")
        out = _evaluate(traced.jaxpr, traced.consts, jax.tree.leaves(arguments), relu)
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return changed


def operations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Every operation of a traced function, and of the functions it calls."""
    for operation in jaxpr.eqns:
        yield operation
        for inner, _ in _inside(operation):
            yield from operations(inner)


def _inside(operation: JaxprEqn) -> list[tuple[Jaxpr, Sequence[Any]]]:
    """The functions that an operation calls, with their constants."""
    found: list[tuple[Jaxpr, Sequence[Any]]] = []
    for value in operation.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, ClosedJaxpr):
                found.append((each.jaxpr, each.consts))
            elif isinstance(each, Jaxpr):
                found.append((each, ()))
    return found


def _is_zero(variable: Any) -> bool:
    return isinstance(variable, Literal) and np.ndim(variable.val) == 0 and bool(variable.val == 0)


def _is_relu(operation: JaxprEqn) -> bool:
    return operation.primitive.name == "max" and any(map(_is_zero, operation.invars))


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], relu: Callable[[Any], Any]) -> list[Any]:
    """The results of a traced function, with `relu` in the place of each max(x, 0)."""
    known: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def value(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else known[variable]

    for operation in jaxpr.eqns:
        values = [value(variable) for variable in operation.invars]
        inside = _inside(operation)
        if _is_relu(operation):
            out = [relu(*(value(variable) for variable in operation.invars if not _is_zero(variable)))]
        elif any(_is_relu(each) for inner, _ in inside for each in operations(inner)):
            if operation.primitive.name not in CALLS:
                raise UserError(f"this network has a ReLU inside a {operation.primitive.name}: write that out")
            ((inner, own),) = inside
            out = _evaluate(inner, own, values, relu)
        else:  # as JAX itself evaluates an operation: in the context in which it was traced, such as its precision
            with operation.ctx.manager:
                found = operation.primitive.bind(*values, **operation.primitive.get_bind_params(operation.params))
            out = found if operation.primitive.multiple_results else [found]
        known.update(zip(operation.outvars, out, strict=True))
    return [value(variable) for variable in jaxpr.outvars]
