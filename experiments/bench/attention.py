"""The small GPT, and GPT-2 small, beside what a user would pick instead: PyTorch, and Flax as one would first write it.

    python -m experiments.bench.attention                    the small GPT, about 5 minutes
    python -m experiments.bench.attention --part steps       time per training step, by form
    python -m experiments.bench.attention --part generate    tokens per second, one text at a time
    python -m experiments.bench.attention --part gpt2        GPT-2 small in bfloat16, on a GPU

The small GPT is nanoGPT's for a CPU: 4 layers of width 128 with 4 heads, no biases, and a vocabulary of 65 tokens. The
tokens are random, because the time of dense layers does not depend on them. Every form is a process of its own, which
runs a chunk in turn with the others. The peers are gpt_torch.py and gpt_flax.py; every form clips the gradient at norm
1 and uses AdamW, with weight decay only for matrices.
"""

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from dlc.errors import UserError
from dlc.run import timing
from dlc.run.bench import Bench, Forms, compile_columns, launch, step_rows
from dlc.run.flags import Positive
from dlc.tasks.text import Context

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU

Part = Literal["steps", "generate", "gpt2"]
CHUNK = {"steps": 50, "generate": 256, "gpt2": 10}  # steps, or tokens, that are timed together
SMALL = {"vocab": 65, "layers": 4, "heads": 4, "width": 128}
GPT2 = {"vocab": 50_257, "layers": 12, "heads": 12, "width": 768}
# TFLOP/s of dense bfloat16 products, without sparsity: NVIDIA's data sheets of the A100 (2021) and of the H100 SXM and
# H200 (2024).
PEAK = {"A100": 312, "H100": 989, "H200": 989}


def network(part: Part, context: int) -> dict[str, int]:
    return {**(GPT2 if part == "gpt2" else SMALL), "context": context}


def text(part: Part) -> np.ndarray:
    return np.random.default_rng(0).integers(network(part, 0)["vocab"], size=1_000_000, dtype=np.int32)


def starts(part: Part, context: int, batch: int, at: int) -> np.ndarray:
    """Where the windows of the chunk's batches start, [chunk, batch], the same in every form."""
    return np.random.default_rng(at).integers(1_000_000 - context, size=(CHUNK[part], batch), dtype=np.int32)


def ours(part: Part, context: int, batch: int) -> Callable[[], float]:
    """The experiment's own step, scanned as `dlc.run.fit` scans it; or its own generation."""
    import optax

    from dlc import generate, losses, optim, train
    from dlc.models.gpt import GPT, GPTConfig

    tokens, chunk, large = text(part), CHUNK[part], part == "gpt2"
    model = GPT(GPTConfig(**network(part, context), use_bias=large, dtype="bfloat16" if large else None))
    params = jax.jit(model.init)(jax.random.key(0), tokens[None, :context])["params"]

    def written(state: None, at: int) -> None:
        key = jax.random.key(at)
        generate.sample(model, params, tokens[None, :1], key, length=chunk, temperature=1.0).block_until_ready()

    if part == "generate":
        return timing.chunks(written, None, chunk, warm=2)

    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.99, weight_decay=0.1, mask=optim.matrices))
    step = train.windows(train.make_step(losses.next_token(model), tx), tokens, context)
    step = train.compiled(train.scanned(step))

    def trained(state: train.State, at: int) -> train.State:
        return jax.block_until_ready(step(state, starts(part, context, batch, at))[0])

    return timing.chunks(trained, train.init(params, tx, jax.random.key(0)), chunk, warm=2)


def flax_form(part: Part, context: int, batch: int) -> Callable[[], float]:
    from experiments.bench import gpt_flax

    model = gpt_flax.GPT(**network(part, context))
    run, state = gpt_flax.training(model, text(part), functools.partial(starts, part, context, batch))
    return timing.chunks(run, state, CHUNK[part], warm=2)


def torch_form(part: Part, context: int, batch: int, compiled: bool = False) -> Callable[[], float]:
    """PyTorch with its fused attention and AdamW; or through its compiler."""
    from experiments.bench import gpt_torch

    model, chunk = gpt_torch.GPT(**network(part, context), bias=part == "gpt2"), CHUNK[part]
    if part == "generate":
        run = gpt_torch.writing(model, text(part), chunk)
    else:
        begin = functools.partial(starts, part, context, batch)
        run = gpt_torch.training(model, text(part), begin, compiled, half=part == "gpt2")
    return timing.chunks(run, None, chunk, warm=2)


FORMS: Forms = {
    "PyTorch, eager": torch_form,
    "PyTorch, compiled": functools.partial(torch_form, compiled=True),
    "Flax, as one would first write it": flax_form,
    "dlc": ours,
}
TIMED = {
    "steps": tuple(FORMS),
    "generate": ("PyTorch, eager", "dlc"),
    "gpt2": ("PyTorch, eager", "PyTorch, compiled", "dlc"),
}


@dataclass(frozen=True)
class Config:
    part: Literal["all", "steps", "generate", "gpt2"] = "all"  # what is timed; all: both parts of the small GPT
    context: Context = 64  # tokens that the model sees at once; in the small GPT's training step
    batch: Positive[int] = 12  # examples in a batch; in the small GPT's training step
    gpt2_batch: Positive[int] = 16  # the same for GPT-2
    on_cpu: bool = False  # GPT-2 even without a GPU: a minute a step
    rounds: Positive[int] = 11  # how often each form is timed
    out: Path = Path("runs")  # folder in which the run gets a folder of its own


def side_by_side(part: Part, context: int, batch: int, rounds: int) -> tuple[dict[str, np.ndarray], str]:
    """Seconds per step, or per token, of every form; and the faster form of PyTorch."""
    times = timing.side_by_side("experiments.bench.attention", TIMED[part], (part, context, batch), rounds)
    return times, timing.fastest(times, "PyTorch")


def compiling(part: Part, context: int, batch: int) -> dict[str, timing.Compiling]:
    """What every form compiles."""
    return timing.compiling("experiments.bench.attention", TIMED[part], (part, context, batch))


def steps(config: Config) -> Bench:
    """The time per training step of the small GPT."""
    times, best = side_by_side("steps", config.context, config.batch, config.rounds)
    what = f"{config.batch} windows of {config.context} tokens"
    how = f"medians of {config.rounds} interleaved chunks of {CHUNK['steps']} steps"
    return Bench(
        "attention.steps",
        f"One step of a small GPT, {what}",
        f"Training, {what}, float32, AdamW; {how}.",
        step_rows(times, best, compiling("steps", config.context, config.batch)),
        ["--part", "steps", "--context", config.context, "--batch", config.batch, "--rounds", config.rounds],
    )


def generation(config: Config) -> Bench:
    """The tokens per second of the small GPT as it writes one text."""
    times, best = side_by_side("generate", 512, 1, config.rounds)
    ratio, compiled = timing.ratios(times, best), compiling("generate", 512, 1)
    return Bench(
        "attention.generate",
        "A small GPT writes",
        f"One text of {CHUNK['generate']} tokens drawn at temperature 1, with a cache, medians of {config.rounds}.",
        {
            name: {
                "tokens per second": f"{1 / np.median(seconds):,.0f}",
                "time, of PyTorch's": f"{ratio[name]:.2f}",
                **compile_columns(compiled.get(name)),
            }
            for name, seconds in times.items()
        },
        ["--part", "generate", "--rounds", config.rounds],
    )


def gpt2(config: Config) -> Bench:
    """The tokens per second of GPT-2 small in training.

    A token takes 6 N + 12 L H Q T operations, where N is the number of weights without those of the positions, L the
    number of layers, H Q the heads times their width, and T the context (Chowdhery et al. 2022, "PaLM", appendix B).
    """
    device, context, width, layers = jax.devices()[0], 1024, GPT2["width"], GPT2["layers"]
    if device.platform != "gpu" and not config.on_cpu:
        raise UserError("GPT-2 takes about a minute a step without a GPU: ask for it with --on-cpu")
    times, best = side_by_side("gpt2", context, config.gpt2_batch, config.rounds)
    operations = 6 * (124_439_808 - context * width) + 12 * layers * width * context
    peak = next((value for name, value in PEAK.items() if name in device.device_kind), None)
    ratio, rows, compiled = timing.ratios(times, best), {}, compiling("gpt2", context, config.gpt2_batch)
    for name, seconds in times.items():
        rate = config.gpt2_batch * context / np.median(seconds)
        rows[name] = {
            "tokens per second": f"{rate:,.0f}",
            "share of the peak": f"{100 * rate * operations / (peak * 1e12):.1f} %" if peak else "unknown",
            "time, of PyTorch's best": f"{ratio[name]:.2f}",
            **compile_columns(compiled.get(name)),
        }
    against = f"the peak is {peak} TFLOP/s" if peak else f"no peak is known for {device.device_kind}"
    how = f"medians of {config.rounds} interleaved chunks of {CHUNK['gpt2']} steps"
    on_cpu = ["--on-cpu"] if config.on_cpu else []
    return Bench(
        "attention.gpt2",
        "GPT-2 small in training",
        f"Training, {config.gpt2_batch} windows of {context} tokens, bfloat16, AdamW; {how}; {against}.",
        rows,
        ["--part", "gpt2", "--gpt2-batch", config.gpt2_batch, *on_cpu, "--rounds", config.rounds],
    )


def measured(config: Config) -> Iterator[Bench]:
    for name, part in {"steps": steps, "generate": generation, "gpt2": gpt2}.items():
        if name == config.part or (config.part == "all" and name != "gpt2"):
            yield part(config)


if __name__ == "__main__":
    launch(measured, Config, FORMS, peers=("torch",))
