"""The charts of benches: arrays in, a matplotlib Figure out."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from dlc.run import plot

LINE = 1.1 * plot.SMALL / 72  # the height of a line of text, in inches


class Frame(NamedTuple):
    """A figure whose axes have a known size, so that text can be placed in inches."""

    figure: Figure
    axis: Any
    width: float
    height: float


def _frame(width: float, height: float, right: float = 0.15) -> Frame:
    """Axes of that many inches, with room for labels on the left and below, and `right` inches beside them."""
    whole, high = width + 0.8 + right, height + 0.75
    figure = plot.canvas(whole, high, layout=None)
    axis = figure.add_axes((0.8 / whole, 0.6 / high, width / whole, height / high))
    axis.grid(alpha=0.25)
    return Frame(figure, axis, width, height)


def _inches(frame: Frame, points: np.ndarray) -> np.ndarray:
    """Where points [N, 2] lie, in inches from the lower left corner of the axes."""
    to_axes = frame.axis.transData + frame.axis.transAxes.inverted()
    return to_axes.transform(points) * (frame.width, frame.height)


def _names_at_the_right(frame: Frame, ends: dict[str, tuple[float, float]], colors: list[str]) -> None:
    """Writes each name outside of the axes, at the height of its point or near it, with a line to it."""
    places = _inches(frame, np.array(list(ends.values())))
    heights = spread(places[:, 1], 1.25 * plot.SMALL / 72)
    for (name, end), height, color in zip(ends.items(), heights, colors, strict=True):
        frame.axis.annotate(
            name,
            end,
            (1 + 0.25 / frame.width, height / frame.height),
            textcoords="axes fraction",
            fontsize=plot.SMALL,
            color=color,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 1},
        )


def spread(heights: np.ndarray, gap: float) -> np.ndarray:
    """The heights, moved as little as possible (least squares), in the same order and at least `gap` apart."""
    order = np.argsort(heights, kind="stable")
    groups: list[tuple[float, int]] = []  # mean and size; neighbours in the wrong order are merged
    for rank, i in enumerate(order):
        mean, size = heights[i] - rank * gap, 1
        while groups and groups[-1][0] >= mean:
            before, count = groups.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        groups.append((mean, size))
    moved = np.empty(len(order))
    moved[order] = np.repeat([mean for mean, _ in groups], [size for _, size in groups]) + gap * np.arange(len(order))
    return moved


def _names_beside(frame: Frame, points: dict[str, tuple[float, float]], radii: list[float]) -> None:
    """Writes each name beside its disc, whose radius is in inches, where it hides no other name or disc.

    The upper points choose first. If no place beside a disc is free, the name stands further away, with a line to it.
    """
    places = _inches(frame, np.array(list(points.values())))
    squares = [max(0.7 * radius, 0.04) for radius in radii]  # inside of the discs
    taken = [(x - half, y - half, x + half, y + half) for (x, y), half in zip(places, squares, strict=True)]
    inside = (0.02, 0.02, frame.width - 0.02, frame.height - 0.02)
    for i in np.argsort(-places[:, 1], kind="stable"):
        name, (x, y) = list(points)[i], places[i]
        boxes = list(_places(x, y, radii[i], plot.width_of(name)))
        free = (found for found in boxes if _within(found[1], inside) and not any(_meet(found[1], b) for b in taken))
        far, box = next(free, boxes[0])
        taken.append(box)
        middle = ((box[0] + box[2]) / 2 / frame.width, (box[1] + box[3]) / 2 / frame.height)
        line = {"arrowstyle": "-", "color": plot.INK, "linewidth": 0.4, "shrinkA": 1} if far > 0.1 else None
        frame.axis.annotate(
            name,
            points[name],
            middle,
            textcoords="axes fraction",
            fontsize=plot.SMALL,
            color=plot.INK,
            ha="center",
            va="center",
            arrowprops=line,
        )


def _places(x: float, y: float, radius: float, wide: float) -> Iterator[tuple[float, tuple[float, ...]]]:
    """Boxes for a name around a disc, the nearest first: their distance, and left, bottom, right, top; in inches."""
    for far in (0.05, 0.2, 0.35, 0.5, 0.7, 0.9):
        for angle in np.pi * np.array([0, 1, 0.5, 1.5, 0.25, 0.75, 1.75, 1.25]):
            across, up = np.cos(angle).round(6), np.sin(angle).round(6)
            left = x + (radius + far) * across + (np.sign(across) - 1) / 2 * wide  # the box begins or ends there
            low = y + (radius + far) * up + (np.sign(up) - 1) / 2 * LINE
            yield far, (left, low, left + wide, low + LINE)


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _within(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] >= other[0] and one[1] >= other[1] and one[2] <= other[2] and one[3] <= other[3]


def compute(milestones: dict[str, tuple[int, float]], ours: dict[str, tuple[int, float]]) -> Figure:
    """Training compute (petaflop/s-days) by year: `milestones` name -> (year, compute), and `ours` in red.

    This is the chart of Amodei and Hernandez 2018, "AI and compute", with its addendum.
    """
    frame = _frame(6.2, 6.0, right=0.3 + max(map(plot.width_of, ours), default=0.0))
    axis = frame.axis
    everything = list({**milestones, **ours}.values())
    years, amounts = zip(*everything, strict=True)
    axis.set(yscale="log", xlabel="year", ylabel="training (petaflop/s-days)")
    axis.set(xlim=(min(years) - 4, max(years) + 2), ylim=(min(amounts) / 10, max(amounts) * 10))
    axis.yaxis.set_major_locator(LogLocator(numticks=9))
    for points, color, marker in ((milestones, plot.INK, "o"), (ours, plot.ACCENT, "_")):
        axis.scatter(*(zip(*points.values(), strict=True) if points else ((), ())), color=color, marker=marker, s=22)
    _names_beside(frame, milestones, [0.03] * len(milestones))
    if ours:
        _names_at_the_right(frame, ours, [plot.ACCENT] * len(ours))
    return frame.figure


def time_per_image(seconds: dict[str, dict[int, float]]) -> Figure:
    """Milliseconds per image against batch size: a line for each network, name -> {batch: seconds}.

    This is figure 3 of Canziani et al. 2016, "An analysis of deep neural network models for practical applications".
    """
    frame = _frame(5.6, 5.4, right=0.4 + max(map(plot.width_of, seconds)))
    axis, colors, ends = frame.axis, [], {}
    batches = sorted({batch for points in seconds.values() for batch in points})
    every = [1e3 * second for points in seconds.values() for second in points.values()]
    axis.set(xscale="log", yscale="log", xlabel="batch (images)", ylabel="time per image (ms)")
    axis.set(xlim=(batches[0] / 1.2, batches[-1] * 1.2), ylim=(min(every) / 1.2, max(every) * 1.2))
    slowest_first = sorted(seconds, key=lambda name: -list(seconds[name].values())[-1])  # as the lines end
    for i, name in enumerate(slowest_first):
        points = {batch: 1e3 * second for batch, second in seconds[name].items()}
        colors.append(plot.COLORS[i % len(plot.COLORS)])
        axis.plot(*zip(*points.items(), strict=True), color=colors[-1], marker="osv^D"[i % 5], markersize=4)
        ends[name] = list(points.items())[-1]
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.xaxis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    _names_at_the_right(frame, ends, colors)
    return frame.figure


def accuracy_against_operations(networks: dict[str, tuple[float, float, int]]) -> Figure:
    """Top-1 accuracy (%) against billions of operations, name -> (operations, accuracy, weights).

    The area of each disc shows the number of weights. This is figure 2 of Canziani et al. 2016, "An analysis of deep
    neural network models for practical applications", with a logarithmic axis.
    """
    frame = _frame(7.2, 5.2)
    axis = frame.axis
    operations, accuracies, weights = zip(*networks.values(), strict=True)
    axis.set(xscale="log", xlabel="operations per image (billions)", ylabel="top-1 accuracy (%)")
    axis.set(xlim=(min(operations) / 1.6, max(operations) * 2), ylim=(min(accuracies) - 4, max(accuracies) + 4))
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    area = lambda count: count / 1e5  # square points  # noqa: E731
    axis.scatter(operations, accuracies, s=[area(count) for count in weights], color=plot.COLORS[4], alpha=0.5, lw=0)
    axis.scatter(operations, accuracies, s=5, color=plot.INK)
    for millions in (5, 50, 150):
        axis.scatter([], [], s=area(1e6 * millions), color=plot.COLORS[4], alpha=0.5, lw=0, label=f"{millions} M")
    axis.legend(title="weights", frameon=False, loc="lower right", labelspacing=2.4, borderpad=1.8, handletextpad=1.8)
    radii = [np.sqrt(area(count) / np.pi) / 72 for count in weights]
    _names_beside(frame, {name: (x, y) for name, (x, y, _) in networks.items()}, radii)
    return frame.figure
