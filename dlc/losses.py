"""From a model to the `loss_fn(params, aux, batch, key) -> (loss, (aux, metrics))` that `train.make_step` takes.

`aux` is the model's other collections, such as `{"batch_stats": ...}`, or None where it has none. Losses are float32
whatever the model computes in.

Glossary: B batch, C classes.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dlc import metrics
from dlc.metrics import Either
from dlc.train import LossFn

Prepare = Callable[[Any], Any]
Criterion = Callable[[Any, Any], Any]  # (outputs, label) -> a loss for each example


def cross_entropy(logits: Float[Array, "*runs B C"], label: Int[Either, " B"]) -> Float[Array, "*runs B"]:
    """-log softmax(logits)[label], in nats, float32, one for each example."""
    logits = logits.astype(jnp.float32)
    label = jnp.broadcast_to(label, logits.shape[:-1])
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)


def classify(model: Any, prepare: Prepare = lambda image: image, criterion: Criterion = cross_entropy) -> LossFn:
    """The mean of `criterion(outputs, label)` of a model from images to logits, with the error rate beside it.

    The batch holds `image` [B, ...] and `label` int [B]; `prepare` maps images to what the model takes; the criterion
    is cross-entropy unless given. Dropout draws from the step's key.
    """

    def loss_fn(params: Any, aux: Any, batch: Any, key: Any) -> Any:
        variables = {"params": params, **(aux or {})}
        outputs, updated = model.apply(
            variables, prepare(batch["image"]), train=True, mutable=list(aux or ()), rngs={"dropout": key}
        )
        loss = criterion(outputs, batch["label"]).mean()
        return loss, (updated or aux, {"error": metrics.error(outputs, batch["label"])})

    return loss_fn


def maximum_a_posteriori(
    negative: Float[Array, "*runs B C"], label: Int[Either, " B"], rubbish: float = 0.1
) -> Float[Array, "*runs B"]:
    """LeNet-5's discriminative criterion on the penalties y of its radial basis functions, one for each example.

        E = y_d + log(exp(-j) + sum_i exp(-y_i))

    The model returns -y (`negative`), so that its largest output is its answer. j (`rubbish`) is the constant penalty
    of a class of its own for everything that is no digit: it keeps the penalties of classes that are far away already
    from growing.

    References: LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition", eq. 9.
    The paper gives no value for j.
    """
    rest = jnp.full((*negative.shape[:-1], 1), -rubbish, jnp.float32)
    return cross_entropy(jnp.concatenate([negative.astype(jnp.float32), rest], axis=-1), label)
