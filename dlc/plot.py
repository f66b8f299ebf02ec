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
    """Loss and, where there is one, error against epochs (or, one to an epoch, steps), in training and `held_out`.

    Several seeds are their mean, in a band of one deviation.
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


def against_seconds(history: list[dict[str, Any]], target: int | float) -> Figure:
    """Test accuracy (%) against the seconds of training it took, with a line at the accuracy `target` (%)."""
    lines = [line for line in history if "test_error" in line]
    errors = [np.mean(e["values"] if isinstance(e := line["test_error"], dict) else e) for line in lines]
    figure = Figure(figsize=(5.4, 3.4), dpi=150, layout="constrained")
    axis = figure.subplots()
    seconds = [line["seconds"]["train"] + line["seconds"]["start"] for line in lines]
    axis.plot(seconds, [100 * (1 - error) for error in errors], color=ACCENT, marker="o", markersize=3, linewidth=1.4)
    axis.axhline(target, color=INK, linewidth=0.8, linestyle=":")
    axis.annotate(f"{target:g} %", (0, target), textcoords="offset points", xytext=(2, 3), fontsize=8, color=INK)
    axis.set(xlabel="seconds of training", ylabel="test accuracy (%), of one view", xlim=(0, None))
    axis.grid(alpha=0.25)
    return figure


def training_and_test(histories: dict[str, list[dict[str, Any]]]) -> Figure:
    """Error (%) against iterations for several networks, as in figure 6 of He et al. 2015: training dotted, test solid.

    With several seeds it is their mean.
    """
    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axis = figure.subplots()
    for i, (name, history) in enumerate(histories.items()):
        for key, style in (("error", {"linestyle": ":", "linewidth": 0.9}), ("test_error", {"linewidth": 1.8})):
            lines = [line for line in history if key in line]
            error = [100 * np.mean(e["values"] if isinstance(e := line[key], dict) else e) for line in lines]
            axis.plot(
                [line["step"] for line in lines], error, color=f"C{i}", label=None if key == "error" else name, **style
            )
    axis.set(xlabel="iterations", ylabel="error (%): training dotted, test solid", ylim=(0, None))
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    return figure


def against_depth(errors: dict[str, dict[int, Any]], claimed: dict[int, float]) -> Figure:
    """Test error (%) against depth, a line for each variant {depth: error}, beside what was claimed {depth: error}.

    An error is one number or [S]: its mean, with a bar of one standard deviation.
    """
    figure = Figure(figsize=(5.4, 3.8), dpi=150, layout="constrained")
    axis = figure.subplots()
    if claimed:
        axis.plot(list(claimed), [100 * e for e in claimed.values()], "o:", color="gray", label="the paper, residual")
    for i, (name, points) in enumerate(errors.items()):
        values = [100 * np.atleast_1d(np.asarray(error)) for error in points.values()]
        spread = [value.std(ddof=1) if len(value) > 1 else 0 for value in values]
        mean = [value.mean() for value in values]
        axis.errorbar(list(points), mean, spread, color=f"C{i}", marker="o", label=name, capsize=3)
    axis.set(xlabel="layers", ylabel="test error (%)")
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
    """Attention weights [T, S] by name, a picture each: black is none of a row's attention and white all of it.

    It is figure 3 of Bahdanau et al. 2014, but with the square root for the brightness. `rows` [T] are the tokens that
    attend and `columns` [S] those attended to.
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


def filters(kernel: np.ndarray, columns: int = 8) -> Figure:
    """The filters [H, W, 1, C] of a first layer side by side on one scale: white is 0, blue below it, red above."""
    limit = float(np.abs(kernel).max())
    tiles = _mosaic(np.moveaxis(kernel[:, :, 0], -1, 0), columns, fill=np.nan)
    figure = Figure(figsize=(6.4, 6.4 * tiles.shape[0] / tiles.shape[1]), dpi=150)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.imshow(tiles, cmap="RdBu_r", vmin=-limit, vmax=limit)
    return figure


def confusion(counts: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """A confusion matrix [K, K]: rows the true class, columns the predicted one, colour the share that is mistaken."""
    figure = Figure(figsize=(5.4, 5), dpi=150, layout="constrained")
    axis = figure.subplots()
    # Colour only the mistakes: beside a diagonal of 99 % they would all look white.
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
    """The images [N, H, W, C] (uint8) on which the logits [N, K] are furthest from the label, with both answers."""
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


def answers(images: np.ndarray, titles: Sequence[str], names: list[list[str]], probabilities: np.ndarray) -> Figure:
    """Images [N, H, W, 3] (uint8), and beside each bars for its `names`, whose probabilities are [N, K]."""
    figure = Figure(figsize=(6.4, 1.7 * len(images)), dpi=150, layout="constrained")
    axes = figure.subplots(len(images), 2, squeeze=False, width_ratios=(1, 2.4))
    for (left, right), image, title, labels, values in zip(axes, images, titles, names, probabilities, strict=True):
        left.imshow(image)
        left.set_axis_off()
        places = np.arange(len(labels))[::-1]
        right.barh(places, values, color=ACCENT, height=0.35)
        for place, label, value in zip(places, labels, values, strict=True):
            right.text(0, place + 0.25, f"{label}  {value:.1%}", fontsize=7, color=INK, va="bottom", parse_math=False)
        right.set(xlim=(0, 1), ylim=(-0.5, len(labels)), xticks=(), yticks=())
        right.set_title(title, fontsize=7, loc="left", color=INK, parse_math=False)
        right.spines[:].set_visible(False)
    return figure


def sheet(rows: dict[str, np.ndarray]) -> Figure:
    """Rows of images [N, h, w, C] (uint8), each with its name before it: the same images, seen in several ways.

    Smaller images lie in the middle of a place as large as the largest.
    """
    return _labelled(list(rows.items()), stacks=1)


def grid(images: list[np.ndarray], classes: tuple[str, ...]) -> Figure:
    """A row of images [N, H, W, C] (uint8) for each class, with its name before it; many classes in several stacks."""
    return _labelled(list(zip(classes, images, strict=True)), stacks=-(-len(classes) // 25))


def overlaid(images: np.ndarray, weights: np.ndarray) -> Figure:
    """Images [N, H, W, C] (uint8), and below each what of it `weights` [N, h, w] let through: the largest all."""
    figure = Figure(figsize=(0.85 * len(images), 1.8), dpi=150, layout="constrained")
    axes = figure.subplots(2, len(images), squeeze=False)
    H, W = images.shape[1:3]
    for i, (image, weight) in enumerate(zip(images, weights, strict=True)):
        scale = (weight - weight.min()) / max(float(np.ptp(weight)), 1e-9)
        light = 0.15 + 0.85 * np.kron(scale, np.ones((H // weight.shape[0], W // weight.shape[1])))
        axes[0, i].imshow(image)
        axes[1, i].imshow((image * light[..., None]).astype(np.uint8))
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def histogram(images: np.ndarray) -> Figure:
    """How often each value, 0 to 255, occurs in each channel of images [N, H, W, C] (uint8); dashes mark the means.

    The bars of 0 and 255, where cameras clip, may end above the picture.
    """
    C = images.shape[-1]
    names = ("red", "green", "blue") if C == 3 else ("grey",) * C
    colors = (ACCENT, "#3f8f5b", "#2f6fb0") if C == 3 else (INK,) * C
    figure = Figure(figsize=(7.2, 3.8), dpi=150, layout="constrained")
    axis = figure.subplots()
    values, top = np.arange(256), 0.1
    for c, (name, color) in enumerate(zip(names, colors, strict=True)):
        count = np.zeros(256)
        for piece in np.array_split(images[..., c].reshape(-1), max(1, images.size // 2**22)):
            count += np.bincount(piece, minlength=256)  # in pieces, because it makes eight bytes of every one
        share = count / count.sum()
        mean = share @ values
        std = np.sqrt(share @ (values - mean) ** 2)
        label = f"{name}: mean {mean:.1f}, deviation {std:.1f}"
        axis.stairs(100 * share, np.arange(257) - 0.5, color=color, linewidth=1.2, label=label)
        axis.axvline(mean, color=color, linestyle="--", linewidth=0.9)
        top = max(top, 100 * share[1:-1].max())
    axis.set(xlabel="value of a pixel", ylabel="share of the pixels (%)", xlim=(-2, 257), ylim=(0, 1.1 * top))
    above = axis.secondary_xaxis("top", functions=(lambda v: np.divide(v, 255), lambda v: np.multiply(v, 255)))
    above.set_xlabel("on the scale 0 to 1")
    axis.set_xticks(range(0, 256, 51))
    axis.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside upper center", ncols=C, fontsize=8)
    return figure


def _labelled(rows: list[tuple[str, np.ndarray]], stacks: int) -> Figure:
    """Named rows of images one below the other, in `stacks` side by side that are filled one after the other."""
    H, W = (max(images.shape[axis] for _, images in rows) for axis in (1, 2))
    columns, deep = max(len(images) for _, images in rows), -(-len(rows) // stacks)
    # A whole number of dots for a pixel keeps pixels sharp and square; an image is 0.6 inch wide, a letter 0.06.
    dpi = 150
    inch = dpi / max(1, round(0.6 * dpi / W))  # in pixels
    margin = round((0.06 * max(len(name) for name, _ in rows) + 0.15) * inch)
    across = margin + columns * (W + 1)
    paper = np.full((deep * (H + 1) - 1, stacks * across - 1, 3), 255, np.uint8)
    figure = Figure(figsize=(paper.shape[1] / inch, paper.shape[0] / inch), dpi=dpi)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    for place, (name, images) in enumerate(rows):
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
    """Images [N, H, W, ...] row by row in one, `columns` across, with a line of `fill` between them.

    One picture, because matplotlib takes a tenth of a second for every few axes.
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
