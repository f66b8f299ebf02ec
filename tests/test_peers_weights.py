"""Our GPT-2, BERT and ViT against transformers', with the same random weights, saved by either.

Needs the extra `peers` and transformers: `make peers`.
"""

import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc import weights
from dlc.models.bert import Bert, BertConfig, BertMaskedLM
from dlc.models.gpt import GPT, GPTConfig
from dlc.models.vit import ViT, ViTConfig

os.environ["HF_HUB_OFFLINE"] = "1"
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]  # their warnings are not ours to fix
torch = pytest.importorskip("torch", reason="PyTorch is not installed: make peers")
if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed: make peers", allow_module_level=True)

from experiments.bench import vision_torch  # noqa: E402, needs torch

vision_torch.define_operators()  # transformers imports torchvision if it is installed

ENCODER = {
    "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 40,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
BERT = ENCODER | {"vocab_size": 50, "max_position_embeddings": 20, "pad_token_id": 0}
VIT = ENCODER | {"image_size": 24, "patch_size": 8, "num_labels": 7}
GPT2 = {"vocab_size": 50, "n_positions": 20, "n_layer": 3, "n_head": 4, "n_embd": 32, "bos_token_id": 1,
        "eos_token_id": 1}  # fmt: skip
OURS = {"layers": 3, "heads": 4, "width": 32, "dropout": 0.0}

# Our model, the functions that load and save it, and the names and sizes of their configuration
PAIRS = {
    "GPT2LMHeadModel": (
        GPT(GPTConfig(vocab=50, context=20, **OURS)), weights.load_gpt2, weights.save_gpt2, "GPT2Config", GPT2,
    ),
    "BertForMaskedLM": (
        BertMaskedLM(BertConfig(vocab=50, context=20, hidden=40, **OURS)), weights.load_bert_masked_lm,
        weights.save_bert, "BertConfig", BERT,
    ),
    "BertModel": (
        Bert(BertConfig(vocab=50, context=20, hidden=40, **OURS)), weights.load_bert, weights.save_bert, "BertConfig",
        BERT,
    ),
    "ViTForImageClassification": (
        ViT(ViTConfig(image=24, patch=8, classes=7, hidden=40, **OURS)), weights.load_vit, weights.save_vit,
        "ViTConfig", VIT,
    ),
}  # fmt: skip
every = pytest.mark.parametrize("name", PAIRS)


def published(name, folder, **changes):
    """One of their models, in which no weight is zero, one, or equal to another; also saved to a folder."""
    import transformers

    *_, config, sizes = PAIRS[name]
    torch.manual_seed(0)
    theirs = getattr(transformers, name)(getattr(transformers, config)(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    theirs.save_pretrained(folder)
    return theirs


def inputs(name, batch=2):
    rng = np.random.default_rng(0)
    if name.startswith("ViT"):
        return rng.normal(size=(batch, 24, 24, 3)).astype(np.float32)
    tokens = rng.integers(1, 50, (batch, 13))
    if name.startswith("Bert"):
        tokens[1, 9:] = 0
    return tokens


def answers(model, variables, name):
    """Our outputs as a list."""
    given = jnp.asarray(inputs(name))
    if name.startswith("Bert"):
        segments = (jnp.arange(13) > 5).astype(int)[None].repeat(2, 0)
        return jax.tree.leaves(jax.jit(model.apply)(variables, given, segments))
    return jax.tree.leaves(jax.jit(model.apply)(variables, given))


def their_answers(theirs, name):
    given = torch.from_numpy(inputs(name))
    with torch.no_grad():
        if name.startswith("ViT"):
            return [theirs(given.permute(0, 3, 1, 2)).logits.numpy()]
        if name.startswith("GPT"):
            return [theirs(given).logits.numpy()]
        segments = (torch.arange(13) > 5).long()[None].repeat(2, 1)
        out = theirs(given, attention_mask=(given != 0).long(), token_type_ids=segments)
    return [out.logits.numpy()] if name == "BertForMaskedLM" else [out[0].numpy(), out[1].numpy()]


def assert_close(ours, theirs, name):
    for mine, other in zip(ours, theirs, strict=True):
        if name.startswith("Bert") and mine.ndim == 3:  # outputs at padding are never read
            mine, other = mine[inputs(name) != 0], other[inputs(name) != 0]
        assert np.abs(other).std() > 0.05
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


@every
def test_their_weights_give_their_outputs_here(name, tmp_path):
    model, load, *_ = PAIRS[name]
    theirs = published(name, tmp_path)
    found, variables = load(tmp_path)
    assert type(found) is type(model)
    assert_close(answers(found, variables, name), their_answers(theirs, name), name)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert count == sum(weight.numel() for weight in theirs.parameters())


@every
def test_our_weights_give_our_outputs_there(name, tmp_path):
    import transformers

    model, _, save, *_ = PAIRS[name]
    params = model.init(jax.random.key(0), jnp.asarray(inputs(name)))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype), params)
    save(tmp_path, model, params)
    theirs, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_close(answers(model, {"params": params}, name), their_answers(theirs.eval(), name), name)


def test_a_model_in_several_files(tmp_path):
    theirs = published("GPT2LMHeadModel", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model, variables = weights.load_gpt2(tmp_path)
    assert_close(answers(model, variables, "GPT2LMHeadModel"), their_answers(theirs, "GPT2LMHeadModel"), "GPT")


def test_bfloat16_is_read_as_their_own_float32(tmp_path):
    theirs = published("GPT2LMHeadModel", tmp_path).bfloat16()
    theirs.save_pretrained(tmp_path)
    model, variables = weights.load_gpt2(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert_close(answers(model, variables, "GPT2"), their_answers(theirs.float(), "GPT2"), "GPT")


def test_the_encoder_without_its_head(tmp_path):
    """`GPT2Model` and `BertForPreTraining`, whose weights have different names."""
    import transformers

    head = published("GPT2LMHeadModel", tmp_path / "head")
    head.transformer.save_pretrained(tmp_path / "bare")
    for folder in ("head", "bare"):
        model, variables = weights.load_gpt2(tmp_path / folder)
        assert_close(answers(model, variables, "GPT2"), their_answers(head, "GPT2"), "GPT")

    torch.manual_seed(0)
    both = transformers.BertForPreTraining(transformers.BertConfig(**BERT)).eval()
    both.save_pretrained(tmp_path / "both")
    model, variables = weights.load_bert(tmp_path / "both")
    assert_close(answers(model, variables, "BertModel"), their_answers(both.bert, "BertModel"), "BertModel")
    weights.load_bert_masked_lm(tmp_path / "both")


def test_greedy_generation_is_theirs_with_and_without_a_cache(tmp_path):
    theirs = published("GPT2LMHeadModel", tmp_path, eos_token_id=None)
    model, variables = weights.load_gpt2(tmp_path)
    start = inputs("GPT2LMHeadModel")[:, :3]
    with torch.no_grad():
        expected = theirs.generate(
            torch.from_numpy(start), attention_mask=torch.ones(start.shape, dtype=torch.long), do_sample=False,
            max_new_tokens=15, pad_token_id=0,
        ).numpy()  # fmt: skip
    apply = jax.jit(model.apply)

    plain = np.zeros((2, 18), start.dtype)  # earlier positions do not see the rest
    plain[:, :3] = start
    for i in range(3, 18):
        plain[:, i] = apply(variables, jnp.asarray(plain))[:, i - 1].argmax(-1)

    logits, cache = apply(variables, jnp.asarray(start), cache=model.cache(2, 20))
    cached = [*start.T, np.asarray(logits[:, -1].argmax(-1))]
    while len(cached) < 18:
        logits, cache = apply(variables, jnp.asarray(cached[-1])[:, None], cache=cache)
        cached.append(np.asarray(logits[:, -1].argmax(-1)))

    assert len(np.unique(expected)) > 5
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(np.stack(cached, 1), expected)


def test_torchvisions_vit_in_both_of_its_spellings(tmp_path):
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    theirs = VisionTransformer(24, 8, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=40, num_classes=7).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    state = theirs.state_dict()
    torch.save(state, tmp_path / "new.pth")
    older = {name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): t for name, t in state.items()}
    assert set(older) != set(state)
    torch.save(older, tmp_path / "old.pth")
    config = ViTConfig(image=24, patch=8, classes=7, hidden=40, **OURS)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(inputs("ViT")).permute(0, 3, 1, 2)).numpy()
    for name in ("new", "old"):
        model, variables = weights.load_vit(tmp_path / f"{name}.pth", config)
        assert_close(answers(model, variables, "ViT"), [expected], "ViT")
