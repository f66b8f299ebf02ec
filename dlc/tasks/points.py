"""The four data sets of the TensorFlow playground, points in the plane of two classes, and pictures of answers to them.

Glossary: N points, G points of the grid of pictures, T frames.

References: Smilkov, Carter, Sculley, Viégas, Wattenberg 2017, "Direct-manipulation visualization of deep networks"; the
numbers are those of its program, playground.tensorflow.org.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

SIDE = 6.0  # pictures show coordinates of -6 to 6
LINE = np.linspace(-SIDE, SIDE, 96)
GRID = np.stack(np.meshgrid(LINE, LINE[::-1]), -1).reshape(-1, 2).astype(np.float32)  # [G, 2], from the top left
SHADES = np.array([(0, 114, 178), (213, 94, 0)])  # of the two classes
INKS = np.array([(0, 60, 100), (130, 50, 0)], np.uint8)  # of their points

Points = tuple[np.ndarray, np.ndarray]  # float64 [N, 2], mostly within -6 to 6, and classes 0 and 1, [N]


def circles(rng: np.random.Generator, count: int, noise: float) -> Points:
    """A disc of radius 2.5 in a ring of radius 3.5 to 5."""
    radius = np.where(np.arange(count) % 2, rng.uniform(0, 2.5, count), rng.uniform(3.5, 5, count))
    angle = rng.uniform(0, 2 * np.pi, count)
    x = radius[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1)
    return x, np.linalg.norm(x + _moved(rng, count, noise), axis=1) < 2.5


def xor(rng: np.random.Generator, count: int, noise: float) -> Points:
    """Four squares, like a chessboard's."""
    x = rng.uniform(-5, 5, (count, 2))
    x += 0.3 * np.sign(x)
    return x, (x + _moved(rng, count, noise)).prod(1) >= 0


def gaussians(rng: np.random.Generator, count: int, noise: float) -> Points:
    """Two normal distributions, around (2, 2) and (-2, -2)."""
    label = np.arange(count) % 2
    return np.where(label, 2, -2)[:, None] + np.sqrt(0.5 + 7 * noise) * rng.normal(size=(count, 2)), label


def spirals(rng: np.random.Generator, count: int, noise: float) -> Points:
    """Two arms, each of one turn and three quarters."""
    label, along = np.arange(count) % 2, np.arange(count) // 2 * 2 / count
    angle = 3.5 * np.pi * along + np.pi * label
    x = 5 * along[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1)
    return x + noise * rng.uniform(-1, 1, (count, 2)), label


SETS = {"circles": circles, "XOR": xor, "gaussians": gaussians, "spirals": spirals}


def draw(name: str, seed: int, count: int, noise: float) -> Points:
    """`count` points of a set, in random order. `noise`, 0 to 0.5, is the playground's slider divided by 100.

    It moves points of circles and XOR only for the label, which is then wrong near the border.
    """
    rng = np.random.default_rng((seed, list(SETS).index(name)))
    x, label = SETS[name](rng, count, noise)
    order = rng.permutation(count)
    return x[order].astype(np.float32), label[order].astype(np.int32)


def problems(seeds: Iterable[int], count: int, noise: float) -> Points:
    """The points of all sets, one after another, with all seeds: [4 S, N, 2] and [4 S, N]."""
    drawn = [draw(name, seed, count, noise) for name in SETS for seed in seeds]
    return np.stack([x for x, _ in drawn]), np.stack([label for _, label in drawn])


def _moved(rng: np.random.Generator, count: int, noise: float) -> np.ndarray:
    return noise * rng.uniform(-5, 5, (count, 2))


def coloured(logit: Any) -> np.ndarray:
    """Answers on the grid, logits [..., G] of class 1, as pictures [..., 96, 96, 3] (uint8) of nine shades."""
    shade = np.rint(8 / (1 + np.exp(-np.clip(np.asarray(logit), -20, 20)))) / 8
    towards = np.where(shade[..., None] > 0.5, SHADES[1], SHADES[0])
    mixed = 255 + (towards - 255) * np.abs(2 * shade - 1)[..., None] * 0.7
    return mixed.astype(np.uint8).reshape(*shade.shape[:-1], LINE.size, LINE.size, 3)


def show(axis: Any, logit: Any, x: np.ndarray, label: np.ndarray) -> None:
    """Draws the answers on the grid, [G], and some points [N, 2]."""
    axis.imshow(coloured(logit), extent=(-SIDE, SIDE) * 2, interpolation="nearest")
    axis.scatter(*x.T, s=6, c=INKS[label] / 255, linewidths=0)
    axis.set(xticks=[], yticks=[], xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE))


def film(x: np.ndarray, label: np.ndarray, logit: Any) -> np.ndarray:
    """Frames [T, H, W, 3] of the answers [P, T, G] to P problems side by side, with their points [P, N, 2]."""
    panels = coloured(logit)
    places = np.rint((np.clip(x, -SIDE, SIDE) * (1, -1) + SIDE) / (2 * SIDE) * (LINE.size - 1)).astype(int)
    for panel, place, ink in zip(panels, places, INKS[label], strict=True):
        panel[:, place[:, 1], place[:, 0]] = ink
    panels = np.pad(panels, ((0, 0), (0, 0), (0, 0), (2, 2), (0, 0)), constant_values=255)
    return np.concatenate(list(panels), axis=2).repeat(2, 1).repeat(2, 2)
