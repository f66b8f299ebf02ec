"""From a model to the `loss_fn(params, aux, batch, key) -> (loss, (aux, metrics))` that `train.make_step` takes.

`aux` is the model's other collections, such as `{"batch_stats": ...}`, or None where it has none. Losses are float32
whatever the model computes in.

Glossary: B batch, C classes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dlc import metrics
from dlc.train import LossFn

Prepare = Callable[[Any], Any]


def classify(model: Any, prepare: Prepare = lambda image: image) -> LossFn:
    """Mean cross-entropy of a model from images to logits, with the error rate beside it.

    The batch holds `image` [B, ...] and `label` int [B]; `prepare` maps images to what the model takes. Dropout draws
    from the step's key.
    """
    return _over(model, prepare, lambda logits, label: cross_entropy(logits, label).mean())


def maximum_a_posteriori(model: Any, prepare: Prepare = lambda image: image, rubbish: float = 0.1) -> LossFn:
    """LeNet-5's discriminative loss on the penalties of its radial basis functions.

        E = mean over the batch of  y_d + log(exp(-j) + sum_i exp(-y_i))

    The model returns -y, so that its largest output is its answer. j (`rubbish`) is the constant penalty of a class of
    its own for everything that is no digit: it keeps the penalties of classes that are far away already from growing.

    References: LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition", eq. 9.
    The paper gives no value for j.
    """

    def loss(negative: Float[Array, "B C"], label: Int[Array, " B"]) -> Float[Array, ""]:
        negative = negative.astype(jnp.float32)
        right = jnp.take_along_axis(negative, label[:, None], axis=1)[:, 0]
        others = jax.nn.logsumexp(jnp.pad(negative, ((0, 0), (0, 1)), constant_values=-rubbish), axis=1)
        return (others - right).mean()

    return _over(model, prepare, loss)


def cross_entropy(logits: Float[Array, "*batch C"], label: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """-log softmax(logits)[label], in nats, float32, one for each example."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), label)


def _over(model: Any, prepare: Prepare, loss: Callable[[Any, Any], Any]) -> LossFn:
    def loss_fn(params: Any, aux: Any, batch: Any, key: Any) -> Any:
        variables = {"params": params, **(aux or {})}
        outputs, updated = model.apply(
            variables, prepare(batch["image"]), train=True, mutable=list(aux or ()), rngs={"dropout": key}
        )
        return loss(outputs, batch["label"]), (updated or aux, {"error": metrics.error(outputs, batch["label"])})

    return loss_fn
