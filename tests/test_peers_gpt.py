"""The same weights and batches in a GPT in PyTorch: losses and weights step by step, logits with a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlc import batches, losses, optim, train
from dlc.models.gpt import GPT, GPTConfig

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch", reason="PyTorch is not installed: make peers")

STEPS = 30
SIZES = {"vocab": 40, "context": 16, "layers": 2, "heads": 2, "width": 32}


def to_torch(params):
    """Our weights by the names of experiments.bench.gpt_torch, with matrices transposed, except embeddings."""
    state = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *where, name = (key.key for key in path)
        where = [f"blocks.{part[5:]}" if part.startswith("block") else part for part in where if part != "attention"]
        value = np.array(leaf).T if name == "kernel" else np.array(leaf)
        name = "bias" if name == "bias" else "weight"
        state[".".join([*where, name])] = torch.from_numpy(np.ascontiguousarray(value))
    return state


def moved(model):
    """Perturbed initial weights, so that all biases and scales differ."""
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    dtype = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    return jax.tree.map(lambda leaf: jnp.asarray(leaf + 0.05 * rng.normal(size=leaf.shape), dtype), params)


def text():
    return np.random.default_rng(1).integers(40, size=300).astype(np.int32)


def here(model, params, starts):
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.99, weight_decay=0.1, mask=optim.matrices))
    step = train.windows(train.make_step(losses.next_token(model), tx), text(), 16)
    state, metrics = train.compiled(train.scanned(step))(train.init(params, tx, jax.random.key(0)), starts)
    return np.asarray(metrics["loss"]), state.params


def there(net, starts, fused):
    from experiments.bench.gpt_torch import adamw, train_step

    optimizer, tokens = adamw(net, fused=fused), torch.from_numpy(text()).long()
    windows = (tokens[torch.from_numpy(rows).long()[:, None] + torch.arange(17)] for rows in starts)
    return [train_step(net, net, optimizer, window).item() for window in windows]


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize(
    ("double", "loss_tolerance", "tolerance"), [(True, 1e-6, 1e-6), (False, 1e-4, 1e-3)], ids=["float64", "float32"]
)
def test_gpt_follows_pytorch_step_by_step(bias, double, loss_tolerance, tolerance):
    """AdamW, with decay of matrices only, and clipping, which is active in every step."""
    from experiments.bench import gpt_torch

    with jax.enable_x64(double):
        model = GPT(GPTConfig(**SIZES, use_bias=bias))
        params, starts = moved(model), batches.random_starts(300, 16, 4)(0, STEPS)
        net = gpt_torch.GPT(**SIZES, bias=bias)
        net = net.double() if double else net
        net.load_state_dict(to_torch(params))
        ours, after = here(model, params, starts)
        np.testing.assert_allclose(ours, there(net, starts, fused=not double), rtol=loss_tolerance)
        assert ours[-1] < 0.95 * ours[0]
        theirs = net.state_dict()
        for name, value in to_torch(after).items():
            np.testing.assert_allclose(value, theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)


def test_the_peer_writes_what_it_expects_with_its_cache():
    """PyTorch's logits are the same token by token and for the whole sequence, and ours equal them."""
    from experiments.bench import gpt_torch

    model, tokens = GPT(GPTConfig(**SIZES)), text()[None, :16]
    params = moved(model)
    net = gpt_torch.GPT(**SIZES)
    net.load_state_dict(to_torch(params))
    ours = jax.jit(model.apply)({"params": params}, tokens)
    given = torch.from_numpy(tokens).long()
    with torch.no_grad():
        np.testing.assert_allclose(net(given), ours, rtol=1e-4, atol=1e-4)
        features, cached = net.read(given[:, :7])
        for i in range(7, 16):
            more, cached = net.read(given[:, i : i + 1], cached)
            features = torch.cat([features, more], 1)
        np.testing.assert_allclose(features @ net.token.weight.T, ours, rtol=1e-4, atol=1e-4)
    assert net.generate(given[:, :3], 5).shape == (1, 8)


def test_the_peer_begins_as_ours_does():
    from experiments.bench import gpt_torch

    torch.manual_seed(0)
    theirs = gpt_torch.GPT(**SIZES, bias=True).state_dict()
    ours = to_torch(jax.jit(GPT(GPTConfig(**SIZES)).init)(jax.random.key(0), jnp.zeros((1, 16), jnp.int32))["params"])
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert ours[name].shape == weight.shape
        if weight.numel() > 500:
            np.testing.assert_allclose(ours[name].std(), weight.std(), rtol=0.1)
        elif weight.ndim == 1:
            np.testing.assert_array_equal(ours[name], weight)
