"""What experiments on images that fool networks share: errors under attack, and pictures.

Glossary: N images, H W C height, width and channels, R C rows and columns of a table, E sizes of an attack.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from dlc import metrics
from dlc.analysis import adversarial
from dlc.run import plot

Apply = Callable[[Any, Any], Any]


def row(axis: Any, pictures: Any, words: Sequence[str], name: str, colors: str = "gray") -> None:
    """Images [N, H, W, C] (0 to 255) side by side, each above its words, and `name` at their left."""
    pictures = np.rint(np.asarray(pictures)).astype(np.uint8)
    _, _, wide, channels = pictures.shape
    gap = max(2, wide // 14)
    padded = np.pad(pictures, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255).astype(np.float32)
    if channels == 1:
        padded[:, :, wide:] = np.nan
    paper = np.concatenate(list(padded), axis=1)[:, :-gap]
    shown = paper[..., 0] if channels == 1 else paper.astype(np.uint8)
    axis.imshow(shown, cmap=colors, vmin=0, vmax=255)
    axis.set_xticks([i * (wide + gap) + wide / 2 for i in range(len(words))], words, fontsize=plot.SMALL)
    axis.set_yticks(())
    axis.set_ylabel(name, fontsize=plot.SMALL)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def changes(figure: Any, before: Any, after: Any, answers: Sequence[tuple[str, str]], times: int | None = 1) -> None:
    """Rows of images [N, H, W, C] (0 to 255) before and after a change, and of `times` the change itself.

    With None, the change is magnified until its largest value can be seen. `answers` are what the network says to each
    image, before and after.
    """
    before, after = np.asarray(before, np.float32), np.asarray(after, np.float32)
    times = times or max(1, round(100 / max(float(np.abs(after - before).max()), 0.01)))
    inches = figure.get_figure(root=True).get_figwidth() / len(before) - 0.3
    words = [[plot.written(one, inches) for one in said] for said in zip(*answers, strict=True)]
    top, middle, bottom = figure.subplots(3, 1)
    row(top, before, words[0], "image,\nread as")
    row(middle, after, words[1], "changed,\nread as")
    colors = "RdBu_r" if before.shape[-1] == 1 else "gray"
    name = "change" if times == 1 else f"{times} times\nthe change"
    row(bottom, np.clip(127.5 + times * (after - before), 0, 255), (), name, colors)


def shares(axis: Any, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """A table of shares [R, C], 0 to 1, written in percent; the larger, the darker."""
    axis.imshow(values, cmap="Reds", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        shade = "white" if value > 0.6 else plot.INK
        axis.text(j, i, f"{100 * value:.0f} %", ha="center", va="center", fontsize=plot.SMALL, color=shade)
    axis.set_xticks(range(len(columns)), columns, fontsize=plot.SMALL)
    axis.set_yticks(range(len(rows)), rows, fontsize=plot.SMALL)
    axis.tick_params(length=0)


def transfer(
    before: Any, after: Any, answers: Sequence[tuple[str, str]], tables: dict[str, np.ndarray], names: Sequence[str]
) -> Figure:
    """The first twelve images and their changes, and how often each network misreads what was made for each.

    A table has a row for the images made for each of the networks `names` and one for noise, and a column for each.
    """
    figure = plot.canvas(plot.WIDEST, 7.8)
    above, below = np.asarray(figure.subfigures(2, 1, height_ratios=(1, 1.1)))
    changes(above, before[:12], after[:12], answers[:12])
    axes = below.subplots(1, len(tables), sharey=True)
    for axis, (title, values) in zip(axes, tables.items(), strict=True):
        shares(axis, values, [*names, "noise"], [name.replace(", ", ",\n") for name in names])
        axis.set(xlabel="read by")
        axis.set_title(title, fontsize=plot.SMALL + 1)
    axes[0].set_ylabel("made for")
    return figure


def errors_by_size(
    apply: Apply, variables: Any, pixels: np.ndarray, label: np.ndarray, sizes: Sequence[float]
) -> dict[str, np.ndarray]:
    """The error on images against the size of an attack [E]: with one step (FGSM), and with twenty (PGD)."""

    def errors(attack: Any) -> np.ndarray:
        @jax.jit
        def each(variables: Any, pixels: Any, sizes: Any) -> Any:
            def one(size: Any) -> Any:
                return metrics.error(apply(variables, attack(apply, variables, pixels, label, size)), label)

            return jax.lax.map(one, sizes)

        return np.asarray(each(variables, pixels, jnp.asarray(sizes, jnp.float32)))

    return {"FGSM": errors(adversarial.fgsm), "PGD": errors(twenty_steps)}


def twenty_steps(apply: Apply, variables: Any, pixels: Any, label: Any, epsilon: Any) -> Any:
    """Projected gradient descent in twenty steps, which together are two and a half times as long as epsilon."""
    return adversarial.pgd(apply, variables, pixels, label, epsilon, adversarial.Descent(20, epsilon / 8))


def under_attack(
    pictures: dict[str, tuple[Any, Sequence[str]]],
    sizes: Sequence[float],
    errors: dict[str, dict[str, np.ndarray]],
    published: dict[str, tuple[float, float]],
) -> Figure:
    """Left, rows of images [N, H, W, C] by the network that they attack, each above its words; right, errors [E]."""
    figure = plot.canvas(plot.WIDEST, 4.2)
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=(1, 1.2)))
    axes = left.subplots(len(pictures), 1, squeeze=False)[:, 0]
    for axis, (name, (images, words)) in zip(axes, pictures.items(), strict=True):
        row(axis, images, words, name.replace(", ", ",\n"))
    against_size(right, sizes, errors, published)
    return figure


def against_size(
    figure: Any,
    sizes: Sequence[float],
    errors: dict[str, dict[str, np.ndarray]],
    published: dict[str, tuple[float, float]],
) -> None:
    """The error of networks, by name and kind of attack, against the size of the attack [E]; circles are published."""
    axis = figure.subplots()
    for (name, kinds), color in zip(errors.items(), plot.COLORS, strict=False):
        for values, line in zip(kinds.values(), ("-", "--"), strict=True):
            label = {"label": name} if line == "-" else {}
            axis.plot(sizes, 100 * np.asarray(values), line, color=color, linewidth=1.6, **label)
        if name in published:
            size, error = published[name]
            axis.plot(size, 100 * error, "o", color=color, markersize=8, fillstyle="none", label=f"{name}, published")
    for kind, line in zip(kinds, ("-", "--"), strict=True):
        axis.plot([], [], line, color=plot.INK, label=kind)
    axis.set(xlabel="largest change of a pixel, ε (share of its range)", ylabel="error (%)", ylim=(-3, 103))
    axis.grid(alpha=0.25)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=plot.SMALL)


def fooled(images: dict[str, Any], words: dict[str, Sequence[str]], history: dict[str, Any], sure: float) -> Figure:
    """Above, rows of images [K, H, W, C], each above its words; below, the doubt of the network against generations."""
    figure = plot.canvas(plot.WIDEST, 6.8)
    above, below = np.asarray(figure.subfigures(2, 1, height_ratios=(1.9, 1)))
    for axis, (name, found) in zip(above.subplots(len(images), 1), images.items(), strict=True):
        row(axis, found, words[name], name)
    doubt(below.subplots(), history, sure)
    below.legend(loc="outside right center", frameon=False, fontsize=plot.SMALL)
    return figure


def doubt(axis: Any, history: dict[str, Any], sure: float) -> None:
    """What confidence lacks to certainty, 1 - p of the median class, against generations, for each run [S, G, K]."""
    for (name, values), color in zip(history.items(), plot.COLORS, strict=False):
        for i, run in enumerate(1 - np.median(np.asarray(values, np.float64), axis=-1)):
            label = {"label": name} if i == 0 else {}
            axis.plot(np.arange(1, len(run) + 1), np.maximum(run, 1e-7), color=color, linewidth=1.3, **label)
    axis.axhline(1 - sure, color=plot.INK, linewidth=0.8, linestyle=":", label=f"{100 * sure:g} % confidence")
    axis.set(yscale="log", xscale="log", xlabel="generation", ylabel="1 - confidence\nof the median class")
    axis.grid(alpha=0.25)
