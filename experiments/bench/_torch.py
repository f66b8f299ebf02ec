"""What the benches' forms in PyTorch share: where they compute, and how they wait for it."""

from typing import Any

import numpy as np
import torch

from dlc.run import by_batch


def device() -> str:
    """The GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def place(channels_last: bool) -> dict[str, Any]:
    """Arguments of `.to`: the device, and PyTorch's usual layout or the one that our arrays have."""
    return {"device": device(), "memory_format": torch.channels_last if channels_last else torch.contiguous_format}


def images(arrays: np.ndarray) -> torch.Tensor:
    """Images [N, H, W, C] as a tensor [N, C, H, W]."""
    return torch.from_numpy(arrays.transpose(0, 3, 1, 2).copy())


def wait() -> None:
    """Waits until the GPU, if there is one, has finished."""
    if device() == "cuda":
        torch.cuda.synchronize()


def peak_memory() -> int | None:
    """Peak bytes: of the arrays on the GPU if there is one, otherwise of this process."""
    return torch.cuda.max_memory_allocated() if device() == "cuda" else by_batch.peak_memory()
