"""What in an image made a network answer as it did? Seven methods, and whether they are right.

Claim (mnist): without the 30 % of its pixels that a method finds most salient, an image keeps less of the probability
of the network's answer than without as many random ones, for each of seven methods.

Source: `dlc/analysis/saliency.py` names the papers; deletion is from Petsiuk, Das, Saenko 2018, "RISE". What is deleted
becomes grey, in squares if the image is large; gradients are integrated from grey. Edges know no network.

Expect: 4 % is left without what occlusion finds, 12 SmoothGrad, 15 integrated, 22 the gradient, 27 deconvnet, 28
guided, 87 Grad-CAM (its maps have four pixels), 89 edges, 90 random; each ± 1 over 500 images. A minute on two cores.

    python -m experiments.insight.saliency
    python -m experiments.insight.saliency --weights compressed_SqueezeNet.net cat.png cup.png
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from tyro.conf import Positional

from dlc import train as steps
from dlc.analysis import saliency
from dlc.run import plot
from dlc.run.flags import NotNegative, Positive, Shown
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import subjects
from dlc.tasks.subjects import Subject


@dataclass(frozen=True)
class Config:
    photographs: Shown[Positional[tuple[Path, ...]]] = ()  # photographs; with --weights, instead of a data set
    dataset: Shown[subjects.Name] = "mnist"  # the data set
    test_images: Shown[Positive[int]] = 500  # test images that are looked at
    seed: Shown[NotNegative[int]] = 0  # of all random numbers


SMOKE = Config(dataset="digits", test_images=20)
SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)  # of the pixels that are deleted
BASELINES = {"edges": "--", "random": ":"}  # which know no network
DRAWN = 8  # images in the figure "saliency"


def train(config: Config, run: Run, *given: Any) -> dict:
    """Looks into our own network or, with --weights, into the given model and its variables."""
    subject = subjects.asked(run, config, *given)
    pixels, figures, kept = subject.image[: config.test_images], dict[str, Any](), {}
    pictures = {"image": pixels[:DRAWN]}

    def remaining(variables, found):
        answer = saliency.of_probability(subject.apply(variables, found[0]).argmax(-1))
        order = saliency.blocks(found[1], pixels.shape[1] // 28)  # scattered pixels of a large image are only noise
        return saliency.deletion(subject.apply, variables, found[0], answer, order, SHARES)

    in_turn = jax.jit(lambda variables, found: steps.in_batches(remaining, found, 50)(variables))
    for name, method in methods(subject, config.seed).items():

        def importance(variables, pixels, method=method):
            score = saliency.of_class(subject.apply(variables, pixels).argmax(-1))
            return saliency.importance(method(variables, pixels, score), pixels.shape[1:3])

        run.doing(f"looking by {name}")
        program = steps.compiled(steps.in_batches(importance, pixels, 50), donate=False)
        order = np.asarray(program(subject.variables))
        if not order.any():
            run.say(f"{name} finds nothing: no signal comes back to the pixels")
            continue
        kept[name] = np.asarray(in_turn(subject.variables, (pixels, order)))
        pictures[name] = saliency.shaded(order[:DRAWN])
        last = kept[name][:, -1]
        figures |= {f"kept_by_{name}": last.mean(), f"kept_by_{name}_plus_minus": last.std() / len(last) ** 0.5}
    for name in kept.keys() - BASELINES.keys():
        if figures[f"kept_by_{name}"] >= figures["kept_by_random"]:
            run.miss(f"the pixels that {name} finds most salient count no more than random ones")
    shown = {name: plot.smaller(images, 120) for name, images in pictures.items() if name != "random"}
    run.figure("saliency", plot.sheet(shown))
    run.figure("deletion", curves(kept))
    return {"images": len(pixels), **figures}


def methods(subject: Subject, seed: int) -> dict:
    """Name -> a function from variables, pixels and a score to what each pixel has to do with it."""
    side, key = subject.image.shape[1], jax.random.key(seed)
    last = saliency.maps(subject.apply, subject.variables, subject.image[:1])[-1]

    def by(method, *rest):
        return lambda variables, pixels, score: method(subject.apply, variables, pixels, score, *rest)

    found = {
        "gradient": by(saliency.gradient),
        "SmoothGrad": by(saliency.smooth, key),
        "integrated": by(saliency.integrated, 127.5),
        "deconvnet": by(saliency.deconvnet),
        "guided": by(saliency.guided),
        "Grad-CAM": by(saliency.grad_cam, last),
        "occlusion": lambda *given: -by(saliency.occlusion, side // 7, side // 14)(*given),
        "edges": lambda _, pixels, score: saliency.edges(pixels),
        "random": lambda _, pixels, score: jax.random.uniform(key, pixels.shape[:3]),
    }
    if not saliency.has_switches(subject.apply, subject.variables, subject.image[:1]):
        del found["deconvnet"]
    return found


def curves(kept: dict[str, np.ndarray]) -> Figure:
    """What is left of the answer's probability [N, SHARES] against the share that is deleted, by method."""
    figure = plot.canvas(6.4, 4)
    axis = figure.subplots()
    for (name, left), color in zip(kept.items(), (*plot.COLORS, "black", "black"), strict=False):
        error, style = 100 * left.std(0) / len(left) ** 0.5, BASELINES.get(name, "-")
        axis.errorbar(100 * np.array(SHARES), 100 * left.mean(0), error, color=color, linestyle=style, label=name)
    axis.set(xlabel="pixels deleted, the most salient first (%)", ylabel="probability that is left (%)", ylim=(0, None))
    figure.legend(frameon=False, loc="outside right upper", fontsize=plot.SMALL)
    return figure


if __name__ == "__main__":
    launch(train, Config(), SMOKE, train)
