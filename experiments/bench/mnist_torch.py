"""The lecture's MNIST program in PyTorch, as the lecture writes it: what `experiments.mnist.convnet` is timed against.

    python -m experiments.bench.mnist_torch

It needs the extra `peers`. It prints the test error and leaves nothing behind.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dlc import data
from experiments.bench import _torch


class Net(nn.Module):
    """Two convolutions and two linear layers; pooling before the ReLU, as in the lecture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=5)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=5)
        self.fc1 = nn.Linear(256, 200)
        self.fc2 = nn.Linear(200, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), kernel_size=3))
        x = F.relu(F.max_pool2d(self.conv2(x), kernel_size=2))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


def load() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images [N, 1, 28, 28], normalised by mean and standard deviation of the training set, and labels [N]."""
    mnist = data.load("mnist")
    train, test = (torch.from_numpy(split["image"]).permute(0, 3, 1, 2).float() for split in (mnist.train, mnist.test))
    mean, std = train.mean(), train.std()
    labels = (torch.from_numpy(split["label"]).long() for split in (mnist.train, mnist.test))
    return train.sub_(mean).div_(std), test.sub_(mean).div_(std), *labels


def training(batch: int, chunk: int, channels_last: bool = False, compiled: bool = False) -> Callable[[Any, int], None]:
    """`run(state, at)`, which takes `chunk` steps from step `at` on; the state is None.

    With `channels_last` in PyTorch's fastest layout, with `compiled` through its compiler.
    """
    images, _, labels, _ = (tensor.to(_torch.device()) for tensor in load())
    model = Net().to(_torch.device())
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def run(state: Any, at: int) -> None:
        for i in range(at, at + chunk):
            rows = slice(i % 600 * batch, (i % 600 + 1) * batch)
            optimizer.zero_grad()
            F.cross_entropy(forward(images[rows]), labels[rows]).backward()
            optimizer.step()
        _torch.wait()

    return run


def main(epochs: int = 10, batch: int = 100, lr: float = 0.1) -> float:
    """Trains and returns the share of test images that it gets wrong."""
    train, test, train_label, test_label = (tensor.to(_torch.device()) for tensor in load())
    model = Net().to(_torch.device())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(epochs):
        for at in range(0, len(train), batch):
            loss = F.cross_entropy(model(train[at : at + batch]), train_label[at : at + batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        wrong = sum(
            (model(test[at : at + batch]).argmax(1) != test_label[at : at + batch]).sum().item()
            for at in range(0, len(test), batch)
        )
    return wrong / len(test)


if __name__ == "__main__":
    print(f"test error {100 * main():.2f} %")
