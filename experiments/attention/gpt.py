"""GPT writes on: a small one learns Shakespeare letter by letter, and published weights are read from a folder.

Claim (tiny_shakespeare, characters): 4 layers of width 128 reach 1.88 nats a character of unseen Shakespeare within
2,000 steps on a CPU, 6 layers of width 384 reach 1.4697 within 5,000 steps on a GPU.

Source: Radford et al. 2019, "Language models are unsupervised multitask learners". Both settings and their figures are
those of nanoGPT, https://github.com/karpathy/nanoGPT, README and config/train_shakespeare_char.py, where the loss is an
estimate; here it is the mean over the last tenth of the text. FOLDER has a GPT-2, Llama, Mistral, Qwen or llama2.c's.

Expect: 1.919 nats in six minutes on two busy CPU cores. The second command, with today's parts and Muon for matrices,
reaches 1.512 nats in eight minutes on one of two busy cores. The GPU setting was not run here.

    python -m experiments.attention.gpt
    python -m experiments.attention.gpt --variant modern --optimizer muon --lr 0.02 --context 128 --batch 32 --steps 960
    python -m experiments.attention.gpt --layers 6 --heads 6 --width 384 --context 256 --batch 64 --steps 5000 \\
        --warmup 0.02 --dropout 0.2 --evaluate-every 250
    python -m experiments.attention.gpt --text FILE --encoding bpe
    python -m experiments.attention.gpt --records FOLDER    python -m dlc.data --records FOLDER FILE ... packs texts
    python -m experiments.attention.gpt --weights RUN --prompt "To be"
    python -m experiments.attention.gpt --weights FOLDER --prompt "What is a cat?" --chat
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import optax

from dlc import losses, optim
from dlc.batches import windows
from dlc.errors import UserError
from dlc.models.gpt import GPT, GPTConfig, modern
from dlc.run.flags import Bound, Free, NotNegative, Positive, Share, Shown
from dlc.run.launch import launch
from dlc.run.run import Run
from dlc.tasks import text
from dlc.tasks.text import Context, Probability


@dataclass(frozen=True)
class Config:
    dataset: Literal["tiny_shakespeare", "python"] = "tiny_shakespeare"  # the data set
    text: Path | None = None  # a text file of your own; instead of the data set
    records: Path | None = None  # a folder of packed texts, read as they are needed; instead of the data set
    encoding: Literal["characters", "bpe"] = "characters"  # what a token is
    vocab: Positive[int] = 4096  # size of the vocabulary; of bpe
    prompt: Shown[Annotated[str, Bound(len, "is empty: begin with a letter")]] = "\n"  # the beginning of what it writes
    chat: Shown[bool] = False  # the prompt is what you say to a model that has learnt to answer
    length: Shown[NotNegative[int]] = 500  # tokens to write after the prompt
    temperature: Shown[NotNegative[float]] = 0.8  # 0 takes the most likely token each time
    top_k: Shown[NotNegative[int]] = 0  # choose among this many of the most likely tokens; 0: among all
    top_p: Shown[Probability] = 1.0  # and among those that have this probability together
    variant: Literal["gpt2", "modern"] = "gpt2"  # form of the model
    layers: Positive[int] = 4  # number of blocks
    heads: Positive[int] = 4  # attention heads in each block
    width: Positive[int] = 128  # size of the vectors between layers
    context: Context = 64  # tokens that the model sees at once
    dropout: Share = 0.0  # share of the activations that are zero in training
    steps: Positive[int] = 2000  # training steps
    batch: Positive[int] = 12  # examples in a batch; windows of the text
    accumulate: Positive[int] = 1  # parts of a batch, computed one after another; with as much memory as one needs
    remat: Free[bool] = False  # compute activations again in the backward pass instead of keeping them
    optimizer: Literal["adamw", "muon"] = "adamw"  # the optimizer; Muon is for matrices, with Adam for the rest
    lr: Positive[float] = 1e-3  # the highest learning rate; it falls along a cosine to a tenth, of Muon linearly to 0
    warmup: Share = 0.05  # share of the steps before the rate is highest
    beta2: Share = 0.99  # of Adam
    weight_decay: NotNegative[float] = 0.1  # share of each weight lost in a step, divided by lr; of matrices only
    evaluate_every: Positive[int] = 500  # steps between evaluations
    seed: Shown[NotNegative[int]] = 0  # of all random numbers
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights are float32


SMOKE = Config("python", layers=2, heads=2, width=32, context=32, steps=300, batch=8, length=60)


def network(config: Config, vocab: int) -> GPT:
    sizes = {"layers": config.layers, "heads": config.heads, "width": config.width, "dropout": config.dropout}
    sizes |= {"vocab": vocab, "context": config.context, "dtype": config.dtype, "remat": config.remat}
    return modern(**sizes) if config.variant == "modern" else GPT(GPTConfig(**sizes, use_bias=False))


def optimizer(config: Config) -> tuple[optax.Schedule, optax.GradientTransformation]:
    if config.optimizer == "muon":
        rate = optim.triangle(config.lr, config.steps, config.warmup)
        return rate, optim.muon_for_kernels(rate, 1, config.beta2, config.weight_decay)
    rise = int(config.warmup * config.steps)
    rate = optax.warmup_cosine_decay_schedule(0, config.lr, rise, config.steps, config.lr / 10)
    adam = optax.adamw(rate, b2=config.beta2, weight_decay=config.weight_decay, mask=optim.matrices)
    return rate, optax.chain(optax.clip_by_global_norm(1.0), adam)


def train(config: Config, run: Run) -> dict:
    if config.chat:
        raise UserError("--chat asks a model that has learnt to answer: give its folder with --weights FOLDER")
    rate, tx = optimizer(config)
    plan = text.Windows.of(config, rate, config.context)
    packed = text.packed(run, config.records, plan) if config.records else None
    tokenizer, learn, held = packed or text.read(run, config.dataset, config.text, config.encoding, config.vocab)
    held = {"tokens": held if packed else windows(held, config.context)}
    text.prompt(run.weights, tokenizer, config.prompt)  # raises before training if a letter is unknown
    model = network(config, tokenizer.size)
    variables, figures = text.fit(run, model, tx, losses.next_token(model), learn, held, plan)
    write(config, run, model, variables, tokenizer)
    return figures


def show(config: Config, run: Run, model: GPT, variables: dict) -> dict:
    text.draw_curves(run)
    write(config, run, model, variables, text.tokenizer_of(run.weights, model))
    return {}


def write(config: Config, run: Run, model: GPT, variables: dict, tokenizer: text.Tokenizer) -> None:
    """Continues the prompt on the terminal, and draws what the last layer's heads attend to in the result."""
    prompt = text.prompt(run.weights, tokenizer, config.prompt, config.chat)
    options = {"temperature": config.temperature, "top_k": config.top_k or None, "length": config.length}
    options |= {"top_p": config.top_p if config.top_p < 1 else None, "key": jax.random.key(config.seed)}
    written = text.write(run, model, variables, tokenizer, prompt, options)
    run.text("written", tokenizer.decode(written[0]))
    text.draw_attention(run, model, variables, tokenizer, written[:, : min(model.config.context, 24)])


if __name__ == "__main__":
    launch(train, Config(), SMOKE, show, parallel=True)
