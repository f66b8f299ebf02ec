"""The classics of ImageNet as benches time them: which they are, their random weights, and a table of times.

A form (ours, PyTorch's, ...) of a model is a process. It is asked for one batch size after another, in turn with the
other forms, so that a machine whose speed drifts slows all of them alike.
"""

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from dlc import bench, record
from dlc.errors import UserError
from dlc.models import (
    alexnet,
    densenet,
    enet,
    googlenet,
    inception,
    inception_v4,
    nin,
    prelunet,
    resnet,
    squeezenet,
    vgg,
    vit,
)
from experiments.bench import vision_torch

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU

CHUNK = 0.1  # seconds that a chunk takes at least


class Classic(NamedTuple):
    """A network, the peer of `vision_torch.build`, if there is one, and its published top-1 accuracy (percent)."""

    make: Callable[..., Any]
    peer: str | None = None
    top1: float | None = None
    image: int = 224

    def build_peer(self) -> Any:
        """PyTorch's, without auxiliary heads."""
        heads = self.peer in ("torchvision.googlenet", "torchvision.inception_v3")
        return vision_torch.build(self.peer or "", **({"aux_logits": False, "init_weights": False} if heads else {}))


# Top-1: torchvision 0.28, meta data of the weights IMAGENET1K_V1, which its documentation shows, too; timm 1.0.31,
# results-imagenet.csv, for inception_v4 (tf_in1k) and vit_s16 (augreg_in1k); by eye from figure 1 of Canziani et al.
# 2016 for nin_bn and enet_classifier.
CLASSICS = {
    "alexnet": Classic(alexnet.alexnet, image=227),
    "alexnet_2014": Classic(alexnet.alexnet_2014, "torchvision.alexnet", 56.522),
    "nin": Classic(nin.nin),
    "nin_bn": Classic(nin.nin_bn, top1=63.0),
    "vgg16": Classic(vgg.vgg16, "torchvision.vgg16", 71.592),
    "vgg19": Classic(vgg.vgg19, "torchvision.vgg19", 72.376),
    "googlenet": Classic(functools.partial(googlenet.googlenet_bn, aux=False), "torchvision.googlenet", 69.778),
    "bn_inception": Classic(inception.bn_inception),
    "inception_v3": Classic(
        functools.partial(inception.inception_v3, aux=False), "torchvision.inception_v3", 77.294, 299
    ),
    "inception_v4": Classic(inception_v4.inception_v4, "timm.inception_v4", 80.144, 299),
    "prelunet_a": Classic(prelunet.prelunet_a),
    "resnet18": Classic(resnet.resnet18, "torchvision.resnet18", 69.758),
    "resnet34": Classic(resnet.resnet34, "torchvision.resnet34", 73.314),
    "resnet50": Classic(resnet.resnet50, "torchvision.resnet50", 76.13),
    "resnet101": Classic(resnet.resnet101, "torchvision.resnet101", 77.374),
    "resnet152": Classic(resnet.resnet152, "torchvision.resnet152", 78.312),
    "densenet121": Classic(densenet.densenet121, "torchvision.densenet121", 74.434),
    "squeezenet1_0": Classic(squeezenet.squeezenet1_0, "torchvision.squeezenet1_0", 58.092),
    "squeezenet1_1": Classic(squeezenet.squeezenet1_1, "torchvision.squeezenet1_1", 58.178),
    "enet": Classic(enet.enet_classifier, top1=68.0),
    "vit_s16": Classic(vit.vit_s16, "timm.vit_small_patch16_224", 78.842),
    "vit_b16": Classic(vit.vit_b16, "torchvision.vit_b_16", 81.072),
}


@dataclass
class Measured:
    """Of one model: by form, then by batch, seconds a call [rounds]; by form seconds to compile and the peak in bytes.

    `skipped` are the batches of which one call would have taken longer than the limit.
    """

    times: dict[str, dict[int, np.ndarray]]
    compile: dict[str, float]
    memory: dict[str, float]
    skipped: list[int]

    @property
    def batches(self) -> list[int]:
        return list(self.times["dlc"])

    def best(self, batch: int) -> float | None:
        """Seconds a call of the fastest form of PyTorch."""
        return min(
            (float(np.median(times[batch])) for form, times in self.times.items() if form.startswith("PyTorch")),
            default=None,
        )

    def ratio(self, batch: int) -> float | None:
        """Our time, divided by that of PyTorch's fastest form."""
        best = self.best(batch)
        return best and float(np.median(self.times["dlc"][batch])) / best

    def ratios(self) -> list[float]:
        """Those of all batches; none without a peer."""
        return [ratio for batch in self.batches if (ratio := self.ratio(batch))]

    def ratios_shown(self) -> str:
        """Their median, and their range where there are several."""
        ratios = self.ratios()
        if len(ratios) < 2:
            return "".join(f"{ratio:.2f}" for ratio in ratios)
        return f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"

    def medians(self) -> dict[str, dict[str, float]]:
        """Seconds a call by form and batch, as JSON has them."""
        return {form: {str(b): float(np.median(s)) for b, s in times.items()} for form, times in self.times.items()}


def compute_dtype(asked: str | None) -> Literal["float32", "bfloat16"]:
    """What was asked for, or else float32 on a CPU and bfloat16 elsewhere."""
    if asked is None:
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return "bfloat16" if asked == "bfloat16" else "float32"


def median_ratio(every: dict[str, Measured]) -> str:
    """A sentence: the median over the models of the median over their batches, and the worst."""
    ratios = {name: float(np.median(found.ratios())) for name, found in every.items() if found.ratios()}
    if not ratios:
        return "None of these networks has a peer."
    worst = max(ratios, key=lambda name: ratios[name])
    median = np.median(list(ratios.values()))
    return (
        f"Of PyTorch's best it is {median:.2f}, the median over the models; the worst is {worst}, {ratios[worst]:.2f}."
    )


def chosen(names: tuple[str, ...]) -> dict[str, Classic]:
    """The classics of these names, or all. Raises UserError if there is none of a name."""
    if unknown := [name for name in names if name not in CLASSICS]:
        raise UserError(f"no classic is called {unknown[0]}: --models takes {' '.join(CLASSICS)}")
    return {name: CLASSICS[name] for name in names or CLASSICS}


def forms(every: dict[str, Any], classic: Classic) -> list[str]:
    """Those of `every` that are timed: PyTorch's where there is a peer, its compiler on a GPU alone, where it pays."""
    on_gpu = jax.default_backend() == "gpu"
    return [name for name in every if name == "dlc" or (classic.peer and (on_gpu or "compiled" not in name))]


def variables(model: Any, image: int) -> Any:
    """Random variables, drawn fast: kernels as He et al. 2015 have them, so that activations keep their size."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, image, image, 3), "float32"))
    drawn = np.random.default_rng(0).standard_normal(2**20, np.float32)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        if len(leaf.shape) > 1:
            return np.resize(drawn, leaf.shape) * np.float32((2 / np.prod(leaf.shape[:-1])) ** 0.5)
        fills = {"scale": 1.0, "var": 1.0, "slope": 0.25}
        return np.full(leaf.shape, fills.get(path[-1].key, 0.0), leaf.dtype)

    return jax.device_put(jax.tree_util.tree_map_with_path(fill, shapes))


def images(batch: int, image: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, image, image, 3), np.float32)


def server(prepare: Callable[[int], Callable[[int], None]], memory: Callable[[], int | None]) -> Callable[..., float]:
    """What a form serves: "time B", "compile B" and "memory".

    `prepare(B)` gives a function that makes so many calls with batches of B and waits for them.
    """
    runs: dict[int, tuple[Callable[[int], None], int, float]] = {}

    def seconds(run: Callable[[int], None], count: int) -> float:
        began = time.perf_counter()
        run(count)
        return (time.perf_counter() - began) / count

    def answer(what: str, batch: str = "0") -> float:
        if what == "memory":
            return float(memory() or "nan")
        if (size := int(batch)) not in runs:
            run = prepare(size)
            first, one = seconds(run, 1), seconds(run, 1)
            runs[size] = run, max(1, round(CHUNK / one)), first - one
        run, count, compile_seconds = runs[size]
        return compile_seconds if what == "compile" else seconds(run, count)

    return answer


def peak_memory() -> int | None:
    """Bytes: of a GPU's memory where there is one, else of this process."""
    statistics = jax.devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] if statistics else record.peak_memory()


def measured(
    module: str, names: dict[str, Classic], forms: Callable[[Classic], list[str]], words: tuple[str, ...],
    batches: tuple[int, ...], rounds: int, limit: float, minutes: float,
) -> Iterator[tuple[str, Measured]]:  # fmt: skip
    """(name, its times) of one classic after another: `python -m module --worker form name words...` is a form of one.

    A batch of which one call would take longer than `limit` seconds is left out, and so are the models that are not
    begun within so many minutes.
    """
    began = time.monotonic()
    for name, classic in names.items():
        if time.monotonic() - began > 60 * minutes:
            print(f"{name} is left out: {minutes:g} minutes are over", file=sys.stderr)
            continue
        workers = {form: bench.Worker(module, "--worker", form, name, *words) for form in forms(classic)}
        found = Measured({form: {} for form in workers}, {}, {}, [])
        slowest = 0.0  # seconds an image
        for batch in batches:
            if slowest * batch > limit:
                found.skipped.append(batch)
                continue
            for form, worker in workers.items():
                found.compile.setdefault(form, worker.measure("compile", batch))
            ask = {form: functools.partial(worker.measure, "time", batch) for form, worker in workers.items()}
            times = bench.interleaved(ask, rounds)
            slowest = max(float(np.median(seconds)) for seconds in times.values()) / batch
            for form, seconds in times.items():
                found.times[form][batch] = seconds
        found.memory = {form: worker.measure("memory") for form, worker in workers.items()}
        for worker in workers.values():
            worker.close()
        if found.skipped:
            print(f"{name}: no batches of {', '.join(map(str, found.skipped))}, over {limit:g} s", file=sys.stderr)
        yield name, found
