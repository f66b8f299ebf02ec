"""The classics of ImageNet in PyTorch, as one would write a forward pass and a training step there.

With `channels_last` a form has the layout of our arrays, PyTorch's fastest; with `compiled` it goes through PyTorch's
compiler. Both need the extra `peers`.
"""

from collections.abc import Callable
from typing import Any

from dlc.models.table import Row
from dlc.run import by_batch
from experiments.bench import classics, vision_torch
from experiments.bench.classics import CLASSICS


def build(classic: Row) -> Any:
    """The network without auxiliary heads."""
    heads = classic.peer in ("torchvision.googlenet", "torchvision.inception_v3")
    return vision_torch.build(classic.peer or "", **({"aux_logits": False, "init_weights": False} if heads else {}))


def forward(name: str, dtype: str, channels_last: bool = False, compiled: bool = False) -> Callable[..., float]:
    """Inference."""
    import torch

    from experiments.bench import _torch

    torch.set_float32_matmul_precision("high")  # JAX's default on a GPU
    place = {**_torch.place(channels_last), "dtype": getattr(torch, dtype)}
    model = build(CLASSICS[name]).eval().to(**place)
    forward = torch.compile(model, mode="reduce-overhead") if compiled else model

    def prepare(batch: int) -> Callable[[int], None]:
        images = _torch.images(classics.images(batch, classics.side(CLASSICS[name]))).to(**place)

        def run(count: int) -> None:
            with torch.inference_mode():
                for _ in range(count):
                    forward(images)
            _torch.wait()

        return run

    return by_batch.server(prepare, _torch.peak_memory)


def train_step(name: str, dtype: str, channels_last: bool = False, compiled: bool = False) -> Callable[..., float]:
    """Forward, backward and SGD with momentum; in bfloat16 through autocast."""
    import torch

    from experiments.bench import _torch

    torch.set_float32_matmul_precision("high")  # JAX's default on a GPU
    place = _torch.place(channels_last)
    model = build(CLASSICS[name]).train().to(**place)
    forward: Any = torch.compile(model) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def prepare(batch: int) -> Callable[[int], None]:
        images = _torch.images(classics.images(batch, classics.side(CLASSICS[name]))).to(**place)
        label = torch.from_numpy(classics.labels(batch)).long().to(place["device"])

        def run(count: int) -> None:
            for _ in range(count):
                with torch.autocast(place["device"], torch.bfloat16, enabled=dtype == "bfloat16"):
                    logits = forward(images)
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(logits.float(), label).backward()
                optimizer.step()
            _torch.wait()

        return run

    return by_batch.server(prepare, _torch.peak_memory)
