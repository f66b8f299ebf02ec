"""What experiments that compare several networks draw: training beside test error, and error against depth."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from dlc.run import plot
from dlc.run.run import Run

History = list[dict[str, Any]]
Errors = dict[tuple[str, int], Any]  # (variant, depth) -> one number, or [S]


def draw(run: Run, histories: dict[str, History], errors: Errors, claimed: dict[int, float]) -> None:
    """Saves "figure6", the errors during training by name, and "depth", the final ones by (variant, depth)."""
    run.figure("figure6", training_and_test(histories))
    run.figure("depth", against_depth(errors, claimed))


def training_and_test(histories: dict[str, History]) -> Figure:
    """Error (%) against steps for several networks, as in figure 6 of He et al. 2015: training dotted, test solid.

    With several seeds it is their mean.
    """
    figure = plot.canvas(6.4, 4.2)
    axis = figure.subplots()
    for i, (name, history) in enumerate(histories.items()):
        color = plot.COLORS[i % len(plot.COLORS)]
        for key, style in (("error", {"linestyle": ":", "linewidth": 0.9}), ("test_error", {"linewidth": 1.8})):
            lines = [line for line in history if key in line]
            error = [100 * np.mean(e["values"] if isinstance(e := line[key], dict) else e) for line in lines]
            marker = "o" if len(lines) == 1 else None
            label = None if key == "error" else name
            axis.plot([line["step"] for line in lines], error, color=color, label=label, marker=marker, **style)
    axis.set(xlabel="step", ylabel="error (%): training dotted, test solid", xlim=(0, None), ylim=(0, None))
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside upper center", ncols=3)
    return figure


def against_depth(errors: Errors, claimed: dict[int, float]) -> Figure:
    """Test error (%) against depth, a line for each variant, beside what was claimed for each depth.

    An error is one number or, for several seeds, [S]: then the mean, with a bar of one standard deviation.
    """
    figure = plot.canvas(5.6, 3.8)
    axis = figure.subplots()
    if claimed:
        axis.plot(list(claimed), [100 * e for e in claimed.values()], "o:", color="gray", label="the paper's, residual")
    for i, name in enumerate(dict.fromkeys(variant for variant, _ in errors)):
        points = {depth: error for (variant, depth), error in errors.items() if variant == name}
        values = [100 * np.atleast_1d(np.asarray(error)) for error in points.values()]
        spread = [value.std(ddof=1) if len(value) > 1 else 0 for value in values]
        mean = [value.mean() for value in values]
        color = plot.COLORS[i % len(plot.COLORS)]
        axis.errorbar(list(points), mean, spread, color=color, marker="o", label=name, capsize=3)
    depths = sorted({*claimed, *(depth for _, depth in errors)})
    beside = max(2, 0.08 * (depths[-1] - depths[0]))
    apart = depths[:1]  # depths whose names have room side by side
    for depth in depths:
        apart += [depth] * (depth - apart[-1] > beside)
    axis.set(xlabel="layers", ylabel="test error (%)", xticks=apart)
    axis.set(xlim=(depths[0] - beside, depths[-1] + beside), ylim=(0, 1.1 * axis.get_ylim()[1]))
    axis.grid(alpha=0.25)
    figure.legend(frameon=False, loc="outside upper center", ncols=3)
    return figure
