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
    names = [name for name in ("loss", "error") if any(name in line for line in history)]
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
        axis.legend(frameon=False)
    return figure


def compute(milestones: dict[str, tuple[int, float]], ours: dict[str, tuple[int, float]]) -> Figure:
    """Training compute (petaflop/s-days) against the year: `milestones` name -> (year, compute), and `ours` in red.

    It is the chart of Amodei and Hernandez 2018, "AI and compute", with its addendum.
    """
    figure = Figure(figsize=(10, 7), dpi=150, layout="constrained")
    axis = figure.subplots()
    right = max(year for year, _ in (*milestones.values(), *ours.values())) + 2
    for points, color, marker in ((milestones, INK, "o"), (ours, ACCENT, "_")):
        years, amounts = zip(*points.values(), strict=True) if points else ((), ())
        axis.scatter(years, amounts, color=color, marker=marker, s=22, zorder=3)
    axis.set(yscale="log", xlabel="year", ylabel="training, petaflop/s-days", xlim=(1945, right + 18))
    low, high = np.log10(axis.get_ylim())
    line, letter = (high - low) / 48, 0.65  # the size of text, in powers of ten and in years

    taken = [(year - 0.5, year + 0.5, np.log10(amount)) for year, amount in milestones.values()]
    for name, (year, amount) in sorted(milestones.items(), key=lambda item: -item[1][1]):
        wide, y = letter * len(name), np.log10(amount)
        places = [(x, y + up * line) for up in (0, 1, -1, 2, -2) for x in (year - 1 - wide, year + 1)]
        free = (
            (x, y)
            for x, y in places
            if not any(x < end and x + wide > begin and abs(y - z) < 0.9 * line for begin, end, z in taken)
        )
        x, y = next(free, places[0])
        taken.append((x, x + wide, y))
        x, side = (x, "left") if x > year else (x + wide, "right")
        axis.text(x, 10**y, name, fontsize=7, color=INK, va="center", ha=side)

    below, heights = -np.inf, {}
    for name, (_, amount) in sorted(ours.items(), key=lambda item: item[1][1]):
        below = heights[name] = max(below + line, np.log10(amount))  # names that would lie on one another move up
    down = np.mean([y - np.log10(ours[name][1]) for name, y in heights.items()]) if ours else 0.0  # and all down again
    arrow = {"arrowstyle": "-", "color": ACCENT, "linewidth": 0.4, "relpos": (0, 0.5), "shrinkB": 3}
    for name, y in heights.items():
        place = (right, 10 ** (y - down))
        axis.annotate(name, ours[name], place, fontsize=7, color=ACCENT, va="center", arrowprops=arrow)
    axis.grid(alpha=0.25)
    return figure


def time_per_image(seconds: dict[str, dict[int, float]]) -> Figure:
    """Milliseconds an image against the batch size, a line for each network name -> {batch: seconds}.

    It is figure 3 of Canziani et al. 2016, "An analysis of deep neural network models for practical applications".
    """
    figure = Figure(figsize=(7.5, 5.5), dpi=150, layout="constrained")
    axis = figure.subplots()
    slowest_first = sorted(seconds, key=lambda name: -list(seconds[name].values())[-1])  # as the lines end
    for i, name in enumerate(slowest_first):
        points = seconds[name]
        milliseconds = [1e3 * second for second in points.values()]
        axis.plot(list(points), milliseconds, color=f"C{i % 10}", marker="osv^D"[i // 10 % 5], markersize=4, label=name)
    axis.set(xscale="log", yscale="log", xlabel="batch", ylabel="milliseconds an image")
    batches = sorted({batch for points in seconds.values() for batch in points})
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside right upper", fontsize=8)
    return figure


def accuracy_against_operations(networks: dict[str, tuple[float, float, int]]) -> Figure:
    """Top-1 accuracy (%) against billions of operations, name -> (operations, accuracy, weights): discs, of that area.

    It is figure 2 of Canziani et al. 2016, "An analysis of deep neural network models for practical applications".
    """
    figure = Figure(figsize=(7.5, 5), dpi=150, layout="constrained")
    axis = figure.subplots()
    names: list[tuple[float, float]] = []  # where they stand
    for i, name in enumerate(sorted(networks, key=lambda name: networks[name])):
        operations, accuracy, weights = networks[name]
        axis.scatter(operations, accuracy, s=weights / 1e5, color=f"C{i % 10}", alpha=0.5, linewidth=0)
        axis.scatter(operations, accuracy, s=3, color=INK)
        taken = any(operations - x < 5 and abs(accuracy + 0.5 - y) < 1 for x, y in names)
        names.append((operations, accuracy + (-1 if taken else 0.5)))
        offset = 4, -10 if taken else 4
        axis.annotate(name, (operations, accuracy), offset, textcoords="offset points", fontsize=7)
    axis.set(xlabel="billions of operations an image", ylabel="top-1 accuracy (%)")
    axis.margins(0.12)
    axis.set_title("the area of a disc: the weights", fontsize=8)
    axis.grid(alpha=0.25)
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
