"""Pictures on their way from the disk to the device: decoded, cropped and put in batches in the background, by Grain.

    batches = Batches(found.train, partial(random_part, how="area", size=224), batch=256, seed=0, workers=8)
    batches(first, count)      {"image": uint8 [count, B, S, S, 3], "label": int32 [count, B]}

Every batch is a function of the seed and its number alone: the order of the pictures, their crops and their mirrors.
So a resumed run sees what an uninterrupted one would have seen, to the bit, whatever the number of workers.

Shapes: B batch, S side of a crop, N pictures. Grain is imported when the first batches are asked for.
"""

import functools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from dlc.data import images
from dlc.errors import UserError

Example = tuple[Path | bytes, int]  # a file, or its content, and its label
How = Literal["fixed", "scale", "area"]
WHOLE = 256 / 224  # the side to which a picture is resized before a crop of side 1 is taken: all of the papers below


def random_part(example: Example, rng: np.random.Generator, *, how: How, size: int) -> dict[str, Any]:
    """A random part of a picture, `size` pixels square, or its mirror image: {"image": uint8 [S, S, 3], "label"}.

    "fixed": the shorter side is resized to 256 and the square in the middle kept, of which any 224 x 224 pixels are
        taken. Krizhevsky, Sutskever, Hinton 2012, "ImageNet classification with deep convolutional neural networks",
        sections 2 and 4.1.
    "scale": the shorter side is resized to a length between 256 and 480, and any 224 x 224 pixels are taken. Simonyan,
        Zisserman 2014, "Very deep convolutional networks for large-scale image recognition", section 3.1; He et al.
        2015, "Deep residual learning for image recognition", section 3.4.
    "area": any part of 8 to 100 % of the area, its sides as 3 to 4 up to 4 to 3. Szegedy et al. 2014, "Going deeper
        with convolutions", section 6; Goyal et al. 2017, "Accurate, large minibatch SGD", section 5.1.

    Lengths are those of a crop of 224 and grow with `size`. The picture is resized once, from the part that is taken.
    Raises UserError naming a file that is damaged.
    """
    file, label = example
    choose = {"fixed": _fixed, "scale": _scale, "area": _area}[how]
    image = images.decode_part(file, functools.partial(choose, rng, size), size)
    return {"image": image[:, ::-1] if rng.random() < 0.5 else image, "label": np.int32(label)}


def centre(example: Example, *, side: int) -> dict[str, Any]:
    """The square in the middle of a picture whose shorter side is resized to `side`: what the crops of a test are from.

    Raises UserError naming a file that is damaged.
    """
    file, label = example
    image = images.resize_shorter(images.decode(file), side)
    return {"image": images.centre_crop(image, side), "label": np.int32(label)}


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
    side = min(height, width)  # of a picture so narrow that no part of that shape was met, the middle
    return _square((width - side) / 2, (height - side) / 2, side)


def _square(x: int | float, y: int | float, side: int | float) -> images.Box:
    return float(x), float(y), float(x + side), float(y + side)


class Batches:
    """Batches of pictures as `Run.fit` asks for them, made ahead by threads of this process or by `workers` others.

    With a seed the order is another in every pass over the pictures, and `view(example, rng)` draws from `rng`; a batch
    may end one pass and begin the next. Without a seed the pictures come in their own order through `view(example)`,
    every pass alike; its last batch is filled up with copies of the last picture, and `counts`, bool [count, B], says
    which ones count.

    With a `sharding` batches are jax.Arrays placed so, else NumPy's.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        view: Callable[..., dict[str, Any]],
        *,
        batch: int,
        size: int,
        seed: int | None = None,
        workers: int = 0,
        sharding: Any = None,
    ):
        if not len(examples):
            raise UserError("there are no pictures to make batches of")
        self.size, self.batch, self.workers, self.sharding = size, batch, workers, sharding
        self.in_order, self.examples = seed is None, len(examples)
        self.steps = -(-len(examples) // batch)  # batches in a pass
        self._source, self._view, self._seed = examples, view, seed
        self._iterator: Any = None
        self._at = 0

    def __call__(self, first: int, count: int) -> dict[str, Any]:
        """The batches number `first`, `first` + 1, ..., stacked. Raises UserError naming a picture that is damaged."""
        apart = first - self._at
        if self._iterator is None or (apart % self.steps if self.in_order else apart):
            self._begin(first)
        try:
            batches = [next(self._iterator) for _ in range(count)]
        except UserError:
            raise
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise UserError(
                "a worker that decodes pictures has died, most often because memory ran out: continue with a smaller "
                "--workers, or 0"
            ) from None
        self._at = first + count
        stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        if self.sharding is None:
            return stacked
        import jax

        return jax.device_put(stacked, self.sharding)

    def like(self, first: int, count: int) -> dict[str, Any]:
        """The shapes of what a call would give, without a look at any picture."""
        import jax

        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "image": ((self.size, self.size, 3), np.uint8), "label": ((), np.int32)
        }  # fmt: skip
        if self.in_order:
            shapes["counts"] = (), np.bool_
        return {
            name: jax.ShapeDtypeStruct((count, self.batch, *shape), dtype, sharding=self.sharding)
            for name, (shape, dtype) in shapes.items()
        }

    def one(self, number: int) -> dict[str, Any]:
        """A single batch, leaves [B, ...], made here and now."""
        return self._batches[number]

    def close(self) -> None:
        """Ends the threads and workers; another call begins new ones."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    @functools.cached_property
    def _batches(self) -> Any:
        """All batches, as Grain's endless sequence of which any one can be asked for."""
        import grain

        if self._seed is None:
            source = grain.MapDataset.source(_InOrder(self._source, self.batch)).map(_Counted(self._view)).repeat()
        else:
            source = grain.MapDataset.source(self._source).seed(self._seed).shuffle().repeat().random_map(self._view)
        return source.batch(self.batch)

    def _begin(self, first: int) -> None:
        import grain

        self.close()
        # One thread makes a whole batch, and so many are made ahead at most: with 256 of 224 x 224 pixels, 39 MB each.
        threads = 1 if self.workers else (os.cpu_count() or 1)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        batches = self._batches[first:].to_iter_dataset(options)
        if self.workers:
            from absl import flags

            if not flags.FLAGS.is_parsed():  # Grain looks at flags of its own, which nobody here gives
                flags.FLAGS.mark_as_parsed()
            ahead = grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=2)
            batches = batches.mp_prefetch(ahead, worker_init_fn=functools.partial(_work_for, os.getpid()))
        self._iterator, self._at = iter(batches), first


class _InOrder(Sequence[tuple[Example, bool]]):
    """The examples and then, until a batch is full, copies of the last one; and whether each counts."""

    def __init__(self, examples: Sequence[Example], batch: int):
        self.examples, self.length = examples, -(-len(examples) // batch) * batch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: Any) -> Any:
        last = len(self.examples) - 1
        return self.examples[min(i, last)], i <= last


class _Counted:
    """A view with the mark that it counts, or not."""

    def __init__(self, view: Callable[..., dict[str, Any]]):
        self.view = view

    def __call__(self, example: tuple[Example, bool]) -> dict[str, Any]:
        return {**self.view(example[0]), "counts": np.bool_(example[1])}


def _work_for(parent: int, index: int, count: int) -> None:
    """What a worker begins with: Ctrl-C is for its parent to act on, and it ends when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def some_pixels(examples: Sequence[Example], count: int = 500) -> UInt8[np.ndarray, "N 3"]:
    """256 pixels of each of up to `count` pictures spread evenly over the set, to compute statistics from.

    Raises UserError naming a file that is damaged.
    """
    parts = []
    for i in range(0, len(examples), -(-len(examples) // count)):
        image = images.decode(examples[i][0])
        rows, columns = (np.linspace(0, n - 1, 16).astype(int) for n in image.shape[:2])
        parts.append(image[rows][:, columns].reshape(-1, 3))
    return np.concatenate(parts)
