"""Examples from disk to device: read, transformed and batched in the background by Grain.

    batches = Batches(found.train, partial(random_part, how="area", size=224), batch=256, seed=0, workers=8)
    batches(first, count)      {"image": uint8 [count, B, S, S, 3], "label": int32 [count, B]}

Every batch, with the order of the examples, their crops and their mirror images, is a function of only the seed and the
batch's number. So the number of the step is the position in the data, and a resumed run sees the same batches as an
uninterrupted one, to the bit, with any number of workers and of hosts, each of which makes its own rows of every batch.

Shapes: B batch, S side of a crop, N pictures. Grain is imported when the first batches are requested.
"""

import bisect
import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from dlc import process
from dlc.data import _workers, images
from dlc.errors import UserError, needs

Picture = tuple[Path | bytes, int]  # a file, or its content, and its label
How = Literal["fixed", "scale", "area"]
AHEAD = 2**27  # bytes of examples that are made before they are asked for, at most
WHOLE = 256 / 224  # the side to which a picture is resized before a crop of side 1 is taken, in all of the papers below


def random_part(example: Picture, rng: np.random.Generator, *, how: How, size: int) -> dict[str, Any]:
    """A random square part of a picture, or its mirror image: {"image": uint8 [size, size, 3], "label": int32}.

    "fixed": the shorter side is resized to 256, the square in the centre is kept, and 224 x 224 pixels anywhere in it
        are taken. Krizhevsky, Sutskever, Hinton 2012, "ImageNet classification with deep convolutional neural
        networks", sections 2 and 4.1.
    "scale": the shorter side is resized to a length between 256 and 480, and 224 x 224 pixels anywhere in the picture
        are taken. Simonyan, Zisserman 2014, "Very deep convolutional networks for large-scale image recognition",
        section 3.1; He et al. 2015, "Deep residual learning for image recognition", section 3.4.
    "area": a part with 8 to 100 % of the area and sides in a ratio between 3/4 and 4/3 is taken. Szegedy et al. 2014,
        "Going deeper with convolutions", section 6; Goyal et al. 2017, "Accurate, large minibatch SGD", section 5.1.

    Lengths are for a crop of 224 and scale with `size`. Only the part that is taken is resized, and once.
    Raises UserError naming a damaged file.
    """
    file, label = example
    choose = {"fixed": _fixed, "scale": _scale, "area": _area}[how]
    image = images.decode_part(file, functools.partial(choose, rng, size), size)
    return {"image": image[:, ::-1] if rng.random() < 0.5 else image, "label": np.int32(label)}


def centre(example: Picture, *, side: int) -> dict[str, Any]:
    """The square in the centre of a picture whose shorter side is resized to `side`; test crops are taken from it.

    Raises UserError naming a damaged file.
    """
    file, label = example
    return {"image": images.centre(images.decode(file), side, side), "label": np.int32(label)}


def _fixed(rng: np.random.Generator, size: int, height: int, width: int) -> images.Box:
    whole, shorter = round(size * WHOLE), min(height, width)
    x, y = rng.integers(whole - size, endpoint=True, size=2) * (shorter / whole)
    return _square((width - shorter) / 2 + float(x), (height - shorter) / 2 + float(y), size * shorter / whole)


def _scale(rng: np.random.Generator, size: int, height: int, width: int) -> images.Box:
    shorter = int(rng.integers(round(256 / 224 * size), round(480 / 224 * size), endpoint=True))
    pixel = min(height, width) / shorter  # of the resized picture
    x, y = (int(rng.integers(int(side / pixel) - size, endpoint=True)) * pixel for side in (width, height))
    return _square(x, y, size * pixel)


def _area(rng: np.random.Generator, size: int, height: int, width: int) -> images.Box:
    for _ in range(10):
        area, ratio = rng.uniform(0.08, 1) * height * width, math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(rng.integers(width - w, endpoint=True)), int(rng.integers(height - h, endpoint=True))
            return float(x), float(y), float(x + w), float(y + h)
    side = min(height, width)  # the picture is so narrow that no such part was found: its centre
    return _square((width - side) / 2, (height - side) / 2, side)


def _square(x: int | float, y: int | float, side: int | float) -> images.Box:
    return float(x), float(y), float(x + side), float(y + side)


class Batches:
    """Batches as a run asks for them, made ahead by threads of this process or by `workers` other processes.

    `view` makes an example what the network reads: a dict, or with a seed any tree, of arrays whose shapes are the same
    for every example. Boxes, masks and captions are padded there to one length.

    With a seed every pass is in another order, `view(example, rng)` draws from `rng`, and a batch may end one pass and
    begin the next. Without a seed the examples come in their own order through `view(example)`, in every pass; the last
    batch is filled with copies of the last example, and `counts`, bool [count, B], marks the ones that count.

    With a `sharding` batches are jax.Arrays placed so, otherwise NumPy arrays. Only the `rows` of every batch are made
    that the devices of this process hold. Given explicitly, without a sharding, they are all that a batch has.

    However many threads or workers there are, examples of about `AHEAD` bytes wait. Each makes a part of a batch at a
    time: the larger the examples and the more there are to make them, the smaller the part.
    """

    def __init__(
        self,
        examples: Sequence[Any],
        view: Callable[..., Any],
        *,
        batch: int,
        seed: int | None = None,
        workers: int = 0,
        sharding: Any = None,
        rows: Sequence[int] | None = None,
    ):
        if not len(examples):
            raise UserError("there are no examples to make batches of")
        needs("pictures", "grain")
        self.batch, self.workers, self.sharding = batch, workers, sharding
        self.rows = _rows_here(sharding, batch) if rows is None else rows
        self.in_order, self.examples = seed is None, len(examples)
        self.steps = -(-len(examples) // batch)  # batches in a pass
        self._source, self._view, self._seed = examples, view, seed
        self._iterator: Any = None
        self._at = self._part = 0  # the next batch, and how many examples are made at a time

    def __call__(self, first: int, count: int) -> Any:
        """Batches `first` to `first + count - 1`, stacked: leaves [count, B, ...].

        Raises UserError naming a damaged picture, and Stopped if a worker has died or shared memory is full.
        """
        import jax

        apart = first - self._at
        with _workers.said():
            if self._iterator is None or (apart % self.steps if self.in_order else apart):
                self._begin(first)
            made = self._shaped(count, len(self.rows), np.empty)
            rows = [leaf.reshape(-1, *leaf.shape[2:]) for leaf in jax.tree.leaves(made)]  # the same memory
            for at in range(0, count * len(self.rows), self._part):
                for leaf, part in zip(rows, jax.tree.leaves(next(self._iterator)), strict=True):
                    leaf[at : at + self._part] = part
        self._at = first + count
        return made if self.sharding is None else jax.tree.map(self._placed, made)

    def like(self, first: int, count: int) -> Any:
        """The shapes and dtypes of what a call would return, from one example. Raises UserError if it is damaged."""
        import jax

        rows = len(self.rows) if self.sharding is None else self.batch
        return self._shaped(count, rows, functools.partial(jax.ShapeDtypeStruct, sharding=self.sharding))

    def one(self, number: int) -> Any:
        """A single batch, leaves [B, ...], made in this process."""
        return self._made.batch(self.batch)[number]

    def close(self) -> None:
        """Ends the threads and workers; another call begins new ones."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _shaped(self, count: int, rows: int, new: Callable[..., Any]) -> Any:
        """The tree of `new(shape, dtype)` for that many batches of that many rows."""
        import jax

        leaves = jax.tree.map(np.asarray, self._example)
        return jax.tree.map(lambda leaf: new((count, rows, *leaf.shape), leaf.dtype), leaves)

    def _placed(self, made: np.ndarray) -> Any:
        """The rows of this process [count, rows, ...] as its part of the array [count, B, ...] on all devices."""
        import jax

        def part(index: Any) -> np.ndarray:
            first, end, _ = index[1].indices(self.batch)
            at = bisect.bisect_left(self.rows, first)
            return made[:, at : at + end - first]

        shape = (len(made), self.batch, *made.shape[2:])
        return jax.make_array_from_callback(shape, self.sharding, part)

    @functools.cached_property
    def _example(self) -> Any:
        """The first example as the batches hold it; its generator is thrown away, so no batch depends on this."""
        if self.in_order:
            return _Counted(self._view)((self._source[0], True))
        return self._view(self._source[0], np.random.default_rng(0))

    @functools.cached_property
    def _made(self) -> Any:
        """What the view makes of the examples, as Grain's endless sequence with random access."""
        import grain

        source = _InOrder(self._source, self.batch) if self.in_order else self._source
        passes = 2**52 // len(source)  # of the endless `repeat()`, batches of one cannot be counted
        if self.in_order:
            return grain.MapDataset.source(source).map(_Counted(self._view)).repeat(passes)
        return grain.MapDataset.source(source).seed(self._seed).shuffle().repeat(passes).random_map(self._view)

    def _begin(self, first: int) -> None:
        import grain
        import jax

        self.close()
        makers, ahead = self.workers or process.cores(), AHEAD
        if self.workers:
            free = _workers.free_shared_memory()
            ahead = ahead if free is None else min(ahead, free // 2)
        each = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(self._example)) or 1
        fitting, rows = max(1, ahead // (8 * makers * each)), len(self.rows)
        self._part = max(part for part in range(1, rows + 1) if rows % part == 0 and part <= fitting)
        waiting = max(1, min(ahead // (self._part * each), 2 * makers * rows // self._part))
        made = self._made
        if rows < self.batch:
            made = grain.MapDataset.source(_Rows(made, self.batch, self.rows))
        parts = made.batch(self._part)[first * rows // self._part :]
        if not self.workers:
            options = grain.ReadOptions(num_threads=min(makers, waiting), prefetch_buffer_size=waiting)
            self._iterator, self._at = iter(parts.to_iter_dataset(options)), first
            return
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, which are never given here
            flags.FLAGS.mark_as_parsed()
        # Of its eight parts, a worker is making one, another waits for a place in its queue, three are in the queue,
        # and three have been taken from it.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        queue = grain.MultiprocessingOptions(num_workers=makers, per_worker_buffer_size=3)
        start = functools.partial(_workers.work_for, os.getpid())
        self._iterator = iter(parts.to_iter_dataset(options).mp_prefetch(queue, worker_init_fn=start))
        self._at = first


def _rows_here(sharding: Any, batch: int) -> Sequence[int]:
    """The rows of a batch that the devices of this process hold, in order."""
    if sharding is None or sharding.is_fully_addressable:
        return range(batch)
    places = sharding.addressable_devices_indices_map((1, batch)).values()
    return sorted({row for _, rows in places for row in range(*rows.indices(batch))})


class _Rows(Sequence[Any]):
    """Some rows of every batch. Each is made by its number in the whole, from which its random draws come."""

    def __init__(self, made: Any, batch: int, rows: Sequence[int]):
        self.made, self.batch, self.rows = made, batch, rows

    def __len__(self) -> int:
        return len(self.made) // self.batch * len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        number, row = divmod(i, len(self.rows))
        return self.made[number * self.batch + self.rows[row]]


class _InOrder(Sequence[tuple[Any, bool]]):
    """The examples, then copies of the last one until the last batch is full; and whether each counts."""

    def __init__(self, examples: Sequence[Any], batch: int):
        self.examples, self.length = examples, -(-len(examples) // batch) * batch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: Any) -> Any:
        last = len(self.examples) - 1
        return self.examples[min(i, last)], i <= last


class _Counted:
    """A view with a mark whether the example counts."""

    def __init__(self, view: Callable[..., dict[str, Any]]):
        self.view = view

    def __call__(self, example: tuple[Any, bool]) -> dict[str, Any]:
        return {**self.view(example[0]), "counts": np.bool_(example[1])}


def some_pixels(examples: Sequence[Picture], count: int = 500) -> UInt8[np.ndarray, "N 3"]:
    """256 pixels of each of up to `count` pictures, spread evenly over the set, for computing statistics.

    Raises UserError naming a damaged file.
    """
    parts = []
    for i in range(0, len(examples), -(-len(examples) // count)):
        image = images.decode(examples[i][0])
        rows, columns = (np.linspace(0, n - 1, 16).astype(int) for n in image.shape[:2])
        parts.append(image[rows][:, columns].reshape(-1, 3))
    return np.concatenate(parts)
