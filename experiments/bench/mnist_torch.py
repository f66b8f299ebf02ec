"""The lecture's MNIST program in PyTorch, as the lecture writes it: what `experiments.mnist.convnet` is timed against.

    python -m experiments.bench.mnist_torch

Needs the extra `peers`. It prints the test error and leaves nothing behind.
"""

import torch
from torch import nn
from torch.nn import functional as F

from dlc import data


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


def main(epochs: int = 10, batch: int = 100, lr: float = 0.1) -> float:
    """Trains and returns the share of test images that are answered wrongly."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, test, train_label, test_label = (tensor.to(device) for tensor in load())
    model = Net().to(device)
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
