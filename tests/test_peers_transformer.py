"""The transformer compared with torch.nn.Transformer: the same weights and batches give the same logits and losses."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlc import losses, train
from dlc.models.transformer import Transformer, TransformerConfig

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch", reason="PyTorch is not installed: make peers")

STEPS, V, D = 30, 40, 32
OURS = {  # names in a layer: ours to theirs
    "attention.query_key_value": "self_attn.in_proj_",
    "attention.out": "self_attn.out_proj.",
    "cross_attention.out": "multihead_attn.out_proj.",
    "up": "linear1.",
    "down": "linear2.",
}
NORMS = {  # theirs have numbers
    "encoder": {"attention_norm": "norm1.", "norm": "norm2."},
    "decoder": {"attention_norm": "norm1.", "cross_norm": "norm2.", "norm": "norm3."},
}


def to_torch(params):
    """Our weights by the names of torch.nn.Transformer, which keeps all projections of an attention in one matrix."""
    state, cross = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        first, *where, name = (key.key for key in path)
        value = torch.from_numpy(np.ascontiguousarray(np.array(leaf).T if name == "kernel" else np.array(leaf)))
        kind = "bias" if name == "bias" else "weight"
        if first == "embed":
            continue
        side, _, number = first.partition("_")
        if number == "norm":
            state[f"{side}.norm.{kind}"] = value
            continue
        layer, where = f"{side}.layers.{number}.", ".".join(where)
        if where in ("cross_attention.query", "cross_attention.key_value"):
            cross[f"{layer}multihead_attn.in_proj_{kind}", where] = value
        else:
            state[layer + {**OURS, **NORMS[side]}[where] + kind] = value
    for key in {key for key, _ in cross}:
        state[key] = torch.cat([cross[key, f"cross_attention.{part}"] for part in ("query", "key_value")])
    return state


class Peer(torch.nn.Module):
    """torch.nn.Transformer, the shared embedding with sinusoids before it, and the same matrix after it."""

    def __init__(self, norm_first, embedding):
        super().__init__()
        with warnings.catch_warnings():  # PyTorch warns if it cannot use its fast path for inference
            warnings.filterwarnings("ignore", message="enable_nested_tensor")
            self.inner = torch.nn.Transformer(
                D, 4, 2, 2, 64, dropout=0.0, activation="relu", batch_first=True, norm_first=norm_first
            )
        if not norm_first:  # the paper adds no norm after the last layer, which ends with one
            self.inner.encoder.norm = self.inner.decoder.norm = None
        self.embedding = torch.nn.Parameter(torch.from_numpy(np.array(embedding)))
        angles = np.arange(16)[:, None] / 10_000 ** (np.arange(D // 2) / (D // 2))
        self.places = torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], 1)).to(self.embedding.dtype)

    def forward(self, source, target):
        embedded = [self.embedding[tokens] * D**0.5 + self.places[: tokens.shape[1]] for tokens in (source, target)]
        later = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        y = self.inner(*embedded, tgt_mask=later, src_key_padding_mask=source == 0, memory_key_padding_mask=source == 0)
        return y @ self.embedding.T


def batches(dtype):
    """Sources of 5 to 9 tokens, padded; targets without padding, because PyTorch would attend to it."""
    rng = np.random.default_rng(0)
    source = rng.integers(1, V, size=(STEPS, 4, 9)).astype(dtype)
    source = np.where(np.arange(9) < rng.integers(5, 10, size=(STEPS, 4, 1)), source, 0)
    return {"source": source, "target": rng.integers(1, V, size=(STEPS, 4, 8)).astype(dtype)}


def pair(norm_first):
    """Ours and theirs with the same weights, perturbed from their initial values."""
    model = Transformer(TransformerConfig(V, layers=2, heads=4, width=D, hidden=64, dropout=0.0, norm_first=norm_first))
    example = jnp.ones((1, 9), jnp.int32)
    params, rng = jax.jit(model.init)(jax.random.key(0), example, example)["params"], np.random.default_rng(0)
    dtype = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf + 0.05 * rng.normal(size=leaf.shape), dtype), params)
    peer = Peer(norm_first, params["embed"]["embedding"])
    peer = peer.double() if dtype == jnp.float64 else peer
    peer.inner.load_state_dict(to_torch(params))
    return model, params, peer


each = pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])


@each
def test_logits_are_those_of_pytorch(norm_first):
    model, params, peer = pair(norm_first)
    batch = {name: array[0] for name, array in batches(np.int32).items()}
    ours = jax.jit(model.apply)({"params": params}, batch["source"], batch["target"])
    with torch.no_grad():
        theirs = peer(*(torch.from_numpy(batch[name]).long() for name in ("source", "target")))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@each
@pytest.mark.parametrize(("double", "tolerance"), [(True, 1e-6), (False, 1e-3)], ids=["float64", "float32"])
def test_adam_follows_pytorch_step_by_step(norm_first, double, tolerance):
    with jax.enable_x64(double):
        model, params, peer = pair(norm_first)
        tx, given = optax.adam(1e-3, b2=0.98, eps=1e-9), batches(np.int32)

        def loss_fn(params, aux, batch, key):
            logits = model.apply({"params": params}, batch["source"], batch["target"][:, :-1])
            return losses.cross_entropy(logits.reshape(-1, V), batch["target"][:, 1:].reshape(-1)).mean(), (aux, {})

        step = train.compiled(train.scanned(train.make_step(loss_fn, tx)))
        state, metrics = step(train.init(params, tx, jax.random.key(0)), given)

        adam, history = torch.optim.Adam(peer.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-9), []
        for source, target in zip(given["source"], given["target"], strict=True):
            target = torch.from_numpy(target).long()
            logits = peer(torch.from_numpy(source).long(), target[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
            adam.zero_grad()
            loss.backward()
            adam.step()
            history.append(loss.item())

        np.testing.assert_allclose(metrics["loss"], history, rtol=tolerance)
        assert min(metrics["loss"]) < metrics["loss"][0]
        theirs = {**peer.inner.state_dict(), "embedding": peer.embedding.detach()}
        ours = {**to_torch(state.params), "embedding": np.asarray(state.params["embed"]["embedding"])}
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            mine, other = np.asarray(value).copy(), np.asarray(theirs[name]).copy()
            if name.endswith("in_proj_bias"):  # the loss does not depend on key biases; Adam moves them by rounding
                mine[D : 2 * D] = other[D : 2 * D] = 0
            np.testing.assert_allclose(mine, other, rtol=10 * tolerance, atol=10 * tolerance, err_msg=name)
