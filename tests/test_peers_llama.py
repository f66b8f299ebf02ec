"""Llama, Mistral and Qwen as transformers computes them, with random weights: logits, caches, tokenizers, templates.

Needs the extra `peers` and transformers: `make peers`.
"""

import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc import generate, tokens, weights

os.environ["HF_HUB_OFFLINE"] = "1"
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]  # their warnings are not ours to fix
torch = pytest.importorskip("torch", reason="PyTorch is not installed: make peers")
if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed: make peers", allow_module_level=True)

from experiments.bench import vision_torch  # noqa: E402, needs torch

vision_torch.define_operators()  # transformers imports torchvision if it is installed

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
STRETCH = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "rope_theta": 500.0,
}  # fmt: skip
# The class, and what differs from `SIZES`
MODELS = {
    "llama": ("Llama", {}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    "llama, stretched": ("Llama", {"rope_parameters": STRETCH}),
    "llama, other heads": ("Llama", {"head_dim": 12, "num_key_value_heads": 1}),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "mistral, no window": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3": ("Qwen3", {"head_dim": 16, "rms_norm_eps": 1e-3}),
}
LENGTH = 40


def published(name, folder, **how):
    """One of their models, in which no weight is zero, one, or equal to another; also saved to a folder."""
    import transformers

    kind, sizes = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **sizes})
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    theirs.save_pretrained(folder, **how)
    return theirs


def text():
    return np.random.default_rng(0).integers(1, 50, (2, LENGTH))


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_theirs_with_and_without_a_cache(name, tmp_path):
    theirs = published(name, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    with torch.no_grad():
        expected = theirs(torch.from_numpy(text())).logits.numpy()
    assert expected.std() > 0.5
    model, variables = weights.load(tmp_path)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == sum(w.numel() for w in theirs.parameters())
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(variables, jnp.asarray(text())), expected, rtol=1e-4, atol=1e-4)

    logits, cache = apply(variables, jnp.asarray(text()[:, :7]), cache=model.cache(2, LENGTH + 3))
    found = [logits]
    for i in range(7, LENGTH):
        logits, cache = apply(variables, jnp.asarray(text()[:, i : i + 1]), cache=cache)
        found.append(logits)
    np.testing.assert_allclose(jnp.concatenate(found, 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mistral", "qwen3"])
def test_greedy_generation_is_theirs(name, tmp_path):
    theirs, start = published(name, tmp_path), text()[:, :9]
    options = {"do_sample": False, "max_new_tokens": 20, "attention_mask": torch.ones(start.shape, dtype=torch.long)}
    plain = theirs.generate(torch.from_numpy(start), **options).numpy()
    end = int(plain[0, 14])  # as if this were the token that ends a text
    stopped = theirs.generate(torch.from_numpy(start), **options, eos_token_id=end).numpy()

    model, variables = weights.load_llama(tmp_path)
    ours = [
        generate.sample(model, variables["params"], start, jax.random.key(0), length=20, temperature=0.0, stop=stop)
        for stop in ((), (end,))
    ]
    np.testing.assert_array_equal(ours[0], plain)
    length = stopped.shape[1]
    np.testing.assert_array_equal(np.where(stopped == 0, end, stopped), ours[1][:, :length])  # they pad with 0
    assert length < 29 or len(set(np.asarray(ours[1][0, 14:]).tolist())) == 1
    assert (np.asarray(ours[1][0, 14:]) == end).all()


def test_weights_of_16_bits_stay_so(tmp_path):
    theirs = published("llama, tied", tmp_path).bfloat16()
    theirs.save_pretrained(tmp_path)
    model, variables = weights.load_llama(tmp_path, param_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}
    model, variables = weights.load_llama(tmp_path)
    again = type(theirs).from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = again(torch.from_numpy(text())).logits.numpy()
    np.testing.assert_allclose(jax.jit(model.apply)(variables, text()), expected, rtol=1e-4, atol=1e-4)


TEMPLATE = """{% for message in messages %}
    {%- if loop.first and message.role != 'system' %}{{ bos_token }}You help.{{ '\\n' }}{% endif %}
    {{- '<|' + message['role'] + '|>' }}
    {%- if message.content is string %}{{ message.content | trim }}{% else %}{{ message.content | tojson }}{% endif %}
    {{- eos_token }}
    {%- if loop.index > 5 %}{% break %}{% endif %}
{% endfor %}
{%- if tools is not none %}tools{% endif %}
{% set ns = namespace(found=false) %}{% if add_generation_prompt %}<|assistant|>{% endif %}
"""


@pytest.mark.parametrize("own_file", [True, False])
def test_prompts_and_conversations_have_the_tokens_of_theirs(own_file, tmp_path):
    import transformers
    from tokenizers import AddedToken, processors

    bpe = tokens.train_bpe(["You help. What is a cat? A cat is a pet.\n"] * 3, 290).tokenizer
    bpe.encode_special_tokens = False
    bpe.add_special_tokens([AddedToken(name, special=True) for name in ("<|user|>", "<|assistant|>", "<|system|>")])
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, chat_template=TEMPLATE, bos_token="<s>", eos_token="</s>"
    )
    theirs.save_pretrained(tmp_path, save_jinja_files=own_file)
    assert (tmp_path / "chat_template.jinja").is_file() == own_file
    ours = tokens.load(tmp_path)
    ours.tokenizer.encode_special_tokens = False  # the first five names are those of `train_bpe`
    for said in ("What is a cat?", " a\n\nb <|user|> é", ""):
        assert ours.prompt(said).tolist() == theirs(said).input_ids
        messages = [{"role": "user", "content": said}, {"role": "assistant", "content": "a pet"}] * 4
        for talk in (messages[:1], messages[:3], messages, [{"role": "system", "content": "cat"}, *messages[:1]]):
            text = weights.chat_prompt(tmp_path, talk)
            assert text == theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
            expected = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
            assert ours.encode(text).tolist() == expected
    assert weights.end_tokens(tmp_path, ours) == (2,)
