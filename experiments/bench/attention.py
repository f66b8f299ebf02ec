"""The small GPT, and GPT-2 small, beside what a user would pick instead: PyTorch, and Flax as one would first write it.

    python -m experiments.bench.attention                    the small GPT, about 5 minutes
    python -m experiments.bench.attention --part steps       time per training step, by form
    python -m experiments.bench.attention --part generate    tokens per second, one text at a time
    python -m experiments.bench.attention --part gpt2        GPT-2 small in bfloat16, on a GPU

The small GPT has 4 layers of width 128 with 4 heads, no biases, and 65 tokens to choose from: nanoGPT's for a CPU. The
tokens are random, for what dense layers do takes as long on any. Every form is a process of its own, which runs a chunk
in turn with the others. PyTorch's GPT is in experiments/bench/gpt_torch.py; every form clips the gradient at norm 1 and
takes AdamW, which lets only matrices decay.
"""

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
import tyro

from dlc import bench
from dlc.config import positive
from dlc.errors import UserError

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU

Part = Literal["steps", "generate", "gpt2"]
CHUNK = {"steps": 50, "generate": 256, "gpt2": 10}  # steps, or tokens, that are timed together
SMALL = {"vocab": 65, "layers": 4, "heads": 4, "width": 128}
GPT2 = {"vocab": 50_257, "layers": 12, "heads": 12, "width": 768}
# TFLOP/s of dense bfloat16 products, without sparsity: NVIDIA's data sheets of the A100 (2021) and of the H100 SXM and
# H200 (2024).
PEAK = {"A100": 312, "H100": 989, "H200": 989}


@dataclass(frozen=True)
class Size:
    """What is trained, and on how much at once."""

    part: Part
    context: int
    batch: int

    @property
    def network(self) -> dict[str, int]:
        return {**(GPT2 if self.part == "gpt2" else SMALL), "context": self.context}

    @property
    def bias(self) -> bool:
        return self.part == "gpt2"

    def tokens(self) -> np.ndarray:
        return np.random.default_rng(0).integers(self.network["vocab"], size=1_000_000, dtype=np.int32)

    def starts(self, at: int) -> np.ndarray:
        """Places at which the windows of the chunk's batches begin, the same in every form."""
        rng = np.random.default_rng(at)
        return rng.integers(1_000_000 - self.context, size=(CHUNK[self.part], self.batch), dtype=np.int32)


def ours(size: Size) -> Callable[[], float]:
    """The experiment's own step, scanned as `Run.fit` scans it; or its own generation."""
    import optax

    from dlc import generate, losses, optim, train
    from dlc.models.gpt import GPT, GPTConfig

    tokens, chunk = size.tokens(), CHUNK[size.part]
    model = GPT(GPTConfig(**size.network, use_bias=size.bias, dtype="bfloat16" if size.part == "gpt2" else None))
    params = jax.jit(model.init)(jax.random.key(0), tokens[None, : size.context])["params"]
    if size.part == "generate":

        def written(state: None, at: int) -> None:
            key = jax.random.key(at)
            generate.sample(model, params, tokens[None, :1], key, length=chunk, temperature=1.0).block_until_ready()

        return bench.chunks(written, None, chunk, warm=2)

    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.99, weight_decay=0.1, mask=optim.matrices))
    step = train.windows(train.make_step(losses.next_token(model), tx), tokens, size.context)
    step = train.compiled(train.scanned(step))

    def trained(state: train.State, at: int) -> train.State:
        return jax.block_until_ready(step(state, size.starts(at))[0])

    return bench.chunks(trained, train.init(params, tx, jax.random.key(0)), chunk, warm=2)


def naive(size: Size) -> Callable[[], float]:
    """Flax's own layers, one jitted step at a time: how a user would write it."""
    import flax.linen as nn
    import jax.numpy as jnp
    import optax

    net = size.network

    class GPT(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            embed = nn.Embed(net["vocab"], net["width"])
            x = embed(tokens) + nn.Embed(net["context"], net["width"])(jnp.arange(tokens.shape[1]))
            for _ in range(net["layers"]):
                y = nn.LayerNorm(use_bias=False)(x)
                attend = nn.MultiHeadDotProductAttention(net["heads"], use_bias=False)
                x = x + attend(y, mask=nn.make_causal_mask(tokens))
                y = nn.gelu(nn.Dense(4 * net["width"], use_bias=False)(nn.LayerNorm(use_bias=False)(x)))
                x = x + nn.Dense(net["width"], use_bias=False)(y)
            return embed.attend(nn.LayerNorm(use_bias=False)(x))

    tokens, model = size.tokens(), GPT()
    params = model.init(jax.random.key(0), tokens[None, : size.context])
    decays = jax.tree.map(lambda weight: weight.ndim > 1, params)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.99, weight_decay=0.1, mask=decays))

    @jax.jit
    def step(params, opt_state, tokens):
        def loss(params):
            logits = model.apply(params, tokens[:, :-1])
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def run(state, at):
        for starts in size.starts(at):
            state = step(*state, tokens[starts[:, None] + np.arange(size.context + 1)])
        return jax.block_until_ready(state)

    return bench.chunks(run, (params, tx.init(params)), CHUNK[size.part], warm=2)


def torch_gpt(size: Size, compiled: bool = False) -> Callable[[], float]:
    """PyTorch with its fused attention and AdamW; or through its compiler."""
    import torch

    from experiments.bench.gpt_torch import GPT, adamw, train_step

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # what JAX does there unless told otherwise
    model: Any = GPT(**size.network, bias=size.bias).to(device)
    tokens = torch.from_numpy(size.tokens()).long().to(device)
    if size.part == "generate":

        def written(state, at):
            model.generate(tokens[None, :1], CHUNK["generate"])
            if device == "cuda":
                torch.cuda.synchronize()

        return bench.chunks(written, None, CHUNK["generate"], warm=2)

    optimizer, forward = adamw(model), torch.compile(model) if compiled else model
    window = torch.arange(size.context + 1, device=device)

    def run(state, at):
        for starts in torch.from_numpy(size.starts(at)).to(device):
            train_step(model, forward, optimizer, tokens[starts[:, None] + window], half=size.part == "gpt2")
        if device == "cuda":
            torch.cuda.synchronize()

    return bench.chunks(run, None, CHUNK[size.part], warm=2)


FORMS: dict[str, Callable[[Size], Callable[[], float]]] = {
    "PyTorch, eager": torch_gpt,
    "PyTorch, compiled": functools.partial(torch_gpt, compiled=True),
    "Flax, as one would first write it": naive,
    "dlc": ours,
}
LEFT_OUT = {
    "steps": (),
    "generate": ("PyTorch, compiled", "Flax, as one would first write it"),
    "gpt2": ("Flax, as one would first write it",),
}


@dataclass(frozen=True)
class Config:
    part: Literal["all", "steps", "generate", "gpt2"] = "all"  # all: both parts of the small GPT
    context: int = 64  # of the small GPT's training step
    batch: int = 12  # of the same
    gpt2_batch: int = 16
    on_cpu: bool = False  # GPT-2 even without a GPU: a minute a step
    rounds: int = 11  # of chunks
    out: Path = Path("runs")  # folder in which the record gets a folder of its own

    def __post_init__(self) -> None:
        positive(self, "context", "batch", "gpt2_batch", "rounds")


def measured(size: Size, config: Config) -> dict[str, np.ndarray]:
    """Seconds per step, or per token, of every form of a part."""
    words = [str(word) for word in (size.part, size.context, size.batch)]
    forms = [name for name in FORMS if name not in LEFT_OUT[size.part]]
    workers = {name: bench.Worker("experiments.bench.attention", "--worker", *words, name) for name in forms}
    times = bench.interleaved({name: worker.measure for name, worker in workers.items()}, config.rounds)
    for worker in workers.values():
        worker.close()
    return times


def best(times: dict[str, np.ndarray]) -> str:
    """The faster form of PyTorch."""
    return min((name for name in times if name.startswith("PyTorch")), key=lambda name: np.median(times[name]))


def steps(config: Config) -> dict:
    """The record of the time per training step of the small GPT."""
    times = measured(Size("steps", config.context, config.batch), config)
    rows = bench.step_rows(times, best(times))
    how = f"medians of {config.rounds} interleaved chunks of {CHUNK['steps']} steps"
    method = f"Training, {config.batch} windows of {config.context} tokens, float32, AdamW; {how}."
    return {
        "bench": "attention.steps",
        "title": f"One step of a small GPT, {config.batch} windows of {config.context} tokens",
        "method": method,
        "rows": rows,
    }


def generation(config: Config) -> dict:
    """The record of the tokens per second of the small GPT, as it writes one text."""
    times = measured(Size("generate", 512, 1), config)
    ratio = bench.ratios(times, best(times))
    rows = {
        name: {"tokens per second": f"{1 / np.median(seconds):,.0f}", "time, of PyTorch's": f"{ratio[name]:.2f}"}
        for name, seconds in times.items()
    }
    method = f"One text of {CHUNK['generate']} tokens drawn at temperature 1, with a cache, medians of {config.rounds}."
    return {"bench": "attention.generate", "title": "A small GPT writes", "method": method, "rows": rows}


def gpt2(config: Config) -> dict:
    """The record of the tokens per second of GPT-2 small in training.

    A token takes 6 N + 12 L H Q T operations, N being the weights but those of the positions, L the layers, H Q the
    heads times their width, T the context (Chowdhery et al. 2022, "PaLM", appendix B).
    """
    device = jax.devices()[0]
    if device.platform != "gpu" and not config.on_cpu:
        raise UserError("GPT-2 takes about a minute a step without a GPU: ask for it with --on-cpu")
    context, width, layers = 1024, GPT2["width"], GPT2["layers"]
    times = measured(Size("gpt2", context, config.gpt2_batch), config)
    operations = 6 * (124_439_808 - context * width) + 12 * layers * width * context
    peak = next((value for name, value in PEAK.items() if name in device.device_kind), None)
    ratio, rows = bench.ratios(times, best(times)), {}
    for name, seconds in times.items():
        rate = config.gpt2_batch * context / np.median(seconds)
        share = f"{100 * rate * operations / (peak * 1e12):.1f} %" if peak else "unknown"
        rows[name] = {
            "tokens per second": f"{rate:,.0f}",
            "share of the peak": share,
            "time, of PyTorch's best": f"{ratio[name]:.2f}",
        }
    against = f"the peak is {peak} TFLOP/s" if peak else f"no peak is known for {device.device_kind}"
    how = f"medians of {config.rounds} interleaved chunks of {CHUNK['gpt2']} steps"
    method = f"Training, {config.gpt2_batch} windows of {context} tokens, bfloat16, AdamW; {how}; {against}."
    return {"bench": "attention.gpt2", "title": "GPT-2 small in training", "method": method, "rows": rows}


def main(config: Config) -> None:
    flags = {
        "steps": ["--context", config.context, "--batch", config.batch],
        "generate": [],
        "gpt2": ["--gpt2-batch", config.gpt2_batch, *(["--on-cpu"] if config.on_cpu else [])],
    }
    for name, part in {"steps": steps, "generate": generation, "gpt2": gpt2}.items():
        if name == config.part or (config.part == "all" and name != "gpt2"):
            words = ["--part", name, *flags[name], "--rounds", config.rounds]
            bench.save(config.out, part(config), words)


def worker(part: str, context: str, batch: str, form: str) -> None:
    assert part in get_args(Part)
    bench.serve(FORMS[form](Size(part, int(context), int(batch))))


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["--worker"]:
            sys.exit(worker(*sys.argv[2:]))
        main(tyro.cli(Config, prog="python -m experiments.bench.attention", description=__doc__.splitlines()[0]))
    except (UserError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}" + ("; pip install -e .[peers]" if isinstance(error, ModuleNotFoundError) else ""))
