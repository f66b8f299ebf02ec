"""Llama, Mistral, Qwen and llama2.c: real weights where they are, exact sizes, and one sentence for what is wrong."""

import dataclasses
import functools
import itertools
import json
import os
import re
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dlc import generate, tokens, weights
from dlc.errors import UserError
from dlc.layers.attention import Stretch
from dlc.models.gpt import GPT
from dlc.run.run import Run
from dlc.weights import files, huggingface
from experiments.attention import gpt

REAL = os.environ.get("DLC_TEST_DATA")
STORIES = Path(REAL or "nowhere", "stories260k")
needs_stories = pytest.mark.skipif(
    not STORIES.is_dir(), reason="DLC_TEST_DATA does not name a folder with the real stories260k"
)

# As published, without what says nothing of the computation
LLAMA_3_1 = {
    "model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    "rope_scaling": {
        "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "tie_word_embeddings": False, "pretraining_tp": 1, "torch_dtype": "bfloat16",
}  # fmt: skip
LLAMA_3_2_1B = LLAMA_3_1 | {
    "rope_scaling": LLAMA_3_1["rope_scaling"] | {"factor": 32.0}, "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 16, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip
MISTRAL_7B = {
    "model_type": "mistral", "vocab_size": 32000, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": 4096,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN_2_5 = {
    "model_type": "qwen2", "vocab_size": 151936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "sliding_window": 32768,
    "max_window_layers": 24, "use_sliding_window": False, "tie_word_embeddings": True,
}  # fmt: skip
QWEN_3 = {
    "model_type": "qwen3", "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000, "rope_scaling": None, "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "attention_bias": False, "sliding_window": None, "max_window_layers": 28, "use_sliding_window": False,
    "tie_word_embeddings": True,
}  # fmt: skip
TINY = {
    "vocab_size": 14, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip


def read(folder, config):
    """The model that a configuration describes, without weights."""
    (folder / "config.json").write_text(json.dumps(config))
    return GPT(huggingface._read_config(huggingface.LLAMAS[config["model_type"]], folder / "config.json"))


def shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), int))


@functools.cache
def tensors_of(kind, tied=True):
    """Random weights of a tiny model, by their published names."""
    form, rng = huggingface.LLAMAS[kind], np.random.default_rng(0)
    sizes = {ours: TINY[key] for ours, key in form.sizes.items() if key in TINY}
    config = form.config(**form.parts, **sizes, tied=tied, head_width=4)
    leaves, found = files.flat(shapes(GPT(config))["params"]), {}
    for row in form.rows(config):
        arrays = row.turn.theirs(rng.normal(size=leaves[row.ours].shape).astype(np.float32))
        found |= dict(zip(row.theirs, map(np.ascontiguousarray, arrays), strict=True))
    return {name if name.startswith("lm_head") else f"model.{name}": array for name, array in found.items()}


def publish(folder, kind="llama", change=lambda tensors: None, **configured):
    """A folder with a tiny model. A value of None in `configured` stays; one of ... removes the key."""
    tensors = dict(tensors_of(kind, configured.get("tie_word_embeddings", True) is not False))
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    config = {**TINY, "model_type": kind, "tie_word_embeddings": True, "head_dim": 4, **configured}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return folder


def refused(path, sentence, load=weights.load, **changes):
    with pytest.raises(UserError) as error:
        load(path, **changes)
    assert re.search(sentence, str(error.value)), error.value


# Sizes


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (LLAMA_3_2_1B, 1_235_814_400), (LLAMA_3_1, 8_030_261_248), (MISTRAL_7B, 7_241_732_096),
        (QWEN_2_5, 494_032_768), (QWEN_3, 596_049_920),
    ],
    ids=["Llama 3.2 1B", "Llama 3.1 8B", "Mistral 7B v0.1", "Qwen 2.5 0.5B", "Qwen 3 0.6B"],
)  # fmt: skip
def test_the_published_sizes_have_as_many_weights(config, count, tmp_path):
    model = read(tmp_path, config)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(model))) == count


def test_a_configuration_is_read_into_fields(tmp_path):
    c = read(tmp_path, LLAMA_3_2_1B).config
    assert (c.theta, c.stretch, c.tied, c.window, c.epsilon) == (500_000, Stretch(32, 1, 4, 8192), True, None, 1e-5)
    c = read(tmp_path, MISTRAL_7B).config
    assert (c.window, c.stretch, c.tied, c.qkv_bias, c.qk_norm) == (4096, None, False, None, False)
    assert read(tmp_path, {k: v for k, v in MISTRAL_7B.items() if k != "sliding_window"}).config.window == 4096
    c = read(tmp_path, QWEN_2_5).config
    assert (c.window, c.qkv_bias, c.theta) == (None, True, 1e6)
    c = read(tmp_path, QWEN_3).config
    assert (c.head_width, c.qk_norm, c.qk_epsilon) == (128, True, 1e-6)
    newer = {key: value for key, value in LLAMA_3_2_1B.items() if key not in ("rope_theta", "rope_scaling")}
    newer |= {"rope_parameters": LLAMA_3_2_1B["rope_scaling"] | {"rope_theta": 500_000.0}}
    assert read(tmp_path, newer) == read(tmp_path, LLAMA_3_2_1B)
    older = {key: value for key, value in LLAMA_3_2_1B.items() if not key.startswith("rope")}
    assert (read(tmp_path, older).config.theta, read(tmp_path, older).config.stretch) == (10_000, None)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", huggingface.LLAMAS)
def test_a_model_in_one_file_in_several_and_saved_as_ours(kind, tied, tmp_path):
    folder = publish(tmp_path, kind, tie_word_embeddings=tied, rope_scaling=LLAMA_3_1["rope_scaling"])
    model, variables = weights.load(folder)
    assert model.config.tied is tied
    names = sorted(tensors := load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    for i in range(3):
        save_file({name: tensors[name] for name in names[i::3]}, folder / f"part{i}.safetensors")
    where = {name: f"part{i % 3}.safetensors" for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    again, others = weights.load(folder, model)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, others, variables)
    weights.save(tmp_path / "ours.safetensors", model, variables)
    again, others = weights.load(tmp_path / "ours.safetensors")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, others, variables)


def test_names_that_older_files_have(tmp_path):
    def older(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)

    _, variables = weights.load(publish(tmp_path))
    _, others = weights.load(publish(tmp_path, change=older))
    jax.tree.map(np.testing.assert_array_equal, others, variables)


# Bad input: configurations, tensors, files


@pytest.mark.parametrize(
    ("kind", "configured", "sentence"),
    [
        ("llama", {"model_type": "gpt_neox"}, "describes a gpt_neox: only gpt2, llama, mistral, qwen2, qwen3, bert"),
        ("llama", {"model_type": "qwen2_moe"}, "describes a qwen2_moe: only"),
        ("llama", {"model_type": ["llama"]}, r"describes a \['llama'\]: only"),
        ("llama", {"hidden_size": ..., "vocab_size": ...}, r"config\.json lacks hidden_size, vocab_size$"),
        ("llama", {"num_hidden_layers": 10**9}, "tensors, too few for the 1000000000 layers it should have"),
        ("llama", {"num_hidden_layers": 3}, r"is not a complete Llama: it lacks layers\.2\."),
        ("llama", {"num_hidden_layers": 1}, r"has tensors that our Llama of 1 layers does not: layers\.1\."),
        ("llama", {"num_hidden_layers": 0}, "has num_hidden_layers = 0, but our Llama needs a whole number above 0"),
        ("llama", {"num_attention_heads": -4}, "has num_attention_heads = -4, but our Llama needs a whole number"),
        ("llama", {"num_attention_heads": True}, "has num_attention_heads = True, but our Llama needs a whole number"),
        ("llama", {"num_attention_heads": 3, "head_dim": None}, "3 heads do not divide a width of 16"),
        ("llama", {"num_key_value_heads": 3}, "do not fit together: 3 heads of keys and values do not divide 4 heads"),
        ("llama", {"num_key_value_heads": "2"}, "has num_key_value_heads = '2', but .* above 0, or null"),
        ("llama", {"num_key_value_heads": None}, r"k_proj\.weight .* has shape \(8, 16\), but .* expects \(16, 16\)"),
        ("llama", {"head_dim": 3}, "sizes that do not fit together: .* the width of a head must be even, not 3"),
        ("llama", {"head_dim": 0}, "has head_dim = 0, but our Llama needs a whole number above 0, or null"),
        ("llama", {"head_dim": 10**12}, "has no tensor as large as the head_dim of 1000000000000 that"),
        ("llama", {"hidden_size": 10**30}, "has no tensor as large as the hidden_size of 10{30} that it should have"),
        ("llama", {"vocab_size": 10**10}, "has no tensor as large as the vocab_size of 10000000000"),
        ("llama", {"max_position_embeddings": 0}, "has max_position_embeddings = 0, but our Llama needs"),
        ("llama", {"hidden_size": 16.0}, r"has hidden_size = 16\.0, but our Llama needs a whole number above 0"),
        ("llama", {"rms_norm_eps": 0}, "has rms_norm_eps = 0, but our Llama needs a number above 0"),
        ("llama", {"rms_norm_eps": 1e9}, "has rms_norm_eps = 1000000000.0, but our Llama needs a number above 0 and"),
        ("llama", {"rms_norm_eps": float("nan")}, "has rms_norm_eps = nan, but our Llama needs a number above 0"),
        ("llama", {"rms_norm_eps": "1e-5"}, "has rms_norm_eps = '1e-5', but our Llama needs a number above 0"),
        ("llama", {"rope_theta": -1}, "has rope_theta = -1, but our Llama needs a number above 1"),
        ("llama", {"rope_theta": float("inf")}, "has rope_theta = inf, but our Llama needs a number above 1"),
        ("llama", {"rope_theta": None}, "has rope_theta = None, but our Llama needs a number above 1"),
        ("llama", {"tie_word_embeddings": "yes"}, "has tie_word_embeddings = 'yes', but our Llama needs true or false"),
        ("llama", {"hidden_act": "gelu"}, "has hidden_act = 'gelu', but our Llama has 'silu'"),
        ("llama", {"attention_bias": True}, "has attention_bias = True, but our Llama has False"),
        ("llama", {"mlp_bias": True}, "has mlp_bias = True, but our Llama has False"),
        ("llama", {"is_causal": False}, "has is_causal = False, but our Llama has True"),
        ("llama", {"partial_rotary_factor": 0.5}, "has partial_rotary_factor = 0.5, but our Llama has 1.0"),
        ("llama", {"quantization_config": {"bits": 4}}, r"has quantization_config = {'bits': 4}, but"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'linear', .* only 'default' and"),
        ("llama", {"rope_scaling": {"rope_type": "yarn"}}, "has rope_type = 'yarn', but our Llama has only"),
        ("llama", {"rope_parameters": {"rope_type": ["x"]}}, r"has rope_type = \"\['x'\]\", but our Llama has only"),
        ("llama", {"rope_scaling": 8}, "has rope_scaling = 8, but our Llama needs an object, or null"),
        ("llama", {"rope_scaling": {"factor": 8.0}}, "has factor in rope_scaling, which .* not have for 'default'"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "has low_freq_factor = None, but it must be"),
        (
            "llama",
            {"rope_scaling": LLAMA_3_1["rope_scaling"] | {"factor": -8}},
            "has factor = -8, but it must be a number above 0",
        ),
        (
            "llama",
            {"rope_scaling": LLAMA_3_1["rope_scaling"] | {"low_freq_factor": 4}},
            "has a low_freq_factor of 4, not less than the high_freq_factor",
        ),
        ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, r"has layer_types = .*, but our Llama"),
        ("llama", {"layer_types": 2}, r"has layer_types = 2, but our Llama has 'full_attention' only"),
        ("mistral", {"sliding_window": 0}, "has sliding_window = 0, but our Mistral needs a whole number above 0, or"),
        ("mistral", {"sliding_window": [4]}, r"has sliding_window = \[4\], but our Mistral needs a whole number"),
        ("qwen2", {"use_sliding_window": True}, "has use_sliding_window = True, but our Qwen 2 has False"),
        ("qwen3", {"attention_bias": True}, "has attention_bias = True, but our Qwen 3 has False"),
        ("qwen3", {"head_dim": ...}, "has no tensor as large as the head_dim of 128"),  # the default of Qwen 3
        ("qwen3", {"model_type": "llama"}, r"our Llama of 2 layers does not: layers\.0\.self_attn\.k_norm"),
        ("qwen2", {"model_type": "mistral"}, r"our Mistral of 2 layers does not: layers\.0\.self_attn\.k_pr"),
        ("llama", {"model_type": "qwen2"}, r"not a complete Qwen 2: it lacks layers\.0\.self_attn\.k_proj\.bias"),
    ],
)  # fmt: skip
def test_a_configuration_that_means_something_else_is_named(kind, configured, sentence, tmp_path):
    refused(publish(tmp_path, kind, **configured), sentence)


def drop(*names):
    return lambda tensors: [tensors.pop(name) for name in names]


def put(**arrays):
    return lambda tensors: tensors.update({name.replace("__", "."): array for name, array in arrays.items()})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop("model.norm.weight"), r"is not a complete Llama: it lacks norm\.weight$"),
        (put(lm_head__weight=np.ones((14, 16), np.float32)), r"has a separate lm_head\.weight, but our Llama"),
        (put(score__weight=np.ones((2, 16), np.float32)), r"our Llama of 2 layers does not: .*score\.weight"),
        (
            put(model__layers__1__mlp__up_proj__weight=np.ones((16, 24), np.float32)),
            r"layers\.1\.mlp\.up_proj\.weight in .* has shape \(16, 24\), but the configuration expects \(24, 16\)",
        ),
        (put(model__norm__weight=np.ones(16, np.int8)), r"norm\.weight in .* is I8: only floats"),
        (drop("model.layers.0.self_attn.q_proj.weight"), r"it lacks layers\.0\.self_attn\.q_proj\.weight"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, sentence, tmp_path):
    refused(publish(tmp_path, change=change), sentence)


def test_files_that_are_not_there_or_of_another_kind_are_named(tmp_path):
    refused(tmp_path / "nowhere", r"nowhere does not exist: give a folder with model\.safetensors", weights.load_llama)
    refused(tmp_path, r"has no model\.safetensors: fetch it", weights.load_llama)
    refused(publish(tmp_path, tie_word_embeddings=False, change=drop("lm_head.weight")), r"it lacks lm_head\.weight")
    refused(publish(tmp_path), "Llama does not support norm = 'layer': only its own options", norm="layer")
    publish(tmp_path, model_type="gpt2")
    refused(tmp_path, "config.json describes a gpt2, not a Llama", weights.load_llama)
    whole = (publish(tmp_path) / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1])
    refused(tmp_path, "is not a safetensors file, or it is truncated: fetch it again")
    (tmp_path / "config.json").unlink()
    refused(tmp_path, r"config\.json does not exist: fetch it, because it says which model this is", weights.load_llama)


# llama2.c


@needs_stories
def test_the_real_weights_write_the_story_that_they_must(tmp_path, capsys):
    """464 bytes, with the cache; by the experiment, too."""
    story = (STORIES / "expected_greedy_200.txt").read_text()
    assert len(story.encode()) == 464
    model, variables = weights.load(STORIES / "stories260K.bin")
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 260_032
    tokenizer = tokens.load(STORIES)
    prompt = tokenizer.prompt("")[None]
    assert prompt.tolist() == [[1]]
    written = generate.sample(model, variables["params"], prompt, jax.random.key(0), length=200, temperature=0.0)
    assert tokenizer.decode(written[0]) == story
    begun = tokenizer.prompt("Once upon a time")
    np.testing.assert_array_equal(begun, written[0, : len(begun)])

    run = Run(tmp_path)
    run.weights = STORIES / "stories260K.bin"
    config = gpt.Config(prompt="Once upon a time", temperature=0.0, length=201 - len(begun))
    gpt.show(config, run, model, variables)
    assert capsys.readouterr().out.rstrip("\n") == story
    assert (tmp_path / "written.txt").read_text().strip() == story
    with pytest.raises(UserError, match=r"has no chat template, so .*: leave out --chat"):
        gpt.show(dataclasses.replace(config, chat=True), run, model, variables)


def test_what_is_being_trained_does_not_chat():
    with pytest.raises(UserError, match=r"^--chat asks a model that has learnt to answer: .* --weights FOLDER$"):
        gpt.train(gpt.Config(chat=True), Run())


def merged(text, pieces):
    """`encode` of run.c: letters, and then always the neighbours that make the piece with the highest score."""
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    found = [ids[b" "]] if text else []
    for letter in text:
        found += [ids[letter.encode()]] if letter.encode() in ids else [byte + 3 for byte in letter.encode()]
    while True:
        pairs = [(pieces[a][0] + pieces[b][0], i) for i, (a, b) in enumerate(itertools.pairwise(found))]
        known = [(-pieces[ids[piece]][1], i, ids[piece]) for piece, i in pairs if piece in ids]
        if not known:
            return found
        _, at, whole = min(known)
        found[at : at + 2] = [whole]


@needs_stories
def test_its_vocabulary_joins_neighbours_by_their_scores():
    content, pieces, at = (STORIES / "tok512.bin").read_bytes(), [], 4
    while at < len(content):
        score, length = struct.unpack_from("<fi", content, at)
        pieces.append((content[at + 8 : at + 8 + length], score))
        at += 8 + length
    tokenizer, rng = tokens.load(STORIES), np.random.default_rng(0)
    texts = ["", " ", "Once upon a time, Lily", "Héllo ™ wörld\n\n  two  spaces", "日本", "aaaa aaaaa"]
    texts += ["".join(rng.choice(list(" aehtsTwdonil.,'\né"), 40)) for _ in range(50)]
    for text in texts:
        assert tokenizer.encode(text).tolist() == merged(text, pieces), text
        assert tokenizer.decode(tokenizer.encode(text)) == text


SIZES2C = {"width": 8, "hidden": 12, "layers": 2, "heads": 2, "kv_heads": 1, "vocab": 14, "context": 16}


def llama2c(**changes):
    """A file of llama2.c with random weights; `changes` are of the sizes that it claims to have."""
    D, F, L, N, K, V, C = SIZES2C.values()
    tied = changes.get("vocab", V) > 0
    count = (1 + (not tied)) * V * D + L * (2 * D + 2 * D * D + 2 * D * D * K // N + 3 * D * F) + D + C * D // N
    numbers = np.random.default_rng(0).normal(size=count).astype("<f4")
    return struct.pack("<7i", *(SIZES2C | changes).values()) + numbers.tobytes()


def test_a_head_of_its_own_and_pairs_of_features_in_llama2c(tmp_path):
    (tmp_path / "model.bin").write_bytes(content := llama2c(vocab=-14))
    model, variables = weights.load(tmp_path / "model.bin", dtype="bfloat16")
    assert (model.config.tied, model.config.vocab, model.config.dtype) == (False, 14, "bfloat16")
    assert weights.load(tmp_path / "model.bin", model, dtype="bfloat16")[0] == model
    with pytest.raises(UserError, match=r"has config\.width = 8, but the given model has config\.width = 9"):
        weights.load(tmp_path / "model.bin", GPT(dataclasses.replace(model.config, width=9)), dtype="bfloat16")
    numbers = np.frombuffer(content[28:], "<f4")
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"].T, numbers[-14 * 8 :].reshape(14, 8))
    query = numbers[14 * 8 + 2 * 8 :][: 2 * 8 * 8].reshape(2, 8, 8)
    ours = variables["params"]["block1"]["attention"]["query_key_value"]["kernel"].T[:8]
    np.testing.assert_array_equal(ours, query[1][[0, 2, 1, 3, 4, 6, 5, 7]])  # two heads of width 4


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (llama2c()[:-1], r"model\.bin has [\d,]+ bytes, but its sizes need [\d,]+: fetch it again"),
        (llama2c() + b"more", "bytes, but its sizes need"),
        (llama2c()[:28], "has 28 bytes, but its sizes need"),
        (llama2c()[:20], "is not a model of llama2.c, or it is truncated: fetch it again"),
        (b"", "is not a model of llama2.c, or it is truncated"),
        (llama2c(layers=2**23), "bytes, but its sizes need"),
        (llama2c(context=2**23), "bytes, but its sizes need"),
        (llama2c(heads=3), "or it is damaged: it begins with the sizes width 8, hidden 12, layers 2, heads 3"),
        (llama2c(heads=8), "or it is damaged"),  # of width 1, which cannot be rotated
        (llama2c(kv_heads=4), "or it is damaged"),
        (llama2c(hidden=-12), "or it is damaged"),
        (llama2c(width=0), "or it is damaged"),
        (llama2c(vocab=0), "or it is damaged"),
        (llama2c(layers=2**30), "or it is damaged"),
        (struct.pack("<2I", 0x616B3432, 1) + llama2c()[8:], "has a later format of llama2.c: .* with --version 0"),
        (b"PK\x03\x04" + bytes(200), "or it is damaged"),
        (b"\x80\x02}q\x00" + bytes(200), "or it is damaged"),
    ],
)
def test_files_that_llama2c_did_not_write_are_named(content, sentence, tmp_path):
    (tmp_path / "model.bin").write_bytes(content)
    refused(tmp_path / "model.bin", sentence, weights.load_llama2c)
    with pytest.raises(UserError):
        weights.load(tmp_path / "model.bin")


def test_a_file_of_llama2c_that_is_not_there_is_named(tmp_path):
    refused(tmp_path / "model.bin", "cannot be read: No such file or directory", weights.load_llama2c)
    refused(tmp_path, "cannot be read: Is a directory", weights.load_llama2c)


def vocabulary(*pieces, first=("<unk>", "\n<s>\n", "\n</s>\n")):
    """The content of a tok*.bin: three special pieces, 256 bytes, and these pieces, each worth less than the last."""
    every = [*first, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    coded = [(piece if isinstance(piece, bytes) else piece.encode()) for piece in every]
    entries = (struct.pack("<fi", -i, len(piece)) + piece for i, piece in enumerate(coded))
    return struct.pack("<i", max(map(len, coded))) + b"".join(entries)


def test_a_vocabulary_of_llama2c_without_the_real_one(tmp_path):
    (tmp_path / "tok264.bin").write_bytes(vocabulary("ab", " a", "a", "b", " "))
    tokenizer = tokens.load(tmp_path)
    assert tokenizer.prompt("ab").tolist() == [1, 263, 259]  # "ab" before " a"
    assert tokenizer.encode("aé").tolist() == [260, 0xC3 + 3, 0xA9 + 3]
    assert tokenizer.decode([1, 260, 0xC3 + 3, 0xA9 + 3, 2]) == "aé"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (vocabulary("ab")[:-1], "cannot be read: piece 259 is damaged; fetch it again"),
        (vocabulary("ab")[:-9], "cannot be read: .*; fetch it again"),
        (vocabulary("ab", "ab"), "cannot be read: piece 260 is damaged"),
        (vocabulary("ab", ""), "cannot be read: piece 260 is damaged"),
        (vocabulary(b"\xff"), "cannot be read: .*; fetch it again"),
        (vocabulary(first=("a", "b", "c")), "it does not begin with <unk>, <s>, </s> and 256 bytes"),
        (b"", "it does not begin with <unk>"),
        (b"PK\x03\x04" + bytes(100), "cannot be read: piece 0 is damaged"),
        (llama2c(), "cannot be read"),
    ],
)
def test_damaged_vocabularies_of_llama2c_are_named(content, sentence, tmp_path):
    (tmp_path / "tokenizer.bin").write_bytes(content)
    refused(tmp_path, sentence, tokens.load)


# Chat

WORDS = ["<unk>", "<s>", "</s>", "<|user|>", "<|model|>", "what", "is", "a", "cat", "?", "dog", "not", "the", "an"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}<|user|> {{ message['content'] }}"
    "{% else %}{{ raise_exception('only users speak') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <|model|>{% endif %}"
)


def with_words(folder, **settings):
    """Adds a tokenizer and its settings to a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(WORDS[:5])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"chat_template": TEMPLATE, "bos_token": "<s>", "eos_token": {"content": "</s>"}, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_conversation_is_written_as_the_template_says_and_ends_where_the_model_ends_it(tmp_path, capsys):
    folder = with_words(publish(tmp_path))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [11, 2]}))
    tokenizer = tokens.load(folder)
    assert tokenizer.prompt("what is").tolist() == [1, 5, 6]
    assert weights.end_tokens(folder, tokenizer) == (11, 2)
    asked = weights.chat_prompt(folder, [{"role": "user", "content": "what is a cat ?"}])
    assert asked == "<s><|user|> what is a cat ? <|model|>"
    assert tokenizer.encode(asked).tolist() == [1, 3, 5, 6, 7, 8, 9, 4]

    model, variables = weights.load(folder)
    options = {"length": 20, "temperature": 2.0}
    for seed in range(20):  # until a model that knows nothing says something
        key = jax.random.key(seed)
        plain = generate.sample(model, variables["params"], tokenizer.encode(asked)[None], key, **options)[
            0, 8:
        ].tolist()
        end = min((plain.index(stop) for stop in (11, 2) if stop in plain), default=20)
        if len(expected := tokenizer.decode(plain[: end + 1])) > 5 and end < 19:
            break
    run = Run(tmp_path / "run")
    run.weights = folder
    gpt.show(gpt.Config(prompt="what is a cat ?", chat=True, seed=seed, **options), run, model, variables)
    assert capsys.readouterr().out == f"what is a cat ?\n\n{expected}\n\n"


@pytest.mark.parametrize("template", [[{"name": "tools", "template": "x"}, {"name": "default", "template": TEMPLATE}]])
def test_a_template_may_be_one_of_several_or_a_file_of_its_own(template, tmp_path):
    said = [{"role": "user", "content": "a cat"}]
    assert weights.chat_prompt(with_words(tmp_path, chat_template=template), said) == "<s><|user|> a cat <|model|>"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content | tojson }}{{ strftime_now('%%') }}")
    assert weights.chat_prompt(tmp_path, said) == '"a cat"%'


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "has no chat template, so its model has not learnt to answer: leave out --chat"),
        (3, "has chat_template = 3, but it must be a text"),
        ([], r"has chat_template = \[\], but it must be a text"),
        ([{"name": "tools", "template": "x"}], "has chat_template = .* but it must be a text"),
        ({"default": "x"}, "has chat_template = {'default': 'x'}, but it must be a text"),
        ("{% for %}", "does not work: Expected an expression.*; fetch it again, or do without"),
        ("{% if x %}", "does not work: Unexpected end of template"),
        ("{{ nothing.at.all }}", "does not work: 'nothing' is undefined"),
        ("{{ raise_exception('no users here') }}", "does not work: no users here"),
        ("{{ messages.append(3) }}", "does not work: .*unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "does not work: access to attribute '__class__'"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "does not work: Range too big"),
        ("{{ 1 / 0 }}", "does not work: division by zero"),
        ("{% include 'x' %}", "does not work: no loader"),
    ],
)
def test_a_template_that_does_not_work_is_named(template, sentence, tmp_path):
    with_words(tmp_path, chat_template=template)
    with pytest.raises(UserError, match=sentence):
        weights.chat_prompt(tmp_path, [{"role": "user", "content": "a cat"}])


@pytest.mark.parametrize("wrong", [-1, 14, 2.0, "2", [2, None], {"a": 1}, True])
def test_tokens_that_end_a_text_are_in_the_vocabulary(wrong, tmp_path):
    tokenizer = tokens.load(with_words(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": wrong}))
    with pytest.raises(UserError, match=r"has eos_token_id = .*, which is not in the vocabulary of 14 tokens"):
        weights.end_tokens(tmp_path, tokenizer)


def test_a_folder_without_a_tokenizer_or_with_that_of_another_model_is_named(tmp_path):
    run = Run()
    run.weights = publish(tmp_path, vocab_size=14)
    with pytest.raises(UserError, match="there is no vocabulary in"):
        gpt.show(gpt.Config(), run, *weights.load(tmp_path))
    with_words(tmp_path)
    small = GPT(dataclasses.replace(weights.load(tmp_path)[0].config, vocab=13))
    with pytest.raises(UserError, match="has 14 tokens and the model 13: they do not belong together"):
        gpt.show(gpt.Config(), run, small, {})
    with_words(tmp_path, eos_token="<|end|>")
    with pytest.raises(UserError, match=r"the vocabulary of 14 has no token '<\|end\|>'"):
        gpt.show(gpt.Config(), run, *weights.load(tmp_path))
