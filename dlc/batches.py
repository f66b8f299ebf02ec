"""Batches: which rows of a data set, or windows of a text, each step sees, as pure functions of seed and step.

Sequences of many lengths become arrays of a few shapes, so that a run compiles only a handful of programs.

Shapes: N examples or sequences, B examples of a batch, S seeds, L length of a bucket.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from dlc.errors import UserError

PAD = 0
BatchesOf = Callable[[int, int], Any]  # (first, count) -> that many batches, stacked


def minibatches(examples: int, batch: int, shuffle: bool = False, seeds: Sequence[int] = (0,)) -> BatchesOf:
    """A function `(first, count)` that gives the rows of batches `first` to `first + count` of endless epochs.

    The rows are int32, `[count, B]`. Without `shuffle`, every epoch goes through the data set in order. With it, the
    seed and the number of the epoch determine a permutation, and several seeds give `[count, S, B]`. The last examples
    of an epoch are dropped if they do not fill a batch.

    Raises UserError if there are too few examples for one batch.
    """
    steps = steps_per_epoch(examples, batch)

    @functools.lru_cache(maxsize=2 * len(seeds))
    def epoch(number: int, seed: int) -> np.ndarray:
        order = np.random.default_rng((seed, number)).permutation(examples) if shuffle else np.arange(examples)
        return order[: steps * batch].reshape(steps, batch).astype(np.int32)

    def rows(first: int, count: int) -> np.ndarray:
        own = [np.stack([epoch(i // steps, seed)[i % steps] for i in range(first, first + count)]) for seed in seeds]
        return np.stack(own, axis=1) if shuffle and len(seeds) > 1 else own[0]

    return _shaped(rows, (len(seeds), batch) if shuffle and len(seeds) > 1 else (batch,))


def random_starts(tokens: int, length: int, batch: int, seeds: Sequence[int] = (0,)) -> BatchesOf:
    """A function like `minibatches` for a text of `tokens` tokens: the starts of random windows of `length` + 1 tokens.

    The starts are int32, `[count, B]`, drawn uniformly. They are a function of the seed and the step, and several seeds
    give `[count, S, B]`.

    Raises UserError if the text is shorter than one window.
    """
    if tokens <= length:
        raise UserError(f"a text of {tokens} tokens has no window of {length} + 1: take a longer text")

    def starts(first: int, count: int) -> np.ndarray:
        drawn = [
            [np.random.default_rng((seed, step)).integers(tokens - length, size=batch) for seed in seeds]
            for step in range(first, first + count)
        ]
        several = np.array(drawn, np.int32)
        return several if len(seeds) > 1 else several[:, 0]

    return _shaped(starts, (len(seeds), batch) if len(seeds) > 1 else (batch,))


def _shaped(batches: BatchesOf, one: tuple[int, ...]) -> BatchesOf:
    """`batches`, int32 [count, *one], with a method `like` that gives their shapes without making them."""
    like = functools.lru_cache(maxsize=4)(lambda count: jax.ShapeDtypeStruct((count, *one), np.int32))
    batches.like = lambda first, count: like(count)  # type: ignore[attr-defined]
    return batches


def steps_per_epoch(examples: int, batch: int) -> int:
    """The number of whole batches in an epoch. Raises UserError if there is none."""
    if not 0 < batch <= examples:
        raise UserError(f"a batch of {batch} cannot be drawn from {examples} examples: choose 1 to {examples}")
    return examples // batch


def padded(sequences: Sequence[np.ndarray], length: int) -> Int[np.ndarray, "N L"]:
    """The sequences as rows of int32, padded with `PAD` or truncated to `length`."""
    rows = np.full((len(sequences), length), PAD, np.int32)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = sequence[:length]
    return rows


def bucketed(
    source: Sequence[np.ndarray],
    target: Sequence[np.ndarray],
    *,
    lengths: Sequence[int],
    tokens: int,
    group: int,
    seed: int = 0,
) -> tuple[BatchesOf, int, int]:
    """Batches of pairs of similar length, the average number of batches in an epoch, and the number of pairs left out.

    A pair goes to the bucket of the first length L in `lengths` that holds both its source and all but one token of its
    target (the decoder reads all tokens but the last and predicts all but the first). Its batches are
    {"source": [B, L], "target": [B, L + 1]} with B = `tokens` / L, from 32 on a multiple of eight, so that up to eight
    devices can share a batch. `group` consecutive batches have the same shape, because they become one program. Each
    bucket is reshuffled after every pass through it, and so is the order of the groups.

    The batches are a function `(first, count)` that must stay within a group: `count` divides `group` or completes it.
    A bucket with too few pairs for one batch is merged into the next longer one. Pairs longer than the last length are
    left out, and so is the last bucket if it does not fill a batch.

    Raises UserError if no bucket has enough pairs for a batch.
    """
    needs = np.array([max(len(s), len(t) - 1) for s, t in zip(source, target, strict=True)])
    place = np.searchsorted(lengths, needs)
    buckets: list[Any] = []
    rows: list[int] = []
    for i, length in enumerate(lengths):
        rows, size = [*rows, *np.flatnonzero(place == i).tolist()], max(1, tokens // length)
        size = size // 8 * 8 if size >= 32 else size
        if len(rows) < size:
            continue
        arrays = {
            "source": padded([source[row] for row in rows], length),
            "target": padded([target[row] for row in rows], length + 1),
        }
        own = minibatches(len(rows), size, shuffle=True, seeds=(seed + 1000 * i,))
        buckets.append((arrays, own, max(1, round(len(rows) / size / group))))
        rows = []
    if not buckets:
        raise UserError(f"{len(needs)} pairs do not fill a batch of {tokens} tokens: choose smaller batches")
    turns = np.repeat(np.arange(len(buckets)), [groups for _, _, groups in buckets])

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(turns)

    def batches(first: int, count: int) -> dict[str, np.ndarray]:
        (epoch, turn), within = divmod(first // group, len(turns)), first % group
        assert within + count <= group, "these batches have two shapes"
        mine = order(epoch)[turn]
        arrays, rows, groups = buckets[mine]
        before = epoch * groups + int((order(epoch)[:turn] == mine).sum())  # groups of this bucket so far
        index = rows(before * group + within, count)
        return {name: array[index] for name, array in arrays.items()}

    return batches, len(turns) * group, len(rows) + int((place == len(lengths)).sum())


def windows(tokens: Int[np.ndarray, " N"], length: int) -> Int[np.ndarray, "W L"]:
    """Consecutive windows of `length` + 1 tokens, each of which begins with the last token of the previous one.

    Every token but the first is therefore predicted once. The tokens at the end that do not fill a window are left out.

    Raises UserError if the text is shorter than one window.
    """
    count = (len(tokens) - 1) // length
    if count < 1:
        raise UserError(f"a text of {len(tokens)} tokens has no window of {length} + 1: take a longer text")
    return tokens[: count * length + 1][np.arange(count)[:, None] * length + np.arange(length + 1)[None]]
