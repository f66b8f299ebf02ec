"""Metrics: arrays in, numbers out.

Glossary: N examples, C classes. Leading axes (`*runs`) are kept, so that eight seeds give eight numbers.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dlc.errors import needs

Either = Array | np.ndarray  # labels often come straight from a data set


def error(logits: Float[Either, "*runs N C"], label: Int[Either, " N"]) -> Float[Array, "*runs"]:
    """The fraction of examples, 0 to 1, whose largest logit is not that of their label. Of equals the first counts."""
    wrong = jnp.argmax(logits, axis=-1) != jnp.broadcast_to(label, logits.shape[:-1])
    return wrong.mean(axis=-1, dtype=jnp.promote_types(jnp.asarray(logits).dtype, jnp.float32))


def among_top_k(logits: Float[Either, "*runs N C"], label: Int[Either, " N"], k: int) -> Bool[Array, "*runs N"]:
    """For each example, whether its label is among the `k` largest logits. Of equal logits the first counts.

    The top-k error is `1 - among_top_k(logits, label, k).mean(-1)`. With k or fewer classes every label is among them.
    """
    _, best = jax.lax.top_k(jnp.asarray(logits), min(k, logits.shape[-1]))
    return (best == jnp.broadcast_to(label, logits.shape[:-1])[..., None]).any(axis=-1)


def confusion(prediction: Int[Either, " N"], label: Int[Either, " N"], classes: int) -> Int[Array, "C C"]:
    """How often class j (column) was predicted where class i (row) was correct."""
    return jnp.zeros((classes, classes), jnp.int32).at[label, prediction].add(1)


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """BLEU in percent, 0 to 100, of translations with one reference each, and the signature of sacrebleu's settings.

    Pass plain texts that are not tokenised. sacrebleu applies its own tokenisation ("13a"), which makes results
    comparable.

    References: Papineni et al. 2002, "BLEU"; Post 2018, "A call for clarity in reporting BLEU scores".
    """
    needs("text", "sacrebleu")
    from sacrebleu.metrics import BLEU

    return _score(BLEU(), hypotheses, references)


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """chrF in percent, 0 to 100: an F-score of the sequences of up to six characters, and sacrebleu's signature.

    A word with a wrong ending counts in part, which BLEU counts as wrong. The arguments are those of `bleu`.

    References: Popovic 2015, "chrF: character n-gram F-score for automatic MT evaluation".
    """
    needs("text", "sacrebleu")
    from sacrebleu.metrics import CHRF

    return _score(CHRF(), hypotheses, references)


def _score(metric: Any, hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    score = metric.corpus_score(list(hypotheses), [list(references)]).score
    return score, str(metric.get_signature())
