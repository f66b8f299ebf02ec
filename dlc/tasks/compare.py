"""What experiments that compare several networks draw: training beside test error, and error against depth."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dlc.run.run import Run

History = list[dict[str, Any]]
Errors = dict[tuple[str, int], Any]  # (variant, depth) -> one number, or [S]


def draw(run: Run, histories: dict[str, History], errors: Errors, claimed: dict[int, float]) -> None:
    """Saves "figure6", the errors during training by name, and "depth", the final ones by (variant, depth)."""
    run.figure("figure6", training_and_test(histories))
    run.figure("depth", against_depth(errors, claimed))


def training_and_test(histories: dict[str, History]) -> Figure:
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


def against_depth(errors: Errors, claimed: dict[int, float]) -> Figure:
    """Test error (%) against depth, a line for each variant, beside what was claimed for each depth.

    An error is one number or, for several seeds, [S]: then the mean, with a bar of one standard deviation.
    """
    figure = Figure(figsize=(5.4, 3.8), dpi=150, layout="constrained")
    axis = figure.subplots()
    if claimed:
        axis.plot(list(claimed), [100 * e for e in claimed.values()], "o:", color="gray", label="the paper, residual")
    for i, name in enumerate(dict.fromkeys(variant for variant, _ in errors)):
        points = {depth: error for (variant, depth), error in errors.items() if variant == name}
        values = [100 * np.atleast_1d(np.asarray(error)) for error in points.values()]
        spread = [value.std(ddof=1) if len(value) > 1 else 0 for value in values]
        mean = [value.mean() for value in values]
        axis.errorbar(list(points), mean, spread, color=f"C{i}", marker="o", label=name, capsize=3)
    axis.set(xlabel="layers", ylabel="test error (%)")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    return figure
