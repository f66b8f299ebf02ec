"""Hugging Face's weights: saved and loaded again, and the errors for files that are not what they should be."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dlc import weights
from dlc.errors import UserError
from dlc.models import gpt
from dlc.models.bert import Bert, BertConfig, BertMaskedLM
from dlc.models.gpt import GPT, GPTConfig
from dlc.models.vit import ViT, ViTConfig
from dlc.weights import huggingface

BERT = BertConfig(vocab=40, context=12, layers=2, heads=2, width=16, hidden=24)
MODELS = {
    "gpt2": (GPT(GPTConfig(vocab=40, context=12, layers=2, heads=2, width=16)), weights.load_gpt2, weights.save_gpt2),
    "bert": (Bert(BERT), weights.load_bert, weights.save_bert),
    "bert masked lm": (BertMaskedLM(BERT), weights.load_bert_masked_lm, weights.save_bert),
    "vit": (
        ViT(ViTConfig(image=12, patch=4, classes=10, layers=2, heads=2, width=16, dropout=0.0)),
        weights.load_vit,
        weights.save_vit,
    ),
}
every = pytest.mark.parametrize(("model", "load", "save"), MODELS.values(), ids=MODELS)


def random_params(model):
    """Random weights, no two of them the same, made without compiling anything."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes(model))


@functools.cache
def shapes(model):
    inputs = jnp.zeros((1, 12, 12, 3)) if isinstance(model, ViT) else jnp.zeros((1, 12), int)
    return jax.eval_shape(model.init, jax.random.key(0), inputs)["params"]


@pytest.fixture
def published(tmp_path):
    """A folder with a GPT-2."""
    model, _, save = MODELS["gpt2"]
    save(tmp_path / "gpt2", model, random_params(model))
    return tmp_path / "gpt2"


def rewrite(folder, change=lambda tensors: None, **configured):
    """Changes the files in a folder. A value of None removes a key from the configuration."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors")
    known = json.loads((folder / "config.json").read_text()) | configured
    (folder / "config.json").write_text(json.dumps({key: value for key, value in known.items() if value is not None}))


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@every
def test_there_and_back_again(model, load, save, tmp_path):
    params = random_params(model)
    save(tmp_path / "new" / "folder", model, params)
    found, variables = load(tmp_path / "new" / "folder")
    assert_same(variables["params"], params)
    assert isinstance(jax.tree.leaves(variables)[0], jax.Array)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert type(found) is type(model)
    # Our `hidden` may depend on the width; theirs is a number.
    assert found.config == dataclasses.replace(model.config, hidden=model.config.hidden or 64)
    written = {path.name: path.stat().st_mode for path in (tmp_path / "new" / "folder").iterdir()}
    assert sorted(written) == ["config.json", "model.safetensors"]
    assert len(set(written.values())) == 1


@every
def test_a_file_alone_needs_a_configuration(model, load, save, tmp_path):
    save(tmp_path, model, random_params(model))
    (tmp_path / "config.json").unlink()
    found, variables = load(tmp_path / "model.safetensors", model.config, dtype="bfloat16")
    assert_same(variables["params"], random_params(model))
    assert found.config.dtype == "bfloat16"
    with pytest.raises(ValueError, match=f"config.json does not exist.* with config={type(model.config).__name__}"):
        load(tmp_path / "model.safetensors")


def test_the_layouts_are_those_of_pytorch(tmp_path):
    """Dense kernels are transposed, the patch layer is a convolution, and the order is query, key, value."""
    model, _, save = MODELS["vit"]
    params = random_params(model)
    save(tmp_path, model, params)
    written = load_file(tmp_path / "model.safetensors")
    block, query = params["block1"], "vit.encoder.layer.1.attention.attention.query"
    np.testing.assert_array_equal(written["vit.encoder.layer.1.output.dense.weight"], block["down"]["kernel"].T)
    joined = block["attention"]["query_key_value"]
    for i, name in enumerate(("query", "key", "value")):
        part = slice(16 * i, 16 * i + 16)
        np.testing.assert_array_equal(written[f"{query[:-5]}{name}.weight"], joined["kernel"][:, part].T)
        np.testing.assert_array_equal(written[f"{query[:-5]}{name}.bias"], joined["bias"][part])
    kernel = np.asarray(params["patch"]["kernel"]).reshape(4, 4, 3, 16)
    np.testing.assert_array_equal(
        written["vit.embeddings.patch_embeddings.projection.weight"], kernel.transpose(3, 2, 0, 1)
    )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_become_what_the_model_keeps(published, dtype):
    model, load, save = MODELS["gpt2"]
    rewrite(published, lambda tensors: tensors.update({k: v.astype(dtype) for k, v in tensors.items()}))
    _, variables = load(published)
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype).astype(np.float32), random_params(model))
    assert_same(variables["params"], rounded)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    half, variables = load(published, param_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}
    save(published, half, variables["params"])
    assert_same(load(published, param_dtype="bfloat16")[1], variables)


def test_a_model_in_several_files(published):
    tensors = load_file(published / "model.safetensors")
    (published / "model.safetensors").unlink()
    names, where = sorted(tensors), {}
    for i in range(3):
        part = f"model-{i + 1:05d}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[i::3]}, published / part)
        where |= dict.fromkeys(names[i::3], part)
    (published / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert_same(weights.load_gpt2(published)[1]["params"], random_params(MODELS["gpt2"][0]))
    (published / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lists model-00002-of-00003\.safetensors, not in the folder"):
        weights.load_gpt2(published)


def test_names_that_were_used_before(published, tmp_path):
    """Names without a prefix, buffers that are not weights, tied weights that are written twice, gamma and beta."""

    def older(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors |= {"h.0.attn.bias": np.ones((1, 1, 12, 12)), "h.1.attn.masked_bias": np.float32([-1e4])}
        tensors["lm_head.weight"] = tensors["wte.weight"]

    rewrite(published, older)
    assert_same(weights.load_gpt2(published)[1]["params"], random_params(MODELS["gpt2"][0]))

    def pretraining(tensors):
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
        tensors["bert.embeddings.position_ids"] = np.arange(12)[None]
        tensors["cls.seq_relationship.weight"] = np.ones((2, 16), np.float32)
        tensors["bert.pooler.dense.weight"] = np.eye(16, dtype=np.float32)
        tensors["bert.pooler.dense.bias"] = np.arange(16, dtype=np.float32)

    model, load, save = MODELS["bert masked lm"]
    save(tmp_path / "bert", model, random_params(model))
    rewrite(tmp_path / "bert", pretraining)
    assert_same(load(tmp_path / "bert")[1]["params"], random_params(model))
    encoder = weights.load_bert(tmp_path / "bert")[1]["params"]
    np.testing.assert_array_equal(encoder["pooler"]["bias"], np.arange(16))
    np.testing.assert_array_equal(encoder["token"]["embedding"], random_params(model)["token"]["embedding"])


def test_timms_names_of_a_vit(tmp_path):
    model, load, _ = MODELS["vit"]
    params, tensors = random_params(model), {}
    for row in huggingface.VIT_TIMM.rows(model.config):
        leaf = params
        for key in row.ours.split("/"):
            leaf = leaf[key]
        tensors |= dict(zip(row.theirs, row.turn.theirs(np.asarray(leaf)), strict=True))
    assert tensors["blocks.0.attn.qkv.weight"].shape == (48, 16)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / "timm.safetensors")
    assert_same(load(tmp_path / "timm.safetensors", model.config)[1]["params"], params)


# Errors, one sentence each


def drop(*names):
    return lambda tensors: [tensors.pop(name) for name in names]


def put(**arrays):
    return lambda tensors: tensors.update({name.replace("__", "."): array for name, array in arrays.items()})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop("transformer.h.1.ln_2.bias"), r"gpt2 is not a complete GPT-2: it lacks h\.1\.ln_2\.bias$"),
        (drop(*(f"transformer.h.1.{n}.bias" for n in ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj"))), "and 1 more"),
        (put(h__2__extra=np.ones(3)), r"has tensors that our GPT-2 of 2 layers does not: h\.2\.extra$"),
        (
            put(transformer__wte__weight=np.ones((41, 16), np.float32)),
            r"wte\.weight in .* has shape \(41, 16\), but the configuration expects \(40, 16\)",
        ),
        (
            put(transformer__h__0__mlp__c_fc__weight=np.ones((64, 16), np.float32)),
            r"h\.0\.mlp\.c_fc\.weight in .* has shape \(64, 16\), but the configuration expects \(16, 64\)",
        ),
        (
            put(transformer__ln_f__weight=np.ones(16, np.int8)),
            r"ln_f\.weight in .* is I8: only floats of 16, 32 or 64 bits",
        ),
        (
            put(lm_head__weight=np.ones((40, 16), np.float32)),
            r"has a separate lm_head\.weight, .* shares it with wte\.weight",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(published, change, sentence):
    rewrite(published, change)
    with pytest.raises(UserError, match=sentence):
        weights.load_gpt2(published)


@pytest.mark.parametrize(
    ("configured", "sentence"),
    [
        ({"model_type": "llama"}, r"config\.json describes a llama, not a GPT-2"),
        ({"model_type": None}, r"config\.json describes a model without a type, not a GPT-2"),
        ({"activation_function": "relu"}, r"has activation_function = 'relu', but our GPT-2 has 'gelu_new'"),
        ({"n_layer": None, "n_head": None}, r"config\.json lacks n_head, n_layer"),
        ({"n_layer": 3}, r"is not a complete GPT-2: it lacks h\.2\.attn\.c_attn\.bias, .* more"),
        ({"n_layer": 10**9}, r"has \d+ tensors, too few for the 1000000000 layers it should have"),
        ({"n_layer": 1}, r"has tensors that our GPT-2 of 1 layers does not: h\.1\.attn"),
        ({"n_head": 3}, "3 heads do not divide a width of 16"),
        ({"n_layer": "2"}, r"has n_layer = '2', but our GPT-2 needs a whole number above 0"),
        ({"n_layer": 2.0}, r"has n_layer = 2\.0, but our GPT-2 needs a whole number above 0"),
        ({"n_layer": True}, r"has n_layer = True, but our GPT-2 needs a whole number above 0"),
        ({"vocab_size": 0}, r"has vocab_size = 0, but our GPT-2 needs a whole number above 0"),
        ({"n_embd": [16]}, r"has n_embd = \[16\], but our GPT-2 needs a whole number above 0"),
        ({"n_positions": {"a": 12}}, r"has n_positions = {'a': 12}, but our GPT-2 needs a whole number above 0"),
        ({"n_inner": "64"}, "has n_inner = '64', but our GPT-2 needs a whole number above 0, or null"),
        ({"resid_pdrop": "0.1"}, "has resid_pdrop = '0.1', but our GPT-2 needs a number from 0 to less than 1"),
        ({"resid_pdrop": 1}, "has resid_pdrop = 1, but our GPT-2 needs a number from 0 to less than 1"),
        ({"tie_word_embeddings": False}, "has tie_word_embeddings = False, but our GPT-2 has True"),
        (
            {"scale_attn_by_inverse_layer_idx": True},
            "has scale_attn_by_inverse_layer_idx = True, but our GPT-2 has Fal",
        ),
        ({"quantization_config": {"bits": 4}}, r"has quantization_config = {'bits': 4}, but our GPT-2 has None"),
        ({"pruned_heads": {"0": [1]}}, r"has pruned_heads = {'0': \[1\]}, but our GPT-2 has {}"),
        ({"model_type": ["gpt2"]}, r"describes a \['gpt2'\], not a GPT-2"),
    ],
)
def test_a_configuration_that_means_something_else_is_named(published, configured, sentence):
    rewrite(published, **configured)
    with pytest.raises(UserError, match=sentence):
        weights.load_gpt2(published)


@pytest.mark.parametrize(
    ("name", "configured", "sentence"),
    [
        ("vit", {"image_size": [12, 12], "patch_size": [4, 4]}, None),
        ("vit", {"num_labels": None, "id2label": {str(i): "" for i in range(10)}}, None),
        (
            "vit",
            {"image_size": [12, 8]},
            r"has image_size = \[12, 8\], but our ViT needs one whole number .*, or two equal",
        ),
        ("vit", {"image_size": [12, 12, 12]}, "needs one whole number above 0, or two equal ones"),
        ("vit", {"image_size": []}, "needs one whole number above 0, or two equal ones"),
        ("vit", {"patch_size": "4"}, "has patch_size = '4'"),
        ("vit", {"layer_norm_eps": "1e-6"}, "has layer_norm_eps = '1e-6', but our ViT needs a number above 0"),
        (
            "vit",
            {"num_labels": None, "id2label": ["a"]},
            r"has shape \(10, 16\), but the configuration expects \(2, 16\)",
        ),
        ("vit", {"hidden_act": "gelu_new"}, "has hidden_act = 'gelu_new', but our ViT has 'gelu'"),
        ("bert", {"position_embedding_type": "relative_key"}, "has position_embedding_type = 'relative_key'"),
        ("bert", {"is_decoder": True}, "has is_decoder = True"),
        ("bert", {"tie_word_embeddings": False}, None),
        ("bert masked lm", {"tie_word_embeddings": False}, "has tie_word_embeddings = False"),
        ("bert", {"intermediate_size": [24]}, r"has intermediate_size = \[24\]"),
        ("bert", {"model_type": "clip", "text_config": {"model_type": "bert"}}, "describes a clip, not a BERT"),
    ],
)
def test_configurations_that_hugging_face_allows_are_read_or_named(name, configured, sentence, tmp_path):
    model, load, save = MODELS[name]
    save(tmp_path, model, random_params(model))
    rewrite(tmp_path, **configured)
    if sentence is None:
        assert_same(load(tmp_path)[1]["params"], random_params(model))
    else:
        with pytest.raises(UserError, match=sentence):
            load(tmp_path)


def test_a_given_configuration_does_not_hide_another_computation(published):
    rewrite(published, activation_function="relu")
    with pytest.raises(UserError, match="has activation_function = 'relu', but our GPT-2 has 'gelu_new'"):
        weights.load(published, MODELS["gpt2"][0])


def test_an_index_that_is_not_one_is_named(published):
    (published / "model.safetensors").unlink()
    for listed in ([], {"wte.weight": 3}, None):
        (published / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
        with pytest.raises(UserError, match=r"index\.json does not say in which file each weight is: fetch it again"):
            weights.load_gpt2(published)


def test_names_that_wrappers_leave_and_parts_with_names_that_look_like_them(tmp_path):
    """A part whose names all begin with "encoder" is no wrapped model."""
    model, load, save = MODELS["bert"]
    save(tmp_path, model, random_params(model))
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    bare = {f"module.{name.removeprefix('bert.')}": array for name, array in tensors.items()}
    where = {name: f"{'encoder' if 'encoder' in name else 'rest'}.safetensors" for name in bare}
    for part in set(where.values()):
        save_file({name: bare[name] for name in bare if where[name] == part}, tmp_path / part)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert_same(load(tmp_path)[1]["params"], random_params(model))


def test_timms_configuration_of_a_vit_is_checked(tmp_path):
    model, load, save = MODELS["vit"]
    save(tmp_path, model, random_params(model))
    tensors = {}
    for row in huggingface.VIT_TIMM.rows(model.config):
        leaf = functools.reduce(lambda tree, key: tree[key], row.ours.split("/"), random_params(model))
        tensors |= dict(zip(row.theirs, row.turn.theirs(np.asarray(leaf)), strict=True))
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / "model.safetensors")
    for name, fits in {
        "vit_tiny_patch4_12.augreg": True,
        "deit_tiny_patch4_12": True,
        "vit_clip_patch4_12": False,
    }.items():
        (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))
        if fits:
            assert_same(load(tmp_path, model.config)[1]["params"], random_params(model))
        else:
            with pytest.raises(
                UserError, match="says that the weights are for vit_clip_patch4_12, not for a ViT of pat"
            ):
                load(tmp_path, model.config)


def test_options_that_gpt2_does_not_have_are_named(published):
    with pytest.raises(UserError, match="GPT-2 does not support norm = 'rms': only its own options"):
        weights.load_gpt2(published, norm="rms")


def test_other_files_are_named(published):
    path, whole = published / "model.safetensors", (published / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"nowhere does not exist: give a folder with model\.safetensors"):
        weights.load_gpt2(published / "nowhere")
    for content in (whole[:-1], whole[:100], b"", b"PK\x03\x04 and so on", whole + b"more"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not a safetensors file, or it is truncated: fetch it again"):
            weights.load_gpt2(published)
    path.write_bytes(whole)
    for content in ("{", "[]"):
        (published / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"is not (valid JSON|a JSON object): fetch it again"):
            weights.load_gpt2(published)
    (published / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json does not exist: fetch it"):
        weights.load_gpt2(published)
    path.unlink()
    with pytest.raises(UserError, match=r"gpt2 has no model\.safetensors: fetch it"):
        weights.load_gpt2(published)
    (published / "pytorch_model.bin").touch()
    for pickle in (published, published / "pytorch_model.bin"):
        with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle, .*: save the model again with `save"):
            weights.load_gpt2(pickle)


def test_what_cannot_be_written_is_named(tmp_path):
    model, _, save = MODELS["gpt2"]
    params = random_params(model)
    today = gpt.modern(vocab=40, context=12, layers=1, heads=2, width=16)
    with pytest.raises(
        UserError, match="GPT-2 does not support kv_heads = 1: only its own options can be read or writ"
    ):
        save(tmp_path / "new", today, random_params(today))
    with pytest.raises(UserError, match=r"do not belong to the model: block1/attention/out/bias, .* and \d+ more"):
        save(tmp_path / "new", model, {key: value for key, value in params.items() if key != "block1"})
    with pytest.raises(UserError, match=r"norm/bias has shape \(3,\), but the model expects \(16,\)"):
        save(tmp_path / "new", model, {**params, "norm": {**params["norm"], "bias": jnp.ones(3)}})
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file: give the path of a folder"):
        save(tmp_path / "file", model, params)
