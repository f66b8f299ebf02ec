"""Figures: arrays in, a matplotlib Figure out. Nothing is shown or saved here.

Glossary: N examples, H W height and width, C channels, K classes, S seeds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, MaxNLocator

INK, ACCENT = "#1b3a5c", "#c8553d"


def curves(history: list[dict[str, Any]], steps_per_epoch: int = 1, seeds: int = 1, held_out: str = "test") -> Figure:
    """Loss and error, if any, against epochs (or steps, if `steps_per_epoch` is 1), in training and on `held_out`.

    Several seeds are drawn as their mean, in a band of one standard deviation.
    """
    names = [name for name in ("loss", "error") if any(name in line for line in history)] or ["loss"]
    figure = Figure(figsize=(4.5 * len(names), 3.4), dpi=150, layout="constrained")
    band = f", mean ± std of {seeds} seeds" if seeds > 1 else ""
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        scale, label = {"loss": (1, "loss (nats)"), "error": (100, "error (%)")}[name]
        for key, color, title in ((name, INK, "training"), (f"{held_out}_{name}", ACCENT, held_out)):
            lines = [line for line in history if key in line]
            if not lines:
                continue
            x = np.array([line["step"] for line in lines]) / steps_per_epoch
            several = isinstance(lines[0][key], dict)
            y = scale * np.array([line[key]["mean"] if several else line[key] for line in lines])
            axis.plot(
                x, y, color=color, label=title + band, linewidth=1.4, marker="o" if len(x) < 30 else None, markersize=3
            )
            if several:
                spread = scale * np.array([line[key]["std"] for line in lines])
                axis.fill_between(
                    x, np.maximum(y - spread, y.min() / 2), y + spread, color=color, alpha=0.2, linewidth=0
                )
        axis.set(xlabel="epoch" if steps_per_epoch > 1 else "step", ylabel=label, yscale="log")
        axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
        axis.tick_params(axis="y", which="minor", labelsize=7)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
        if axis.lines:  # none if the log was lost
            axis.legend(frameon=False)
    return figure


def attention(weights: dict[str, np.ndarray], rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Attention weights [T, S] by name, one picture each: black is none of a row's attention, white is all of it.

    Like figure 3 of Bahdanau et al. 2014, but the brightness is the square root. `rows` [T] are the tokens that attend,
    `columns` [S] the tokens attended to.
    """
    across = min(len(weights), 2)
    down, size = -(-len(weights) // across), 9 if across == 1 else 7
    wide, high = (1.2 + 0.2 * max(len(words), 6) for words in (columns, rows))
    figure = Figure(figsize=(wide * across, high * down), dpi=150, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis, (name, values) in zip(axes, weights.items(), strict=False):
        axis.imshow(np.sqrt(values), cmap="gray", vmin=0, vmax=1)
        axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size)
        axis.set_yticks(range(len(rows)), rows, fontsize=size)
        axis.xaxis.tick_top()
        axis.set_xlabel(name, fontsize=size)
    for axis in axes[len(weights) :]:
        axis.remove()
    return figure


def filters(kernel: Any, columns: int = 8) -> Figure:
    """The filters [H, W, 1, C] of a first layer side by side on one scale: white is 0, blue below it, red above."""
    kernel = np.asarray(kernel)
    limit = float(np.abs(kernel).max())
    tiles = _mosaic(np.moveaxis(kernel[:, :, 0], -1, 0), columns, fill=np.nan)
    figure = Figure(figsize=(6.4, 6.4 * tiles.shape[0] / tiles.shape[1]), dpi=150)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.imshow(tiles, cmap="RdBu_r", vmin=-limit, vmax=limit)
    return figure


def confusion(counts: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """A confusion matrix [K, K]: rows are true classes, columns predicted ones, colour the share of mistakes."""
    figure = Figure(figsize=(5.4, 5), dpi=150, layout="constrained")
    axis = figure.subplots()
    # Colour only the mistakes: next to a diagonal of 99 % they would all look white.
    mistakes = counts / np.maximum(counts.sum(1, keepdims=True), 1) * (1 - np.eye(len(counts)))
    axis.imshow(mistakes, cmap="Reds", vmin=0)
    for (i, j), count in np.ndenumerate(counts):
        if count and len(counts) <= 20:
            shade = "white" if mistakes[i, j] > 0.6 * mistakes.max() else INK
            axis.text(j, i, str(count), ha="center", va="center", fontsize=7, color=shade)
    ticks = np.arange(len(classes))
    axis.set_xticks(ticks, classes, rotation=0 if max(map(len, classes)) < 3 else 60)
    axis.set_yticks(ticks, classes)
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.set_title("colour: the share of each true class that is mistaken", fontsize=8)
    return figure


def mistakes(
    images: np.ndarray, logits: np.ndarray, label: np.ndarray, classes: tuple[str, ...], most: int = 24
) -> Figure:
    """The images [N, H, W, C] (uint8) whose logits [N, K] are furthest from the label, with both answers."""
    shifted = logits - logits.max(-1, keepdims=True)
    probability = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    answer = logits.argmax(-1)
    wrong = np.flatnonzero(answer != label)
    worst = wrong[np.argsort(probability[wrong, label[wrong]], kind="stable")][:most]
    H, W, C = images.shape[1:]
    columns, above = 8, round(0.45 * H)  # room for two lines of text above each image
    shown = np.pad(
        255 - images[worst] if C == 1 else images[worst], ((0, 0), (above, 0), (0, 0), (0, 0)), constant_values=255
    )
    if not len(worst):
        shown = np.full((1, above + H, W, C), 255, np.uint8)
    tiles = _mosaic(shown, columns, fill=255)
    figure = Figure(figsize=(9.2, 9.2 * tiles.shape[0] / tiles.shape[1]), dpi=150)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.imshow(tiles.squeeze(-1) if C == 1 else tiles, cmap="gray", vmin=0, vmax=255)
    for place, i in enumerate(worst):
        row, column = divmod(place, columns)
        x, y = column * (W + 1) + W / 2, row * (above + H + 1) + above - 1
        text = f"{classes[answer[i]]} ({probability[i, answer[i]]:.0%})\ntrue: {classes[label[i]]}"
        axis.text(x, y, text, ha="center", va="bottom", fontsize=8, color=INK)
    if not len(worst):
        axis.text(columns * W / 2, above, "no mistakes", ha="center")
    return figure


def sheet(rows: dict[str, np.ndarray], stacks: int = 1) -> Figure:
    """Rows of images [N, h, w, C] (uint8), each after its name; with several `stacks`, in that many columns of rows.

    Smaller images lie in the middle of a place as large as the largest one.
    """
    H, W = (max(images.shape[axis] for images in rows.values()) for axis in (1, 2))
    columns, deep = max(map(len, rows.values())), -(-len(rows) // stacks)
    # A whole number of dots for a pixel keeps pixels sharp and square; an image is 0.6 inch wide, a letter 0.06.
    dpi = 150
    inch = dpi / max(1, round(0.6 * dpi / W))  # in pixels
    margin = round((0.06 * max(map(len, rows)) + 0.15) * inch)
    across = margin + columns * (W + 1)
    paper = np.full((deep * (H + 1) - 1, stacks * across - 1, 3), 255, np.uint8)
    figure = Figure(figsize=(paper.shape[1] / inch, paper.shape[0] / inch), dpi=dpi)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    for place, (name, images) in enumerate(rows.items()):
        stack, row = divmod(place, deep)
        h, w = images.shape[1:3]
        left, top = stack * across + margin, row * (H + 1)
        for column, image in enumerate(images):
            y, x = top + (H - h) // 2, left + column * (W + 1) + (W - w) // 2
            paper[y : y + h, x : x + w] = image  # one channel becomes three
        axis.text(left - 0.1 * W, top + H / 2, name, ha="right", va="center", fontsize=8, color=INK)
    axis.imshow(paper, interpolation="nearest")
    return figure


def _mosaic(images: np.ndarray, columns: int, fill: float | int) -> np.ndarray:
    """Images [N, H, W, ...] side by side in one array, `columns` across, with a line of `fill` between them.

    One picture, because matplotlib needs a tenth of a second for every few axes.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    blank = rows * columns - len(images)
    edges = ((0, blank), (0, 1), (0, 1), *((0, 0),) * (images.ndim - 3))
    tiles = np.pad(images.astype(np.float32), edges, constant_values=fill)
    tiles[len(images) :] = fill
    tiles = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
    mosaic = tiles.reshape(rows * tiles.shape[1], columns * tiles.shape[3], *tiles.shape[4:])[:-1, :-1]
    return mosaic if np.isnan(fill) else mosaic.astype(np.uint8)
