"""Figures: arrays in, a matplotlib Figure out. Nothing is shown or saved here.

All of them are white, at most `WIDEST` inches wide, so that a README shows them without much shrinking, and write
nothing smaller than `SMALL` points except where tokens are too many. Legends stand outside of the axes.

Glossary: N examples, H W height and width, C channels, K classes, S seeds.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import font_manager, textpath
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

INK, ACCENT = "#1b3a5c", "#c8553d"
# The colour-blind-safe palette of Okabe and Ito 2008, without yellow, which is too pale for lines.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555")
DPI, WIDEST, SMALL = 150, 10.2, 8.0  # dots an inch, inches, points
INVISIBLE = {"\n": "↵", "\r": "↵", "\t": "⇥", " ": "␣"}  # what stands for a token that is only space


def canvas(width: int | float, height: int | float, layout: str | None = "constrained") -> Figure:
    """An empty figure of that many inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")  # type: ignore[arg-type]


def written(text: str, inches: int | float = 1.6, size: int | float = SMALL) -> str:
    """`text` as it can be drawn at `size` points: shortened to `inches`, with what cannot be seen made visible.

    Space around words is left out, but a text that is only space becomes signs for it. A letter that the font does not
    have becomes its number in Unicode. A dollar sign does not begin a formula.
    """
    text = " ".join(text.split()) or "".join(INVISIBLE.get(letter, " ") for letter in text)
    known = {letter: letter.isprintable() and ord(letter) in _letters() for letter in text}
    text = "".join(letter if known[letter] else f"U+{ord(letter):04X} " for letter in text).strip()
    if width_of(text, size) > inches:
        while text and width_of(text + "…", size) > inches:
            text = text[:-1]
        text = text.rstrip() + "…"
    return text.replace("$", r"\$")


def width_of(text: str, size: int | float = SMALL) -> float:
    """How wide a text of that many points is, in inches."""
    font = font_manager.FontProperties(size=size)
    return textpath.text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


@functools.cache
def _letters() -> frozenset[int]:
    """The letters of matplotlib's own font."""
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return frozenset(font.get_charmap())


def epoch(history: list[dict[str, Any]], held_out: str = "test") -> int:
    """The steps of an epoch in the log of a run that was evaluated after each; 1 if it was evaluated only once."""
    steps = [line["step"] for line in history if f"{held_out}_loss" in line or f"{held_out}_error" in line]
    return steps[0] if len(steps) > 1 else 1


def curves(history: list[dict[str, Any]], steps_per_epoch: int = 1, held_out: str = "test", unit: str = "") -> Figure:
    """Loss and error, if any, against epochs (or steps, if `steps_per_epoch` is 1), in training and on `held_out`.

    `unit` is that of the loss. Where training reports `nll`, its loss is another quantity than the one on `held_out`,
    and `nll` is drawn instead. Several seeds are drawn as their mean, in a band of one standard deviation.
    """
    reported = {name for line in history for name in line}
    loss = "nll" if "nll" in reported else "loss"
    names = [name for name in ("loss", "error") if reported & {name, f"{held_out}_{name}"}] or ["loss"]
    figure = canvas(4.6 * len(names) if len(names) > 1 else 5.6, 3.6)
    titles = {"loss": "loss", "nll": "negative log-likelihood"}
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        scale = {"loss": 1, "error": 100}[name]
        label = "error (%)" if name == "error" else f"{titles[loss]} ({unit})" if unit else titles[loss]
        drawn = []
        for key, color, title in (
            (loss if name == "loss" else name, INK, "training"),
            (f"{held_out}_{name}", ACCENT, held_out),
        ):
            lines = [line for line in history if key in line]
            x = np.array([line["step"] for line in lines]) / steps_per_epoch
            several = bool(lines) and isinstance(lines[0][key], dict)
            y = scale * np.array([line[key]["mean"] if several else line[key] for line in lines])
            marker = "o" if len(x) < 30 else None
            axis.plot(x, y, color=color, label=title, linewidth=1.4, marker=marker, markersize=3.5)
            if several:
                std = scale * np.array([line[key]["std"] for line in lines])
                axis.fill_between(x, np.maximum(y - std, y.min() / 2), y + std, color=color, alpha=0.2, linewidth=0)
            drawn.append(y)
        _readable(axis, np.concatenate(drawn))
        axis.set(xlabel="epoch" if steps_per_epoch > 1 else "step", ylabel=label, xlim=(0, None))
    seeds = max(
        (len(value.get("values", ())) for line in history for value in line.values() if isinstance(value, dict)),
        default=1,
    )
    title = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else ""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, title=title, title_fontsize=9)
    return figure


def _readable(axis: Any, values: np.ndarray) -> None:
    """Few round ticks: on a linear axis, or on a logarithmic one if the values [N] span more than a factor of four."""
    positive = values[values > 0]
    span = positive.max() / positive.min() if len(positive) and (values >= 0).all() else 1.0
    if span > 4:
        axis.set_yscale("log")
        subs = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0) if span < 10 else (1.0, 2.0, 5.0) if span < 1e3 else (1.0,)
        axis.yaxis.set_major_locator(LogLocator(subs=subs))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    else:
        axis.yaxis.set_major_locator(MaxNLocator(6))
        if (values >= 0).all():
            axis.set_ylim(bottom=max(0, axis.get_ylim()[0]))
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.grid(alpha=0.25)


def attention(weights: dict[str, np.ndarray], rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Attention weights [T, S] by name, one picture each: black is none of a row's attention, white is all of it.

    Like figure 3 of Bahdanau et al. 2014, but the brightness is the square root. `rows` [T] are the tokens that attend,
    `columns` [S] the tokens attended to. The names of tokens stand at the left and at the top, once.
    """
    across = min(len(weights), 2)
    down = -(-len(weights) // across)
    left, top = (max(width_of(written(word, 1.1)) for word in words) for words in (rows, columns))
    narrow, widest = ((width - left - 0.6) / (across * len(columns)) for width in (3.2, WIDEST))
    cell = min(max(0.18, min(narrow, 0.5)), widest)  # inches
    wide, high = across * (cell * len(columns) + 0.2) + left, down * (cell * len(rows) + 0.3) + top
    figure = canvas(max(wide + 0.3, 3.2), high + 0.45)
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flatten()
    label = {"fontsize": min(SMALL, 66 * cell)}  # points: a little less than the cell
    for place, (axis, (name, values)) in enumerate(zip(axes, weights.items(), strict=False)):
        axis.imshow(np.sqrt(values), cmap="gray", vmin=0, vmax=1)
        axis.set_xticks(range(len(columns)), [written(word, 1.1) for word in columns], rotation=90, **label)
        axis.set_yticks(range(len(rows)), [written(word, 1.1) for word in rows], **label)
        axis.tick_params(top=True, bottom=False, labeltop=place < across, labelbottom=False, length=2)
        axis.tick_params(labelleft=place % across == 0)
        axis.set_xlabel(name, fontsize=SMALL)
    for axis in axes[len(weights) :]:
        axis.remove()
    figure.supxlabel("white: all of a row's attention; black: none", fontsize=SMALL)
    return figure


def filters(kernel: Any, columns: int = 8) -> Figure:
    """The filters [H, W, 1, C] of a first layer side by side on one scale: white is 0, blue below it, red above."""
    kernel = np.asarray(kernel)
    limit = float(np.abs(kernel).max())
    tiles = mosaic(np.moveaxis(kernel[:, :, 0], -1, 0), columns, fill=np.nan)
    figure = canvas(6.4, 6.4 * tiles.shape[0] / tiles.shape[1], layout=None)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.imshow(tiles, cmap="RdBu_r", vmin=-limit, vmax=limit)
    return figure


def confusion(counts: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """A confusion matrix [K, K]: rows are true classes, columns predicted ones, colour the share of mistakes.

    Up to 20 classes the counts are written, up to 30 the names; more classes are numbered.
    """
    side = max(2.4, min(6.0, 0.42 * len(counts)))
    names = [written(name, 1.2) for name in classes]
    margin = max(map(width_of, names)) if len(names) <= 30 else 0.3
    figure = canvas(side + margin + 1.5, side + margin + 0.6)
    axis = figure.subplots()
    # Colour only the mistakes: next to a diagonal of 99 % they would all look white.
    mistakes = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1) * (1 - np.eye(len(counts)))
    image = axis.imshow(mistakes, cmap="Reds", vmin=0, vmax=mistakes.max() or 1)
    for (i, j), count in np.ndenumerate(counts):
        if count and len(counts) <= 20:
            shade = "white" if mistakes[i, j] > 0.6 * mistakes.max() else INK
            axis.text(j, i, str(count), ha="center", va="center", fontsize=SMALL - len(counts) // 10, color=shade)
    if len(names) <= 30:
        upright = max(map(len, names)) < 3
        axis.set_xticks(range(len(names)), names, rotation=0 if upright else 90, fontsize=SMALL)
        axis.set_yticks(range(len(names)), names, fontsize=SMALL)
    axis.set(xlabel="predicted class", ylabel="true class")
    bar = figure.colorbar(image, ax=axis, shrink=0.7, label="mistaken for it (% of the true class)")
    bar.locator = MaxNLocator(5)
    bar.update_ticks()
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
    if not len(worst):
        figure = canvas(3.2, 0.5)
        figure.text(0.5, 0.5, "no mistakes", ha="center", va="center", color=INK)
        return figure
    H, W, C = images.shape[1:]
    columns, inches = 6, 1.4  # of a tile
    above = -(-W // 4)  # room for two lines of text above each image: 0.35 inch
    shown = np.pad(
        255 - images[worst] if C == 1 else images[worst], ((0, 0), (above, 0), (0, 0), (0, 0)), constant_values=255
    )
    tiles = mosaic(shown, columns, fill=255)
    wide = inches * min(columns, len(worst))
    figure = canvas(wide, wide * tiles.shape[0] / tiles.shape[1], layout=None)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.imshow(tiles.squeeze(-1) if C == 1 else tiles, cmap="gray", vmin=0, vmax=255)
    for place, i in enumerate(worst):
        row, column = divmod(place, columns)
        x, y = column * (W + 1) + (W - 1) / 2, row * (above + H + 1) + above - 0.5
        sure = f"({probability[i, answer[i]]:.0%})"
        text = f"{written(classes[answer[i]], 0.9)} {sure}\ntrue: {written(classes[label[i]], 1.0)}"
        axis.annotate(text, (x, y), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=SMALL)
    return figure


def sheet(rows: dict[str, np.ndarray], stacks: int = 1) -> Figure:
    """Rows of images [N, h, w, C] (uint8), each after its name; with several `stacks`, in that many columns of rows.

    Smaller images lie in the middle of a place as large as the largest one.
    """
    H, W = (max(images.shape[axis] for images in rows.values()) for axis in (1, 2))
    columns, deep = max(map(len, rows.values())), -(-len(rows) // stacks)
    names = [written(name, 2.2, SMALL + 1) for name in rows]
    beside = max(width_of(name, SMALL + 1) for name in names) + 0.2
    # A whole number of dots for a pixel keeps pixels sharp and square; an image is 0.6 inch wide if there is room.
    room = DPI * (WIDEST - stacks * beside) / (stacks * columns * (W + 1))
    dots = min(max(1, round(0.6 * DPI / W)), int(room) or room)
    inch = DPI / dots  # in pixels
    margin = round(beside * inch)
    across = margin + columns * (W + 1)
    paper = np.full((deep * (H + 1) - 1, stacks * across - 1, 3), 255, np.uint8)
    figure = canvas(paper.shape[1] / inch, paper.shape[0] / inch, layout=None)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    for place, (name, images) in enumerate(zip(names, rows.values(), strict=True)):
        stack, row = divmod(place, deep)
        h, w = images.shape[1:3]
        left, top = stack * across + margin, row * (H + 1)
        for column, image in enumerate(images):
            y, x = top + (H - h) // 2, left + column * (W + 1) + (W - w) // 2
            paper[y : y + h, x : x + w] = image  # one channel becomes three
        axis.text(left - 0.1 * inch, top + H / 2, name, ha="right", va="center", fontsize=SMALL + 1, color=INK)
    axis.imshow(paper, interpolation="nearest" if dots >= 1 else "antialiased")
    return figure


def smaller(images: np.ndarray, side: int) -> np.ndarray:
    """Images [N, H, W, C] as uint8, each pixel the mean of as many as it takes to be at most `side` high."""
    k = -(-images.shape[1] // side)
    H, W = (n // k for n in images.shape[1:3])
    blocks = images[:, : H * k, : W * k].reshape(len(images), H, k, W, k, -1)
    return np.rint(blocks.mean((2, 4))).astype(np.uint8)


def mosaic(images: np.ndarray, columns: int, fill: float | int) -> np.ndarray:
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
