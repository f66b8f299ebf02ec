"""The charts of benches: arrays in, a matplotlib Figure out."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

from dlc.run import plot


def compute(milestones: dict[str, tuple[int, float]], ours: dict[str, tuple[int, float]]) -> Figure:
    """Training compute (petaflop/s-days) by year: `milestones` name -> (year, compute), and `ours` in red.

    This is the chart of Amodei and Hernandez 2018, "AI and compute", with its addendum.
    """
    figure = Figure(figsize=(10, 7), dpi=150, layout="constrained")
    axis = figure.subplots()
    right = max(year for year, _ in (*milestones.values(), *ours.values())) + 2
    for points, color, marker in ((milestones, plot.INK, "o"), (ours, plot.ACCENT, "_")):
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
        axis.text(x, 10**y, name, fontsize=7, color=plot.INK, va="center", ha=side)

    below, heights = -np.inf, {}
    for name, (_, amount) in sorted(ours.items(), key=lambda item: item[1][1]):
        below = heights[name] = max(below + line, np.log10(amount))  # names that would overlap move up
    down = np.mean([y - np.log10(ours[name][1]) for name, y in heights.items()]) if ours else 0.0  # then all move down
    arrow = {"arrowstyle": "-", "color": plot.ACCENT, "linewidth": 0.4, "relpos": (0, 0.5), "shrinkB": 3}
    for name, y in heights.items():
        place = (right, 10 ** (y - down))
        axis.annotate(name, ours[name], place, fontsize=7, color=plot.ACCENT, va="center", arrowprops=arrow)
    axis.grid(alpha=0.25)
    return figure


def time_per_image(seconds: dict[str, dict[int, float]]) -> Figure:
    """Milliseconds per image against batch size: a line for each network, name -> {batch: seconds}.

    This is figure 3 of Canziani et al. 2016, "An analysis of deep neural network models for practical applications".
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
    """Top-1 accuracy (%) against billions of operations, name -> (operations, accuracy, weights).

    The area of each disc shows the number of weights. This is figure 2 of Canziani et al. 2016, "An analysis of deep
    neural network models for practical applications".
    """
    figure = Figure(figsize=(7.5, 5), dpi=150, layout="constrained")
    axis = figure.subplots()
    names: list[tuple[float, float]] = []  # where they are
    for i, name in enumerate(sorted(networks, key=lambda name: networks[name])):
        operations, accuracy, weights = networks[name]
        axis.scatter(operations, accuracy, s=weights / 1e5, color=f"C{i % 10}", alpha=0.5, linewidth=0)
        axis.scatter(operations, accuracy, s=3, color=plot.INK)
        taken = any(operations - x < 5 and abs(accuracy + 0.5 - y) < 1 for x, y in names)
        names.append((operations, accuracy + (-1 if taken else 0.5)))
        offset = 4, -10 if taken else 4
        axis.annotate(name, (operations, accuracy), offset, textcoords="offset points", fontsize=7)
    axis.set(xlabel="billions of operations an image", ylabel="top-1 accuracy (%)")
    axis.margins(0.12)
    axis.set_title("the area of a disc: the weights", fontsize=8)
    axis.grid(alpha=0.25)
    return figure
