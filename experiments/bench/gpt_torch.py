"""A GPT in PyTorch, as one would write it there today: ours is timed and compared with it.

It needs the extra `peers`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.bench import _torch

Cached = list[tuple[Tensor, Tensor]]  # the keys and values of every layer, [B, N, T, H] each


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.query_key_value, self.out = nn.Linear(width, 3 * width, bias), nn.Linear(width, width, bias)
        self.up, self.down = nn.Linear(width, 4 * width, bias), nn.Linear(4 * width, width, bias)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        B, T, D = x.shape
        parts = self.query_key_value(self.norm1(x)).split(D, dim=2)
        query, key, value = (part.view(B, T, self.heads, D // self.heads).transpose(1, 2) for part in parts)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh")), (key, value)


class GPT(nn.Module):
    """From tokens [B, T] to the logits of the next tokens [B, T, V]; the last layer shares the embedding's weight."""

    def __init__(self, vocab: int, context: int, layers: int, heads: int, width: int, bias: bool = True) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, bias) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=bias)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02 / (2 * layers) ** 0.5 if ("out" in name or "down" in name) else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def read(self, tokens: Tensor, cached: Cached | None = None) -> tuple[Tensor, Cached]:
        """The last layer's features, and the keys and values of all layers; the tokens continue those in `cached`."""
        at = cached[0][0].shape[2] if cached else 0
        x = self.token(tokens) + self.position(torch.arange(at, at + tokens.shape[1], device=tokens.device))
        kept = []
        for i, block in enumerate(self.blocks):
            x, entry = block(x, cached[i] if cached else None)
            kept.append(entry)
        return self.norm(x), kept

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(self.read(tokens)[0], self.token.weight)

    @torch.inference_mode()
    def generate(self, tokens: Tensor, length: int) -> Tensor:
        """`tokens` [B, P] followed by `length` more, each drawn from the model's distribution given those before it."""
        x, cached = self.read(tokens)
        for left in range(length, 0, -1):
            logits = F.linear(x[:, -1], self.token.weight)
            drawn = torch.multinomial(logits.float().softmax(-1), 1)
            tokens = torch.cat([tokens, drawn], 1)
            if left > 1:
                x, cached = self.read(drawn, cached)
        return tokens


def adamw(model: nn.Module, lr: float = 1e-3, decay: float = 0.1, fused: bool = True) -> torch.optim.AdamW:
    """AdamW with weight decay only for matrices."""
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    others = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=fused)


def train_step(
    model: nn.Module, forward: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor, half: bool = False
) -> Tensor:
    """One update from windows [B, T + 1], with the gradient clipped at norm 1; returns the loss before the update.

    `forward` is the model or its compiled version; with `half` it computes in bfloat16 where that is safe.
    """
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=half):
        logits = forward(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def training(
    model: GPT, tokens: np.ndarray, starts: Callable[[int], np.ndarray], compiled: bool = False, half: bool = False
) -> Callable[[Any, int], None]:
    """`run(state, at)`, which takes a step for each row of `starts(at)` [chunk, B]; the state is None."""
    device = _prepared()
    text = torch.from_numpy(tokens).long().to(device)
    model = model.to(device)
    optimizer, forward = adamw(model), torch.compile(model) if compiled else model
    window = torch.arange(model.position.num_embeddings + 1, device=device)

    def run(state: Any, at: int) -> None:
        for row in torch.from_numpy(starts(at)).to(device):
            train_step(model, forward, optimizer, text[row[:, None] + window], half=half)
        _torch.wait()

    return run


def writing(model: GPT, tokens: np.ndarray, length: int) -> Callable[[Any, int], None]:
    """`run(state, at)`, which writes a text of `length` tokens after the first of `tokens`; the state is None."""
    device = _prepared()
    model, first = model.to(device), torch.from_numpy(tokens[None, :1]).long().to(device)

    def run(state: Any, at: int) -> None:
        model.generate(first, length)
        _torch.wait()

    return run


def _prepared() -> str:
    """The device. On a GPU, float32 products use the precision that is JAX's default there."""
    if _torch.device() == "cuda":
        torch.set_float32_matmul_precision("high")
    return _torch.device()
