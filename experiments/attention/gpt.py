"""GPT writes on: a small one learns Shakespeare letter by letter, and published weights are read from a folder.

Claim: 4 layers of width 128 come to 1.88 nats a character of unseen Shakespeare within 2,000 steps on a CPU, 6 layers
of width 384 to 1.4697 within 5,000 steps on a GPU.

Source: Radford et al. 2019, "Language models are unsupervised multitask learners"; both settings, and their figures,
are those of nanoGPT, https://github.com/karpathy/nanoGPT, README and config/train_shakespeare_char.py. There the loss
is an estimate from some windows of the last tenth of the text, here the mean over all of it. `--variant modern` has
rotary positions, RMSNorm, norms of queries and keys, SwiGLU and grouped queries.

Expect: 1.901 nats in 71 seconds on two CPU cores, and 1.749 nats with `--lr 2e-3`; the GPU setting was not run here.

    python -m experiments.attention.gpt
    python -m experiments.attention.gpt --layers 6 --heads 6 --width 384 --context 256 --batch 64 --steps 5000 \
        --dropout 0.2 --evaluate-every 250
    python -m experiments.attention.gpt --text FILE --encoding bpe
    python -m experiments.attention.gpt --weights FOLDER --prompt "To be"     GPT-2's own, or those of a run
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import optax

from dlc import generate, language, losses, optim, weights
from dlc.config import not_negative, only, positive, share
from dlc.errors import UserError
from dlc.launch import launch
from dlc.models.gpt import GPT, GPTConfig, modern
from dlc.run import Run


@dataclass(frozen=True)
class Config:
    dataset: Literal["tiny_shakespeare", "python"] = "tiny_shakespeare"
    text: Path | None = None  # a text file of your own instead
    encoding: Literal["characters", "bpe"] = "characters"
    vocab: int = 4096  # of bpe
    weights: Path | None = None  # write with these instead of training: a folder with GPT-2's, or a run of this
    prompt: str = "\n"
    length: int = 500  # tokens to write after the prompt
    temperature: float = 0.8  # 0 takes the most likely token each time
    top_k: int = 0  # choose among so many of the most likely ones; 0 among all
    top_p: float = 1.0  # and among those that have this probability together
    variant: Literal["gpt2", "modern"] = "gpt2"
    layers: int = 4
    heads: int = 4
    width: int = 128
    context: int = 64
    dropout: float = 0.0
    steps: int = 2000
    batch: int = 12
    lr: float = 1e-3  # falls along a cosine to a tenth of it
    warmup: int = 100  # steps in which it rises
    beta2: float = 0.99
    weight_decay: float = 0.1  # of matrices alone
    evaluate_every: int = 500  # steps
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights are float32

    def __post_init__(self) -> None:
        positive(self, "layers", "heads", "width", "context", "steps", "batch", "lr", "evaluate_every", "top_p")
        not_negative(self, "length", "temperature", "top_k", "warmup", "weight_decay", "seed")
        share(self, "dropout", "beta2")
        if self.weights:
            only(self, "--weights", "weights", "prompt", "length", "temperature", "top_k", "top_p", "seed")
        if self.top_p > 1 or not self.prompt:
            raise UserError("--top-p must be at most 1" if self.prompt else "--prompt is empty: begin with a letter")
        if self.warmup >= self.steps:
            raise UserError(f"--warmup {self.warmup} is not less than the {self.steps} --steps")


SMOKE = Config("python", layers=2, heads=2, width=32, context=32, steps=300, warmup=10, batch=8, length=60)


def main(config: Config, run: Run) -> dict:
    if config.weights:
        model, params, tokenizer = language.known(
            run, config.weights, "attention.gpt", Config, network, optimizer, weights.load_gpt2
        )
        figures: dict = {}
    else:
        tokenizer, learn, held = language.read(run, config.dataset, config.text, config.encoding, config.vocab)
        tokenizer.encode(config.prompt)  # before the training, if a letter of it is unknown
        model = network(config, tokenizer.size)

        def forward(params: Any, window: Any) -> Any:
            logits = model.apply({"params": params}, window[:, :-1])
            return losses.cross_entropy(logits.reshape(-1, tokenizer.size), window[:, 1:].reshape(-1))

        params, figures = language.fit(
            run, model, optimizer(config), losses.next_token(model), forward, learn, held, context=config.context,
            batch=config.batch, steps=config.steps, evaluate_every=config.evaluate_every, seed=config.seed,
        )  # fmt: skip
    write(config, run, model, params, tokenizer)
    return figures


def write(config: Config, run: Run, model: GPT, params: Any, tokenizer: language.Tokenizer) -> None:
    """Goes on after the prompt, on the terminal; draws what the last layer's heads attend to in what came out."""
    prompt, context = tokenizer.encode(config.prompt)[None], model.config.context
    if prompt.size > context:
        run.say(f"the prompt has {prompt.size} tokens and the context {context}: the model reads the last of it")
    sample = partial(
        generate.sample, model, params, prompt, jax.random.key(config.seed), length=config.length,
        temperature=config.temperature, top_k=config.top_k or None, top_p=config.top_p if config.top_p < 1 else None,
    )  # fmt: skip
    print(config.prompt, end="")
    written = run.timed("generate", partial(sample, emit=language.stream(tokenizer)))
    jax.effects_barrier()
    print("\n")
    run.text("written", tokenizer.decode(written[0]))
    language.attention(run, model, params, tokenizer, written[:, : min(context, 32)])


def network(config: Config, vocab: int) -> GPT:
    sizes = {"layers": config.layers, "heads": config.heads, "width": config.width, "dropout": config.dropout}
    sizes |= {"vocab": vocab, "context": config.context, "dtype": config.dtype}
    return modern(**sizes) if config.variant == "modern" else GPT(GPTConfig(**sizes, use_bias=False))


def optimizer(config: Config) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0, config.lr, config.warmup, config.steps, config.lr / 10)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b2=config.beta2, weight_decay=config.weight_decay, mask=optim.matrices),
    )


if __name__ == "__main__":
    launch(main, Config(), SMOKE)
