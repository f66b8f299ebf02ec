"""From a model to a `loss_fn(params, aux, batch, key) -> (loss, (aux, metrics))`, for training and for evaluation.

`aux` is the model's other collections, such as `{"batch_stats": ...}`, or None if it has none. With a key the loss is
that of training: the model runs in training mode, and dropout and all other randomness draw from the key. With
`key=None` it is that of an evaluation: nothing is random and `aux` stays the same. Losses are at least
float32 whatever the model computes in.

Glossary: B batch, C classes, T tokens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dlc import metrics
from dlc.errors import UserError
from dlc.metrics import Either
from dlc.train import LossFn

Prepare = Callable[[Any], Any]
Criterion = Callable[[Any, Any], Any]  # (outputs, label) -> a loss for each example


def cross_entropy(
    logits: Float[Array, "*runs B C"], label: Int[Either, " B"] | Float[Either, "B C"], smoothing: float = 0.0
) -> Float[Array, "*runs B"]:
    """-sum_c q_c log softmax(logits)_c, in nats, at least float32, one for each example.

    q is the smoothed label: q = (1 - smoothing) label + smoothing / C, where the label is a class or a distribution
    over the C classes.

    References: label smoothing is section 7 of Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2015, "Rethinking the
    Inception architecture".
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if label.ndim == 1:
        label = jnp.broadcast_to(label, logits.shape[:-1])
        expected = jnp.take_along_axis(logits, label[..., None], axis=-1, mode="clip")[..., 0]
    else:
        expected = jnp.sum(jnp.broadcast_to(label, logits.shape) * logits, axis=-1)
    if smoothing:
        expected = (1 - smoothing) * expected + smoothing * logits.mean(-1)
    return jax.nn.logsumexp(logits, axis=-1) - expected


def unit(criterion: Criterion) -> str:
    """The unit of a criterion: "nats" of the cross-entropy, with or without smoothing; "" of any other."""
    return "nats" if getattr(criterion, "func", criterion) is cross_entropy else ""


def classify(model: Any, prepare: Prepare = lambda image: image, criterion: Criterion = cross_entropy) -> LossFn:
    """The mean of `criterion(outputs, label)` of a model from images to logits, and the error rate.

    The batch holds `image` [B, ...] and `label`, int [B] or a distribution [B, C]; `prepare` maps images to what the
    model takes. If a model returns a tuple, such as one with auxiliary heads, whose criterion is `auxiliary()`, the
    error is that of its first output.
    """

    def loss_fn(params: Any, aux: Any, batch: Any, key: Any) -> Any:
        outputs, aux = _applied(model, params, aux, key, prepare(batch["image"]))
        if isinstance(outputs, tuple) and criterion is cross_entropy:
            raise UserError("a model with auxiliary heads returns several logits: set criterion=losses.auxiliary()")
        loss = criterion(outputs, batch["label"]).mean()
        label = batch["label"]  # for mixed images the larger share is the answer
        answer = label if label.ndim == 1 else label.argmax(-1)
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        return loss, (aux, {"error": metrics.error(logits, answer)})

    return loss_fn


def auxiliary(criterion: Criterion = cross_entropy, weight: int | float = 0.3) -> Criterion:
    """The criterion for a model with auxiliary heads, which returns (logits, logits of a head, ...) in training.

    It adds the criterion of every head, times `weight`, to that of the logits. If a model returns only logits, it is
    their criterion.

    References: Szegedy et al. 2014, "Going deeper with convolutions", section 5.
    """

    def of_all(outputs: Any, label: Any) -> Any:
        logits, *heads = outputs if isinstance(outputs, tuple) else (outputs,)
        return criterion(logits, label) + weight * sum(criterion(head, label) for head in heads)

    return of_all


def next_token(model: Any) -> LossFn:
    """The mean cross-entropy, in nats, of every token of a text given those before it.

    The batch holds `tokens` [B, T + 1]: the model reads the first T of each row and predicts the last T.
    """

    def loss_fn(params: Any, aux: Any, batch: Any, key: Any) -> Any:
        tokens = batch["tokens"]
        logits, aux = _applied(model, params, aux, key, tokens[:, :-1])
        return cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1)).mean(), (aux, {})

    return loss_fn


def masked_token(model: Any, mask_token: int, vocab: int, rate: float = 0.15, special: tuple[int, ...] = ()) -> LossFn:
    """The mean cross-entropy, in nats, of the tokens that `mask_tokens` has chosen, and the error rate among them.

    The batch holds `tokens` [B, T], where 0 is padding, and for pairs of texts `segments` [B, T]. In training, what is
    chosen and what replaces it are drawn from the key, so that every epoch masks other tokens. For an evaluation the
    batch also holds the two results of `mask_tokens`: `masked` and `chosen` [B, T].
    """

    def loss_fn(params: Any, aux: Any, batch: Any, key: Any) -> Any:
        tokens, dropout = batch["tokens"], None
        if key is None:
            read, chosen = batch["masked"], batch["chosen"]
        else:
            here, dropout = jax.random.split(key)
            read, chosen = mask_tokens(here, tokens, mask_token, vocab, rate, special)
        # The padding mask is that of the text: a random token may be 0 and is read nevertheless.
        logits, aux = _applied(model, params, aux, dropout, read, batch.get("segments"), mask=tokens != 0)
        count = jnp.maximum(1, chosen.sum())
        logits, label = logits.reshape(-1, logits.shape[-1]), tokens.reshape(-1)
        nll = cross_entropy(logits, label)
        weight = chosen.reshape(-1) / count.astype(nll.dtype)
        error = jnp.sum(weight * (logits.argmax(-1) != label))
        return jnp.sum(weight * nll), (aux, {"error": error, "weight": count})

    return loss_fn


def mask_tokens(
    key: Key[Array, ""],
    tokens: Int[Array, "B T"],
    mask_token: int,
    vocab: int,
    rate: float = 0.15,
    special: tuple[int, ...] = (),
) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
    """BERT's recipe for hiding tokens: the text as the model reads it, and which tokens were chosen.

    Every token except padding (0) and the `special` ones, such as [CLS] and [SEP], is chosen with probability `rate`.
    Of the chosen ones, 80 % become `mask_token`, 10 % a random token of the vocabulary, and 10 % stay the same.

    References: Devlin et al. 2018, "BERT", section 3.1, task 1, and appendix A.1.
    """
    choose, become, draw = jax.random.split(key, 3)
    plain = ~jnp.isin(tokens, jnp.asarray([0, *special]))
    chosen = plain & jax.random.bernoulli(choose, rate, tokens.shape)
    fate = jax.random.uniform(become, tokens.shape)
    other = jnp.where(fate < 0.8, mask_token, jax.random.randint(draw, tokens.shape, 0, vocab, tokens.dtype))
    return jnp.where(chosen & (fate < 0.9), other, tokens), chosen


def maximum_a_posteriori(
    negative: Float[Array, "*runs B C"], label: Int[Either, " B"], rubbish: float = 0.1
) -> Float[Array, "*runs B"]:
    """LeNet-5's discriminative criterion on the penalties y of its radial basis functions, one for each example.

        E = y_d + log(exp(-j) + sum_i exp(-y_i))

    The model returns -y (`negative`), so that its largest output is its answer. j (`rubbish`) is the constant penalty
    of an extra class for everything that is not a digit. It stops the penalties of distant classes from growing.

    References: LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition", eq. 9.
    The paper gives no value for j.
    """
    negative = negative.astype(jnp.promote_types(negative.dtype, jnp.float32))
    rest = jnp.full((*negative.shape[:-1], 1), -rubbish, negative.dtype)
    return cross_entropy(jnp.concatenate([negative, rest], axis=-1), label)


def sequence(model: Any, smoothing: float = 0.0) -> LossFn:
    """The mean cross-entropy of every real token of the target, given the source and the tokens before it.

    The batch holds `source` [B, S] and `target` [B, T + 1], where 0 is padding: the model reads the source and the
    first T tokens of each target and predicts the last T. Only the loss uses label smoothing. The metrics are `nll`, in
    nats per token, and `error`, the share of tokens that were not the most likely ones.
    """

    def loss_fn(params: Any, aux: Any, batch: Any, key: Any) -> Any:
        source, target = batch["source"], batch["target"]
        logits, aux = _applied(model, params, aux, key, source, target[:, :-1])
        logits, label = logits.reshape(-1, logits.shape[-1]), target[:, 1:].reshape(-1)
        count = jnp.maximum(1, jnp.sum(label != 0))
        nll = cross_entropy(logits, label)
        weight = (label != 0) / count.astype(nll.dtype)
        loss = cross_entropy(logits, label, smoothing) if smoothing else nll
        # A reduction to the maximum is faster than one to its index.
        wrong = jnp.take_along_axis(logits, label[:, None], -1, mode="clip")[:, 0] < logits.max(-1)
        means = {"error": jnp.sum(weight * wrong), "nll": jnp.sum(weight * nll)}
        return jnp.sum(weight * loss), (aux, {**means, "weight": count})

    return loss_fn


def _applied(model: Any, params: Any, aux: Any, key: Any, *inputs: Any, **options: Any) -> tuple[Any, Any]:
    """The outputs of the model and its other collections: in training mode if there is a key."""
    variables = {"params": params, **(aux or {})}
    if key is None:
        return model.apply(variables, *inputs, **options), aux
    rngs, mutable = {"dropout": key}, list(aux or ())
    outputs, updated = model.apply(variables, *inputs, train=True, mutable=mutable, rngs=rngs, **options)
    return outputs, updated or aux
