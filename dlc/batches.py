"""Sequences of many lengths as arrays of a few shapes, so that a run compiles a handful of programs.

Shapes: N sequences, L length of a bucket, B sequences of a batch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from dlc.errors import UserError

PAD = 0
BatchesOf = Callable[[int, int], Any]  # (first, count) -> that many batches, stacked


def minibatches(examples: int, batch: int, shuffle: bool = False, seeds: Sequence[int] = (0,)) -> BatchesOf:
    """Rows of the batches `first .. first + count` of endless epochs, `[count, B]` int32, as a pure function of both.

    Without `shuffle` every epoch goes through the set in its own order; with it, epoch e is the permutation that the
    seed and e give, and several seeds give `[count, S, B]`. The rest that does not fill a batch is dropped.

    Raises UserError if not even one batch can be filled.
    """
    steps = steps_per_epoch(examples, batch)

    @functools.lru_cache(maxsize=2 * len(seeds))
    def epoch(number: int, seed: int) -> np.ndarray:
        order = np.random.default_rng((seed, number)).permutation(examples) if shuffle else np.arange(examples)
        return order[: steps * batch].reshape(steps, batch).astype(np.int32)

    def rows(first: int, count: int) -> np.ndarray:
        own = [np.stack([epoch(i // steps, seed)[i % steps] for i in range(first, first + count)]) for seed in seeds]
        return np.stack(own, axis=1) if shuffle and len(seeds) > 1 else own[0]

    return rows


def random_starts(tokens: int, length: int, batch: int, seeds: Sequence[int] = (0,)) -> BatchesOf:
    """Places at which windows of `length` + 1 of `tokens` tokens begin, drawn evenly: `[count, B]` int32.

    As with `minibatches` they are a function of the seed and the step, and several seeds give `[count, S, B]`.

    Raises UserError if there is not even one window.
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

    return starts


def steps_per_epoch(examples: int, batch: int) -> int:
    """How many whole batches there are. Raises UserError if there is not even one."""
    if not 0 < batch <= examples:
        raise UserError(f"a batch of {batch} cannot be drawn from {examples} examples: choose 1 to {examples}")
    return examples // batch


def padded(sequences: Sequence[np.ndarray], length: int) -> Int[np.ndarray, "N L"]:
    """The sequences as rows of int32, filled up with `PAD`. A longer one is cut."""
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
    """Batches of pairs of about the same length; how many make an epoch, on average; how many pairs are left out.

    A pair goes to the first of the `lengths` L that holds its source and what is read, or predicted, of its target (all
    but one token); its batches are {"source": [B, L], "target": [B, L + 1]} with B = `tokens` / L. `group` batches in a
    row have one shape, because they become one program; each bucket is shuffled anew whenever it has been gone through,
    and so is the order of the groups.

    The batches are a function `(first, count)` that stays within a group: `count` divides `group`, or is the rest of
    it. A bucket without pairs enough for one batch goes into the next longer one; left out are pairs longer than the
    last length, and the rest if that does not fill a batch either.

    Raises UserError if no bucket has pairs enough for a batch.
    """
    needs = np.array([max(len(s), len(t) - 1) for s, t in zip(source, target, strict=True)])
    place = np.searchsorted(lengths, needs)
    buckets: list[Any] = []
    rows: list[int] = []
    for i, length in enumerate(lengths):
        rows, size = [*rows, *np.flatnonzero(place == i).tolist()], max(1, tokens // length)
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
        raise UserError(f"{len(needs)} pairs do not fill a batch of {tokens} tokens: take smaller batches")
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
    """The windows of `length` + 1 tokens that lie side by side; each begins with the last token of the one before it.

    So every token but the first is predicted once; what does not fill a window is left out. Raises UserError if that is
    everything.
    """
    count = (len(tokens) - 1) // length
    if count < 1:
        raise UserError(f"a text of {len(tokens)} tokens has no window of {length} + 1: take a longer text")
    return tokens[: count * length + 1][np.arange(count)[:, None] * length + np.arange(length + 1)[None]]
