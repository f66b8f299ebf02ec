"""Attacks and dreams on the lecture's convnet in PyTorch, as its users write them: the peer of bench/insight.py."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from experiments.bench import _torch, mnist_torch


def pgd(
    model: Callable[[torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    label: torch.Tensor,
    steps: int,
    step: float,
    epsilon: float,
) -> torch.Tensor:
    """Projected gradient ascent of the loss of pixels [N, 1, H, W], 0 to 1, in the ball of radius epsilon."""
    x = pixels.clone()
    for _ in range(steps):
        x.requires_grad_(True)
        (slope,) = torch.autograd.grad(F.cross_entropy(model(x), label, reduction="sum"), x)
        x = (x.detach() + step * slope.sign()).clamp(pixels - epsilon, pixels + epsilon).clamp(0, 1)
    return x


def attack(batch: int, chunk: int, channels_last: bool = False, compiled: bool = False) -> Callable[[Any, int], None]:
    """`run(state, at)`: one batch attacked with `chunk` steps; the state is None."""
    model, images, labels = prepared(channels_last)
    forward = torch.compile(model) if compiled else model

    def run(state: Any, at: int) -> None:
        rows = slice(at // chunk % 100 * batch, (at // chunk % 100 + 1) * batch)
        pgd(forward, images[rows], labels[rows], chunk, 0.01, 0.3)
        _torch.wait()

    return run


def ascended(second: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, steps: int) -> torch.Tensor:
    """Gradient ascent of the mean square of a layer of pixels [N, 1, H, W], 0 to 1, as `dlc.analysis.dream` does it."""
    x = pixels.clone()
    for i in range(steps):
        x.requires_grad_(True)
        (slope,) = torch.autograd.grad(second(x).square().flatten(1).mean(1).sum(), x)
        slope = slope / slope.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-20)
        x = (x.detach() + 2 / 255 * (1 - i / steps) * slope).clamp(0, 1)
    return x


def dream(batch: int, chunk: int, channels_last: bool = False, compiled: bool = False) -> Callable[[Any, int], None]:
    """`run(state, at)`: one batch changed with `chunk` steps; the state is None."""
    model, images, _ = prepared(channels_last)
    standardised, net = model[0], model[1]

    def second(x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.max_pool2d(net.conv1(standardised(x)), kernel_size=3))
        return F.max_pool2d(net.conv2(x), kernel_size=2)

    forward = torch.compile(second) if compiled else second

    def run(state: Any, at: int) -> None:
        ascended(forward, images[at // chunk % 100 * batch : (at // chunk % 100 + 1) * batch], chunk)
        _torch.wait()

    return run


def prepared(channels_last: bool) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The network, which standardises its images itself, and the test set with pixels of 0 to 1."""
    _, test, _, label = mnist_torch.load()
    pixels = (test - test.min()) / (test.max() - test.min())
    model = torch.nn.Sequential(Standardised(), mnist_torch.Net()).requires_grad_(False)
    kind = _torch.place(channels_last)
    return model.to(**kind), pixels.to(**kind), label.to(_torch.device())


class Standardised(torch.nn.Module):
    """Pixels of 0 to 1 with mean 0 and standard deviation 1, by MNIST's constants."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 0.1307) / 0.3081
