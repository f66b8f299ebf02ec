"""The attack that the benchmark times is PyTorch's: the same weights and images give the same pixels."""

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.peers


def test_pgd_is_pytorchs():
    torch = pytest.importorskip("torch")
    from dlc.analysis import adversarial
    from experiments.bench import insight_torch

    rng = np.random.default_rng(0)
    weight = rng.normal(size=(36, 4)).astype(np.float32)
    pixels = rng.uniform(size=(5, 6, 6, 1)).astype(np.float32)
    label = rng.integers(0, 4, 5)
    apply = lambda variables, x: jax.nn.tanh(x.reshape(len(x), -1) / 255) @ variables  # noqa: E731
    ours = adversarial.pgd(apply, weight, 255 * pixels, label, 0.1, adversarial.Descent(5, 0.03))
    theirs = insight_torch.pgd(
        lambda x: torch.tanh(x.flatten(1)) @ torch.from_numpy(weight),
        torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), torch.from_numpy(label), 5, 0.03, 0.1,
    )  # fmt: skip
    np.testing.assert_allclose(ours / 255, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-5)
