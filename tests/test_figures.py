"""Every figure as it is seen: nothing lies over anything else or outside of the picture, and all of it can be read."""

import itertools
import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from dlc.analysis import signals
from dlc.analysis.style import Found
from dlc.run import plot
from dlc.tasks import attacks, compare, likeness, points, race, sweep
from experiments.bench import _charts, redraw
from experiments.imagenet.classify import beside_answers

ROOT = Path(__file__).parents[1]
SHOWN = 830  # pixels: how wide GitHub shows a picture of a README, at most
RNG = np.random.default_rng(0)


def log(steps, epochs, seeds=1, held_out="test", final=0.01, **more):
    """The history of a run that learns, with a report every step."""

    def value(number):
        values = number * (1 + 0.1 * RNG.random(seeds))
        return {"mean": values.mean(), "std": values.std(), "values": values.tolist()} if seeds > 1 else values[0]

    for step in range(1, steps + 1):
        learnt = final ** (step / steps)
        yield {"step": 100 * step, "loss": value(2.3 * learnt), "error": value(0.9 * learnt), **more}
        if step % max(1, steps // epochs) == 0:
            yield {"step": 100 * step, f"{held_out}_loss": value(2 * learnt), f"{held_out}_error": value(learnt)}


def curves(*arguments, held_out="test", unit="nats", **options):
    history = list(log(*arguments, held_out=held_out, **options))
    return plot.curves(history, plot.epoch(history, held_out), held_out, unit)


def only_losses():
    history = [{"step": 100 * i, "loss": 2.5 - 0.001 * i} for i in range(1, 161)]
    return plot.curves([*history, {"step": 16_000, "validation_loss": 1.9}], held_out="validation", unit="nats a token")


def constant(value):
    return plot.curves([{"step": step, "loss": value, "error": 0.0, "test_error": 0.0} for step in (1, 2)])


def attention(count, pieces, heads=4):
    tokens = list(itertools.islice(itertools.cycle(pieces), count))
    weights = RNG.dirichlet(np.ones(count), (heads, count))
    return plot.attention({f"head {i + 1}": head for i, head in enumerate(weights)}, tokens, tokens)


def one_row():
    return plot.attention({"": np.full((1, 5), 0.2)}, ["</s>"], ["nine", "thousand", "one", "hundred", "</s>"])


def confusion(classes, right=0.9):
    counts = RNG.poisson(1000 * (1 - right) / len(classes), (len(classes),) * 2) + np.diag([1000] * len(classes))
    return plot.confusion(counts * (np.eye(len(classes), dtype=int) if right == 1 else 1), tuple(classes))


def mistakes(count, classes, shape=(28, 28, 1)):
    images = RNG.integers(0, 256, (count, *shape), dtype=np.uint8)
    logits = RNG.normal(size=(count, len(classes)))
    return plot.mistakes(images, 9 * logits, (logits.argmax(-1) + 1) % len(classes), tuple(classes))


def sheet(names, images, side, stacks=1):
    some = RNG.integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    return plot.sheet(dict.fromkeys(names, some), stacks)


def against_depth(depths, variants=("residual",), claimed=(), seeds=1):
    errors = {(v, d): 0.08 + 0.01 * RNG.random(seeds) for v in variants for d in depths}
    return compare.against_depth(errors, dict.fromkeys(claimed, 0.08))


def training_and_test(variants, steps=640):
    return compare.training_and_test({name: list(log(steps, 64)) for name in variants})


def seconds(target, accuracies):
    took = [{"train": 250.0 * (i + 1), "start": 0.5} for i in range(len(accuracies))]
    lines = [{"step": i, "test_error": 1 - a, "seconds": t} for i, (a, t) in enumerate(zip(accuracies, took))]  # noqa: B905
    return race.against_seconds(lines, target)


def answers(names, titles):
    squares = RNG.integers(0, 256, (len(titles), 224, 224, 3), dtype=np.uint8)
    likely = np.sort(RNG.dirichlet(np.ones(5), len(titles)))[:, ::-1]
    return beside_answers(squares, titles, [names] * len(titles), likely)


def from_record(name, figure):
    return redraw.charts(json.loads((ROOT / "results" / name).read_text()))[figure]


def crowded(count):
    """Networks that have nearly the same operations and accuracy."""
    points = {f"network_{i}": (3 + RNG.random(), 70 + 2 * RNG.random(), 10**7 * i) for i in range(1, count + 1)}
    return _charts.accuracy_against_operations(points)


def noise(count, shape=(28, 28, 1)):
    return RNG.uniform(0, 255, (count, *shape)).astype(np.float32)


def transfer(names, count=12, shape=(28, 28, 1), classes=("3", "8")):
    tables = {f"table {i}": RNG.random((len(names) + 1, len(names))) for i in (1, 2)}
    return attacks.transfer(noise(count, shape), noise(count, shape), [classes] * count, tables, names)


def changed(count, shape, classes):
    figure = plot.canvas(plot.WIDEST, 8.4)
    attacks.changes(figure, noise(count, shape), noise(count, shape), [classes] * count, times=None)
    return figure


def under_attack(names, count=4):
    sizes = np.linspace(0, 0.4, 9).tolist()
    errors = {name: {kind: RNG.random(9) for kind in ("FGSM", "PGD")} for name in ("softmax", *names)}
    pictures = {name: (noise(count), ["ε = 0.1\nread as 7"] * count) for name in names}
    return attacks.under_attack(pictures, sizes, errors, {"softmax": (0.25, 0.999)})


def fooled(words, generations):
    names = ("direct", "CPPN", "gradient")
    history = {name: RNG.random((3, generations, 10)) for name in names[:2]}
    return attacks.fooled({name: noise(10) for name in names}, dict.fromkeys(names, words), history, 0.9999)


def likenesses(layers, others=("another seed", "an untrained network")):
    tables = {name: RNG.random((layers, layers)) for name in others}
    shares = {name: RNG.random(layers) for name in others} | {"pixels": RNG.random(1)}
    names = ("pixels", "layer 4", "layer 8", "layer 8, another seed", "layer 8, untrained")
    some = {name: RNG.normal(size=(20, 9)) for name in names}
    return likeness.overview(some, tables, shares, [str(i) for i in range(1, layers + 1)])


def initialisation():
    module = import_module("experiments.history.initialisation")
    config, fading = module.Config(), 0.3 ** np.arange(29.0)
    found = {(kind, name): np.tile(fading, (2, 8, 1)) for kind in module.UNITS for name in signals.INITIALISATIONS}
    lost = {(name, rate): RNG.uniform(1, 2, (8, 25)) for name in ("2/n", "1/n") for rate in config.lrs}
    return module.draw(config, found, lost)


def playground():
    module = import_module("experiments.history.playground")
    config = module.Config()
    kinds = [*(f"degree {d}" for d in config.degrees), "MLP"]
    answers = {kind: RNG.normal(size=(4, len(points.GRID))) for kind in kinds}
    lost = {kind: RNG.uniform(0, 0.7, (4, 8)) for kind in kinds}
    x, label = RNG.uniform(-6, 6, (4, 250, 2)), RNG.integers(2, size=(4, 250))
    return module.draw(config, x, label, answers, lost, lost)


def dictionary():
    module = import_module("experiments.history.dictionary")
    config = module.Config()
    shown = {name: RNG.normal(size=(64, 64)) for name in module.LEARNT}
    shown |= {name: RNG.normal(size=(module.SUBSPACE, 64)) for name in ("principal", "linear")}
    left = {
        name: np.sort(RNG.random((3, config.active)))[:, ::-1] for name in (*module.LEARNT, "random patches", "noise")
    }
    return module.draw(config, shown, left, 0.25)


def recognition():
    module = import_module("experiments.history.neocognitron")
    x = np.zeros((2, 28, 28, 1), np.float32)
    x[:, 8:20, 13:15] = 1
    layers, names = module.learn(x, np.array([1, 7]))
    return module.draw([layers, names, x], RNG.random((2, 3, len(module.SHIFTS) + len(module.DEFORMATIONS))))


def best(speed, seeds=6):
    """What a sweep found of an optimizer; one of speed 0 does not arrive."""
    places = np.arange(10, 250, 10)
    curves = 0.02 + 2.3 * np.exp(-speed * places / 100) * RNG.uniform(0.95, 1.05, (seeds, 24))
    steps = 150 / speed * RNG.uniform(0.95, 1.05, seeds) if speed else np.full(seeds, np.inf)
    return sweep.Best(np.array([90.0]), 0.00123, steps, places, curves, {})


def optimisers():
    draw = import_module("experiments.history.optimisers").draw
    one = {"SGD": best(0.0), "momentum": best(0.5), "Adam": best(1.0), "Muon": best(2.0)}
    return draw({"GPT": one, "convnet": one}, {"GPT": 0.5, "convnet": 0.5})


def regularisation():
    module = import_module("experiments.history.regularisation")
    names = ("early stopping", *module.METHODS)
    deep = dict(zip(module.SIGMOID, (best(1.0), best(2.0), best(1.9)), strict=False))
    return module.draw({name: 0.1 + 0.02 * RNG.random(8) for name in names}, deep, module.Config())


def scaling():
    x = 100 * 2.0 ** np.arange(5)
    points = {what: (x, RNG.uniform(1, 1.3, (5, 3)) * x[:, None] ** -0.3, None) for what in ("images", "weights")}
    points["operations"] = *points["weights"][:2], (np.outer([1, 2], x), np.full((2, 5), 0.4))
    measured = dict.fromkeys(("mnist", "cifar10", "tiny_shakespeare"), points)
    return import_module("experiments.history.scaling").draw(measured)


def projections(layers, patches, channels=1):
    """Patches of 16 maps of each layer, and what they are projected to."""
    pair = lambda side: [RNG.random((16 * patches, side, side, channels)) for _ in range(2)]  # noqa: E731
    return looked("deconvnet").beside({name: pair(7 + 10 * i) for i, name in enumerate(layers)}, patches)


def deletion(images):
    names = ("gradient", "SmoothGrad", "integrated", "deconvnet", "guided", "Grad-CAM", "occlusion", "edges", "random")
    return looked("saliency").curves({name: RNG.random((images, 6)) for name in names})


def styles(contents, channels=3):
    some = RNG.integers(0, 256, (contents, 32, 32, channels)).astype(np.float32)
    found = Found(None, np.geomspace(1, 0.01, 50)[None] * np.ones((contents, 1)), 1 + np.arange(50)[None])
    return looked("style").beside(some, some[:1], some, dict.fromkeys(("L-BFGS", "Adam", "descent"), found))


def looked(name):
    return import_module(f"experiments.insight.{name}")


CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LONG = tuple(f"{k} black-footed ferret, Mustela nigripes $x^2$" for k in range(10))
STRANGE = ("\n", " ", "\t", " the", "ing", "$", "$x$", "猫", "🙂", "\u200b", "Mustela-nigripes-and-more", "W" * 30, "")
BUILT = {
    "curves of 8 seeds": lambda: curves(60, 10, 8),
    "curves of one epoch": lambda: curves(5, 1),
    "curves of one report": lambda: curves(1, 1),
    "curves of two epochs": lambda: curves(2, 2),
    "curves over six decades": lambda: curves(90, 30, final=1e-6),
    "curves over half a decade": lambda: curves(90, 30, final=0.2),
    "curves that hardly fall": lambda: curves(300, 3, final=0.97),
    "curves to no error": lambda: curves(20, 10, final=1e-30),
    "curves of translation": lambda: curves(50, 10, held_out="validation", nll=1.9, unit="nats a token"),
    "curves of GPT": only_losses,
    "curves of large losses": lambda: constant(123456.0),
    "curves of negative losses": lambda: constant(-3.25),
    "curves of no loss": lambda: constant(0.0),
    "attention to letters": lambda: attention(32, "To be, or\nnot to be:\t"),
    "attention to strange tokens": lambda: attention(13, STRANGE),
    "attention to 64 tokens": lambda: attention(64, ("word", "another", "s")),
    "attention of one token": lambda: attention(1, ("a",), heads=1),
    "attention of three heads": lambda: attention(5, ("a", "dog"), heads=3),
    "attention of one row": one_row,
    "filters": lambda: plot.filters(RNG.normal(size=(5, 5, 1, 32))),
    "one filter": lambda: plot.filters(np.zeros((28, 28, 1, 1))),
    "confusion of two": lambda: confusion(("no", "yes")),
    "confusion of ten": lambda: confusion(CIFAR),
    "confusion without mistakes": lambda: confusion(CIFAR, right=1),
    "confusion of long names": lambda: confusion(LONG),
    "confusion of twenty": lambda: confusion([f"class {k}" for k in range(20)], 0.1),
    "confusion of thirty": lambda: confusion([f"some class {k}" for k in range(30)]),
    "confusion of a hundred": lambda: confusion([f"class {k}" for k in range(100)]),
    "mistakes": lambda: mistakes(30, CIFAR),
    "mistakes with long names": lambda: mistakes(30, LONG, (32, 32, 3)),
    "mistakes with strange names": lambda: mistakes(30, STRANGE, (224, 224, 3)),
    "one mistake": lambda: mistakes(1, LONG),
    "mistakes of small images": lambda: mistakes(8, CIFAR, (8, 8, 1)),
    "no mistakes": lambda: plot.mistakes(np.zeros((1, 8, 8, 1), np.uint8), np.eye(2)[:1], np.array([0]), ("a", "b")),
    "augmentations": lambda: sheet(["translate by up to 4, mirrored", "flip", *LONG[:3]], 12, 32),
    "a hundred classes": lambda: sheet([f"some class {k}" for k in range(100)], 4, 32, stacks=4),
    "crops": lambda: sheet(["trained on"], 8, 224),
    "rollout": lambda: sheet(["images", "attention"], 12, 32),
    "strange names": lambda: sheet(STRANGE, 4, 8),
    "depth": lambda: against_depth((20, 32, 44, 56, 110), ("residual", "plain", "preact"), (20, 32, 44, 56, 110), 3),
    "one depth": lambda: against_depth((8,)),
    "one depth beside the paper's": lambda: against_depth((20,), claimed=(20, 32, 44, 56, 110)),
    "near depths": lambda: against_depth((18, 20, 22), claimed=(20, 32, 44, 56, 110)),
    "two depths": lambda: against_depth((8, 14)),
    "figure 6": lambda: training_and_test([f"{v}, {d} layers" for v in ("plain", "residual") for d in (20, 56)]),
    "figure 6 of one report": lambda: training_and_test(["residual, 8 layers"], steps=1),
    "seconds": lambda: seconds(94, [0.5, 0.7, 0.8, 0.9, 0.94]),
    "seconds beyond the target": lambda: seconds(94, [0.9399, 0.9401]),
    "seconds of one epoch": lambda: seconds(94, [0.1]),
    "projections": lambda: projections(("conv1", "conv2"), 9),
    "projections of photographs": lambda: projections(("fire2", "stage1_block2/conv1", "fire8"), 4, 3),
    "projections of one image": lambda: projections(("conv1",), 1),
    "deletion": lambda: deletion(500),
    "deletion in one image": lambda: deletion(1),
    "style": lambda: styles(4),
    "style of one grey image": lambda: styles(1, 1),
    "histogram": lambda: import_module("experiments.cifar10.peek").histogram(
        RNG.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    ),
    "answers": lambda: answers(list(CIFAR[:5]), ["dog.jpg", "cat.jpg"]),
    "answers with long names": lambda: answers(list(LONG[:5]), ["x" * 200]),
    "adversarial": lambda: transfer(
        ("softmax", "100-100-10", "123-456-10", "100-100-10, other half", "convnet, all images")
    ),
    "adversarial with few images": lambda: transfer(("softmax", "other"), 3),
    "adversarial photographs": lambda: changed(4, (64, 64, 3), LONG[:2]),
    "one adversarial photograph": lambda: changed(1, (64, 64, 3), ("a", "b")),
    "robustness": lambda: under_attack(("convnet", "convnet, on attacks")),
    "robustness of one": lambda: under_attack(("convnet",)),
    "fooling": lambda: fooled([f"{k}: > 99.99 %" for k in range(10)], 200),
    "fooling in one generation": lambda: fooled([f"{k}: 12.34%" for k in range(10)], 1),
    "similarity": lambda: likenesses(8),
    "similarity of two layers": lambda: likenesses(2),
    "compute": lambda: from_record("bench.compute.count.cpu.json", "compute"),
    "compute of nothing here": lambda: _charts.compute({"AlexNet": (2012, 0.0054)}, {}),
    "batches": lambda: from_record("bench.forward.cpu.json", "batches"),
    "batches of one network": lambda: _charts.time_per_image({"a": {1: 0.1}}),
    "bubbles": lambda: from_record("bench.forward.cpu.json", "bubbles"),
    "bubbles in a crowd": lambda: crowded(12),
    "initialisation": initialisation,
    "playground": playground,
    "dictionary": dictionary,
    "neocognitron": recognition,
    "optimisers": optimisers,
    "regularisation": regularisation,
    "scaling": scaling,
    "one bubble": lambda: _charts.accuracy_against_operations({"a": (1.0, 70.0, 5_000_000)}),
}


@pytest.mark.parametrize("side", [8, 30, 32])
def test_the_pixels_of_a_sheet_are_sharp(side):
    shades = RNG.choice([0, 100, 200], (12, side, side, 1)).astype(np.uint8)
    canvas = FigureCanvasAgg(plot.sheet({"": shades}))
    canvas.draw()
    assert set(np.unique(canvas.buffer_rgba())) == {0, 100, 200, 255}


def test_names_that_would_overlap_move_apart_as_little_as_possible():
    np.testing.assert_allclose(_charts.spread([5.0, 1.0, 9.0], 2.0), [5, 1, 9])
    np.testing.assert_allclose(_charts.spread([1.0, 1.0, 1.0], 2.0), [-1, 1, 3])
    np.testing.assert_allclose(_charts.spread([4.0, 0.0, 3.0], 2.0), [4.5, 0, 2.5])


def texts(figure):
    """The texts of a drawn figure that can be seen."""
    hidden = set()
    for axis in figure.axes:
        for line in (axis.xaxis, axis.yaxis):
            first, last = sorted(line.get_transform().transform(line.get_view_interval()))
            for tick in (*line.get_major_ticks(), *line.get_minor_ticks()):
                margin, place = 1e-9 * (last - first), line.get_transform().transform(tick.get_loc())
                if not (axis.axison and first - margin <= place <= last + margin):
                    hidden |= {tick.label1, tick.label2}
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden
        and all(parent.get_visible() for parent in [text.axes] if parent is not None)
    ]  # fmt: skip


@pytest.mark.parametrize("name", BUILT)
def test_nothing_hides_anything(name):
    figure = BUILT[name]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    wide = figure.get_tightbbox(renderer).width * figure.dpi + 0.2 * figure.dpi  # with the margin that is saved
    assert wide <= 1600
    assert figure.get_facecolor() == (1, 1, 1, 1)
    boxes = {}
    for text in texts(figure):
        box = boxes[text] = Text.get_window_extent(text, renderer)  # without the arrow of an annotation
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1 + 1, text
        seen = text.get_fontsize() * figure.dpi / 72 * min(1, SHOWN / wide)  # pixels
        assert seen >= (5 if name == "attention to 64 tokens" else 8.5), text
    for (one, box), (other, further) in itertools.combinations(boxes.items(), 2):
        across = min(box.x1, further.x1) - max(box.x0, further.x0)
        up = min(box.y1, further.y1) - max(box.y0, further.y0)
        assert min(across, up) <= 2, (one, other)  # pixels
    for legend in figure.legends:
        for axis in figure.axes:
            assert not legend.get_window_extent(renderer).overlaps(axis.get_window_extent(renderer))
