"""The CIFAR-10 networks in PyTorch, as one would write them there: ours are timed and compared with these.

    python -m experiments.bench.cifar10_torch --epochs 5

trains ResNet-20 as `experiments.cifar10.resnet` does and prints the test error after every epoch. It needs the extra
`peers` and leaves nothing behind.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dlc import data
from experiments.bench import _torch


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut that drops pixels and adds channels of zeros (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.added:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return F.relu(y + x)


class ResNet(nn.Module):
    """The network of 6n + 2 layers of He et al. 2015, section 4.2."""

    def __init__(self, depth: int = 20) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        inputs = 16
        for stage, width in enumerate((16, 32, 64), 1):
            for block in range(1, (depth - 2) // 6 + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                self.add_module(f"stage{stage}_block{block}", Block(inputs, width, stride))
                inputs = width
        self.dense = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv(x)))
        for name, block in self.named_children():
            x = block(x) if name.startswith("stage") else x
        return self.dense(x.mean((2, 3)))


class Group(nn.Module):
    """conv, pool, norm, GELU, conv, norm, GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        for i, channels in enumerate((inputs, outputs), 1):
            self.add_module(f"conv{i}", nn.Conv2d(channels, outputs, 3, padding="same", bias=False))
            norm = nn.BatchNorm2d(outputs, eps=1e-12, momentum=0.4)
            norm.weight.requires_grad = False
            self.add_module(f"norm{i}", norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class Airbench(nn.Module):
    """The network of airbench94_muon."""

    def __init__(self) -> None:
        super().__init__()
        self.whitening = nn.Conv2d(3, 24, 2)
        self.whitening.weight.requires_grad = False
        self.group1, self.group2, self.group3 = Group(24, 64), Group(64, 256), Group(256, 256)
        self.dense = nn.Linear(256, 10, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.whitening(x))
        x = F.max_pool2d(self.group3(self.group2(self.group1(x))), 3)
        return self.dense(x.flatten(1)) / 256


class Muon(torch.optim.Optimizer):
    """Muon as in airbench94_muon, in the precision of the weights: filters of fixed norm, orthogonal updates."""

    def __init__(self, params: Iterator[nn.Parameter], lr: float, momentum: float = 0.6) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("buffer", torch.zeros_like(p))
                buffer.mul_(group["momentum"]).add_(p.grad)
                p.mul_(len(p) ** 0.5 / p.norm())
                update = orthogonal((p.grad + group["momentum"] * buffer).flatten(1))
                p.add_(update.view_as(p), alpha=-group["lr"])


def orthogonal(x: torch.Tensor, steps: int = 3) -> torch.Tensor:
    """Three Newton-Schulz steps towards the orthogonal matrix nearest to x."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


def airbench_optimizers(model: Airbench, batch: int) -> list[torch.optim.Optimizer]:
    """The optimizers of airbench94_muon for a loss that is the mean over the batch."""
    named = dict(model.named_parameters())
    groups: dict[str, list[nn.Parameter]] = {"filters": [], "bias": []}
    for name, p in named.items():
        if p.requires_grad and name != "dense.weight":
            groups["filters" if p.ndim == 4 else "bias"].append(p)
    sgd = [
        {"params": groups["bias"], "lr": batch * 0.053, "weight_decay": 2e-6 / 0.053},
        {"params": [named["dense.weight"]], "lr": batch * 0.67, "weight_decay": 2e-6 / 0.67},
    ]
    return [torch.optim.SGD(sgd, momentum=0.85, nesterov=True), Muon(groups["filters"], lr=0.24)]


def training(
    part: Literal["resnet", "record"],
    image: np.ndarray,
    label: np.ndarray,
    batch: int,
    chunk: int,
    channels_last: bool = False,
    compiled: bool = False,
) -> Callable[[Any, int], None]:
    """`run(state, at)`, which takes `chunk` steps from step `at` on; the state is None.

    With `channels_last` in PyTorch's fastest layout, with `compiled` through its compiler. On a GPU it computes in
    bfloat16 through autocast.
    """
    device, smoothing = _torch.device(), 0.2 * (part == "record")
    images, labels = _torch.images(image).to(device), torch.tensor(label).long().to(device)
    model: Any = (ResNet(20) if part == "resnet" else Airbench()).to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    if part == "resnet":
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)]
    else:
        optimizers = airbench_optimizers(model, batch)
    forward = torch.compile(model) if compiled else model

    def run(state: Any, at: int) -> None:
        for i in range(at, at + chunk):
            first = i % (len(images) // batch) * batch
            rows = slice(first, first + batch)
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                logits = forward(images[rows])
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=smoothing)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        _torch.wait()

    return run


def load(device: str) -> tuple[torch.Tensor, ...]:
    """Images [N, 3, 32, 32] minus the mean image of the training set, and labels [N]."""
    cifar = data.load("cifar10")
    train, test = (torch.from_numpy(s["image"]).permute(0, 3, 1, 2).float() / 255 for s in (cifar.train, cifar.test))
    mean = train.mean(0)
    labels = (torch.from_numpy(split["label"]).long() for split in (cifar.train, cifar.test))
    return tuple(tensor.to(device).contiguous() for tensor in (train.sub_(mean), test.sub_(mean), *labels))


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Each image is flipped with probability 1/2, padded with four pixels of zeros, and cropped at random."""
    count, device = len(images), images.device
    images = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.5, images.flip(3), images)
    padded = F.pad(images, (4, 4, 4, 4))
    top, left = torch.randint(9, (2, count, 1), device=device)
    rows, columns = top + torch.arange(32, device=device), left + torch.arange(32, device=device)
    place = (torch.arange(count, device=device)[:, None, None], rows[:, :, None], columns[:, None, :])
    return padded.permute(0, 2, 3, 1)[place].permute(0, 3, 1, 2)


def main(epochs: int, batch: int = 128, seed: int = 0) -> Iterator[tuple[int, float, float]]:
    """Trains ResNet-20; after each epoch yields its number, the test error and the seconds of training so far."""
    torch.manual_seed(seed)
    device = _torch.device()
    train, test, train_label, test_label = load(device)
    model = ResNet(20).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    steps = epochs * (len(train) // batch)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps // 2, 3 * steps // 4])
    seconds = 0.0
    for epoch in range(1, epochs + 1):
        began = time.perf_counter()
        model.train()
        for rows in torch.randperm(len(train), device=device)[: len(train) // batch * batch].split(batch):
            loss = F.cross_entropy(model(augmented(train[rows])), train_label[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        loss.item()
        seconds += time.perf_counter() - began
        model.eval()
        with torch.no_grad():
            parts = zip(test.split(1000), test_label.split(1000), strict=True)
            wrong = sum((model(image).argmax(1) != label).sum().item() for image, label in parts)
        yield epoch, wrong / len(test), seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="ResNet-20 on CIFAR-10 in PyTorch.")
    parser.add_argument("--epochs", type=int, default=5)
    for epoch, error, seconds in main(parser.parse_args().epochs):
        print(f"epoch {epoch}: test error {100 * error:.2f} %, {seconds:.1f} s of training", flush=True)
