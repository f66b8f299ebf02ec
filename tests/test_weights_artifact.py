"""What a run leaves is saved and loaded to the bit; one `load` reads all sources; training begins from weights."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.core import freeze
from safetensors.numpy import load_file, save_file

from dlc import weights
from dlc.errors import UserError
from dlc.files import unsealed
from dlc.models.bert import Bert, BertConfig, BertMaskedLM
from dlc.models.densenet import DenseNet
from dlc.models.gpt import GPT, GPTConfig
from dlc.models.lenet import LeNet5Dense
from dlc.models.mlp import MLP
from dlc.models.resnet import resnet18
from dlc.models.vit import ViT, ViTConfig
from dlc.weights import artifact, files

MODEL = MLP((4,), num_classes=3)
BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64, 1: np.uint8}


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def everything():
    """Variables with every dtype and shape that can be awkward, as NumPy arrays."""
    bits = np.arange(2**16, dtype=np.uint16)
    return {
        "params": {
            "all float16": {"kernel": bits.view(np.float16).reshape(256, 256)},
            "all bfloat16": {"kernel": bits.view(ml_dtypes.bfloat16)},
            "float32": {
                "kernel": np.float32([0.1, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38]),
                "none": normal(0, 3),
            },
            "strided": {"kernel": normal(4, 6).T[::2], "é": normal(1)},
        },
        "batch_stats": {"norm": {"mean": normal(3, seed=1), "count": np.int32(7)}},
        "counts": {"steps": np.arange(5, dtype=np.uint32), "small": np.int8([-1]), "mask": np.array([True, False])},
    }


def assert_same_bits(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for mine, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        mine, theirs = np.array(mine), np.array(theirs)
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        kind = BITS[mine.dtype.itemsize]
        np.testing.assert_array_equal(mine.reshape(-1).view(kind), theirs.reshape(-1).view(kind))


@pytest.fixture
def saved(tmp_path):
    """A run's folder with a small network."""
    weights.save(tmp_path, MODEL, small())
    return tmp_path / "weights.safetensors"


def small(model=MODEL):
    """Random variables of a network for images of 2x3."""
    return initial(model, jnp.zeros((1, 2, 3)))


def initial(model, x):
    """Random variables, made without compiling anything."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: jnp.asarray(normal(*leaf.shape), leaf.dtype), shapes)


# Saving and loading


def test_variables_come_back_to_the_bit(tmp_path):
    variables = everything()
    weights.save(tmp_path, MODEL, freeze(variables))
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
    assert os.stat(tmp_path / "weights.safetensors").st_mode & 0o777 == 0o644
    for path in (tmp_path, str(tmp_path / "weights.safetensors")):
        model, found = weights.load(path)
        assert model == MODEL
        assert_same_bits(found, variables)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))


def test_other_readers_see_the_names_and_numbers(saved):
    found = load_file(saved)
    assert sorted(found) == [f"params/{layer}/{leaf}" for layer in ("dense1", "dense2") for leaf in ("bias", "kernel")]
    np.testing.assert_array_equal(found["params/dense1/kernel"], small()["params"]["dense1"]["kernel"])
    assert json.loads(files.metadata(saved)["dlc"])["model"] == weights.describe(MODEL)


def test_arrays_on_several_devices_are_saved_whole(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    variables = {"params": {"kernel": jax.device_put(normal(16, 3), split)}}
    weights.save(tmp_path / "mine.safetensors", MODEL, variables)
    assert_same_bits(weights.load(tmp_path / "mine.safetensors")[1], variables)


PROGRAM = """
import sys
import flax.linen as nn
from dlc import weights
from dlc.errors import UserError
from dlc.files import unsealed

class Net(nn.Module):
    width: int

if __name__ == "__main__":
    folder = sys.argv[1]
    model, variables = weights.load(folder)
    print(type(model).__module__, model.hidden, variables["params"]["dense1"]["kernel"].shape)
    try:
        weights.load(f"{folder}/mine.safetensors")
    except UserError as error:
        print(error)
    weights.save(f"{folder}/theirs.safetensors", Net(5), variables)
    print(weights.load(f"{folder}/theirs.safetensors")[0] == Net(5))
"""


def test_another_program_with_a_model_of_its_own(saved, tmp_path, monkeypatch):
    """It has imported no model, refuses a class that it does not know, and its own is `program.Net` everywhere."""
    weights.save(tmp_path / "mine.safetensors", Mine(3), small())
    (tmp_path / "program.py").write_text(PROGRAM)
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(tmp_path)])
    command, given = [sys.executable, "-m", "program", tmp_path], os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=given, check=True)
    assert done.stdout.splitlines() == [
        "dlc.models.mlp (4,) (6, 4)",
        f"the model needs {__name__}.Mine: import {__name__} first, if you trust it",
        "True",
    ]
    with pytest.raises(UserError, match=r"the model needs program\.Net: import program first"):
        weights.load(tmp_path / "theirs.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    program = importlib.import_module("program")
    assert weights.load(tmp_path / "theirs.safetensors")[0] == program.Net(5)
    del sys.modules["program"]


class Mine(nn.Module):
    width: int


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"params": {"a/b": np.ones(2)}}, r"keys are names without slashes, not \['params'\]\['a/b'\]"),
        ({"params": [np.ones(2)]}, r"variables must be nested dicts .* not \['params'\]\[0\]"),
        (
            {"params": {"key": jax.random.key(0)}},
            r"params/key is of type key<fry>, which a file of weights cannot hold",
        ),
        ({"params": {"name": "three"}}, "params/name is of type str, which"),
        ({"params": {"four": jnp.zeros(3, "int4")}}, "params/four is of type int4, which"),
    ],
)
def test_variables_that_cannot_be_saved_are_named(tmp_path, variables, sentence):
    with pytest.raises(UserError, match=sentence):
        artifact.save(tmp_path / "new.safetensors", MODEL, variables)
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_whole_or_not_at_all(saved, monkeypatch):
    before = saved.read_bytes()

    def full(tensors, path, header):
        path.write_bytes(b"half")
        raise files.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        weights.save(saved, MODEL, small())
    assert saved.read_bytes() == before
    assert len(list(saved.parent.iterdir())) == 1
    with pytest.raises(UserError, match=r"the folder .*nowhere does not exist: create it first"):
        weights.save(saved.parent / "nowhere" / "file", MODEL, small())
    with pytest.raises(UserError, match=r"MLP\.dtype holds the function"):
        weights.save(saved, MODEL.clone(dtype=lambda: 3), small())


# Files that are not what they should be


def test_truncated_and_damaged_files(saved):
    whole = saved.read_bytes()
    for content in (whole[:-1], whole[:100], whole[:5], b"", whole + b"more", b"\0" * 100):
        saved.write_bytes(content)
        with pytest.raises(UserError, match="is not a safetensors file, or it is truncated: fetch it again"):
            weights.load(saved)
    for place in (-1, -50):  # in the tensors, where the format itself has no checksum
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + (whole[place + 1 :] if place < -1 else b""))
        with pytest.raises(
            UserError, match=r"is damaged, or was changed .*: the checksum of params/dense\d/\w+ differs"
        ):
            weights.load(saved)


def described(header, model):
    """The header with another description, which has the right checksum."""
    return header | {"model": model, "model_crc32": artifact._text_checksum(model)}


def test_no_damage_is_overlooked(saved):
    """Any byte may change: the file is then refused in a sentence, or what changed is nothing that is read."""
    whole, rng = saved.read_bytes(), np.random.default_rng(0)
    for _ in range(400):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(len(whole), size=rng.integers(1, 4))] = rng.integers(256)
        saved.write_bytes(damaged.tobytes())
        try:
            model, variables = weights.load(saved)
        except UserError:
            continue
        assert model == MODEL
        assert_same_bits(variables, small())


def rewrite(path, change):
    """Writes a file again with a changed header."""
    header = json.loads(files.metadata(path)["dlc"])
    save_file(load_file(path), path, {"format": "pt", "dlc": change(header)})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda header: "", "the description of the model in .* is damaged"),
        (lambda header: "{", "the description of the model in .* is damaged"),
        (lambda header: "[" * 100_000, "the description of the model in .* is damaged"),
        (lambda header: json.dumps({"model": 3}), "the description of the model in .* is damaged"),
        (
            lambda header: json.dumps(header | {"crc32": {}}),
            "is damaged: params/dense1/bias, .* and 1 more is missing or",
        ),
        (lambda header: json.dumps(described(header, {"class": "os.system", "fields": {}})), "standard library"),
        (lambda header: json.dumps(described(header, {})), "the description of the model is damaged"),
        (lambda header: json.dumps(header).replace("num_classes", "num_clasess"), "the description of .* is damaged"),
    ],
)
def test_headers_that_are_damaged(saved, change, sentence):
    rewrite(saved, change)
    with pytest.raises(UserError, match=sentence) as error:
        weights.load(saved)
    assert "\n" not in str(error.value)


def test_names_that_do_not_form_a_tree(tmp_path):
    arrays = {"params": np.ones(1, np.float32), "params/kernel": np.ones(1, np.float32)}
    header = described({"crc32": {name: artifact._checksum(a) for name, a in arrays.items()}}, weights.describe(MODEL))
    save_file(arrays, tmp_path / "odd.safetensors", {"dlc": json.dumps(header)})
    with pytest.raises(UserError, match="is damaged: params/kernel is inside another array"):
        weights.load(tmp_path / "odd.safetensors")


def test_numbers_of_64_bits_are_not_cut(tmp_path):
    weights.save(tmp_path, MODEL, {"params": {"kernel": normal(3, dtype=np.float64)}})
    with pytest.raises(UserError, match=r"params/kernel in .* is float64: set JAX_ENABLE_X64=1 to load it unchanged"):
        weights.load(tmp_path)


def test_folders_and_files_without_weights(tmp_path, saved):
    with pytest.raises(UserError, match=r"nowhere does not exist: give the folder of a run or a published model"):
        weights.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there are no weights in .*empty: give the folder of a run"):
        weights.load(tmp_path / "empty")
    weights.write_model(tmp_path / "empty", MODEL)
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["model.json"]
    assert weights.rebuild(unsealed((tmp_path / "empty" / "model.json").read_bytes())) == MODEL
    with pytest.raises(UserError, match=r"the run in .*empty has not saved any weights yet"):
        weights.load(tmp_path / "empty")
    (tmp_path / "empty" / "model.json").write_text("{")
    with pytest.raises(UserError, match=r"model\.json is damaged: it is not valid JSON"):
        weights.load(tmp_path / "empty")
    (tmp_path / "several" / "seed-0").mkdir(parents=True)
    weights.write_model(tmp_path / "several" / "seed-0", MODEL)
    with pytest.raises(UserError, match=r"is a run of several parts: give one of them, for example .*seed-0"):
        weights.load(tmp_path / "several")
    (tmp_path / "text").write_text("Attention is all you need")
    with pytest.raises(UserError, match="text is not a safetensors file"):
        weights.load(tmp_path / "text")
    save_file({"x": normal(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(
        UserError, match=r"does not say which model it is for: give one, for example load\(path, resnet50"
    ):
        weights.load(tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match=r"MLP has no published weights that can be read here"):
        weights.load(tmp_path / "foreign.safetensors", MODEL)
    with pytest.raises(UserError, match=r"is not a state dict of a ViT: it lacks classifier\.bias or head\.bias or"):
        weights.load(tmp_path / "foreign.safetensors", PUBLISHED["vit"][0])
    with pytest.raises(UserError, match="does not describe its model: it was not written by"):
        artifact.load(tmp_path / "foreign.safetensors")


# A model that is given, and changes


def test_a_given_model_must_be_that_of_the_file(saved):
    assert weights.load(saved, MLP((4,), num_classes=3))[0] == MODEL
    for other, sentence in {
        MODEL.clone(hidden=(5,)): r"has hidden = \[4\], but the given model has hidden = \[5\]",
        MODEL.clone(dtype="bfloat16"): "has dtype = None, but the given model has dtype = bfloat16",
        LeNet5Dense(): "has class = dlc.models.mlp.MLP, but the given model has class = dlc.models.lenet.LeNet5Dense",
    }.items():
        with pytest.raises(UserError, match=rf"^the model in {saved} {sentence}$"):
            weights.load(saved, other)


def test_changes_are_those_of_the_model_or_its_configuration(saved):
    model, variables = weights.load(saved, dtype="bfloat16")
    assert model == MODEL.clone(dtype="bfloat16")
    assert_same_bits(variables, small())
    model, variables = weights.load(saved, MODEL, param_dtype="bfloat16")
    assert model == MODEL.clone(param_dtype="bfloat16")
    assert_same_bits(variables, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), small()))
    gpt = GPT(GPTConfig(vocab=8, context=4, layers=1, heads=1, width=2, dropout=0.1))
    weights.save(saved, gpt, small())
    assert weights.load(saved, dropout=0.0)[0] == GPT(dataclasses.replace(gpt.config, dropout=0.0))


# Published weights, without saying whose they are


TINY = {"vocab": 20, "context": 6, "layers": 1, "heads": 2, "width": 4, "hidden": 8}
PUBLISHED = {
    "gpt2": (GPT(GPTConfig(**TINY)), weights.save_gpt2),
    "bert": (Bert(BertConfig(**TINY)), weights.save_bert),
    "bert masked lm": (BertMaskedLM(BertConfig(**TINY)), weights.save_bert),
    "vit": (ViT(ViTConfig(8, 4, 5, 1, 2, 4, 8)), weights.save_vit),
}


@pytest.mark.parametrize(("model", "save"), PUBLISHED.values(), ids=PUBLISHED)
def test_folders_of_hugging_face(model, save, tmp_path):
    x = jnp.zeros((1, 8, 8, 3)) if isinstance(model, ViT) else jnp.ones((1, 6), jnp.int32)
    variables = initial(model, x)
    save(tmp_path, model, variables["params"])
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found, read = weights.load(path)
        assert found == model
        assert_same_bits(read, variables)
    found, read = weights.load(tmp_path, model, dtype="bfloat16")
    assert found == type(model)(dataclasses.replace(model.config, dtype="bfloat16"))
    assert_same_bits(weights.begin(variables, tmp_path), variables)
    (tmp_path / "config.json").unlink()
    assert_same_bits(weights.load(tmp_path, model)[1], variables)
    with pytest.raises(UserError, match=r"does not say which model it is for: give one"):
        weights.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neox"}')
    known = "gpt2, llama, mistral, qwen2, qwen3, bert and vit"
    with pytest.raises(UserError, match=rf"config\.json describes a gpt_neox: only {known} can be read"):
        weights.load(tmp_path)


def test_a_bert_for_pretraining_has_a_head(tmp_path):
    model = PUBLISHED["bert masked lm"][0]
    weights.save_bert(tmp_path, model, initial(model, jnp.ones((1, 6), jnp.int32))["params"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["BertForPreTraining"]}))
    assert type(weights.load(tmp_path)[0]) is BertMaskedLM


def test_state_dicts_of_any_number_of_classes_under_any_name(tmp_path):
    model = DenseNet((1,), growth=4, stem=8, num_classes=5)
    variables = initial(model, jnp.zeros((1, 32, 32, 3)))
    weights.save_state_dict(tmp_path / "model.safetensors", model, variables)
    (tmp_path / "config.json").write_text('{"architecture": "densenet", "num_classes": 5}')  # as timm has it
    os.link(tmp_path / "model.safetensors", tmp_path / "download")
    for path in (tmp_path, tmp_path / "model.safetensors", tmp_path / "download"):
        found, read = weights.load(path, model.clone(num_classes=1000), dtype="bfloat16")
        assert found == model.clone(dtype="bfloat16")
        assert_same_bits(read, dict(variables))
    assert_same_bits(weights.begin(variables, tmp_path, model), variables)
    with pytest.raises(UserError, match=r"is not a state dict of a ResNet: it lacks fc\.bias"):
        weights.load(tmp_path, resnet18())
    with pytest.raises(UserError, match=r"is not a complete ViT: it lacks embeddings\.cls_token"):
        weights.load(tmp_path, PUBLISHED["vit"][0])


def test_a_vit_gets_the_classes_of_its_file(tmp_path):
    model, save = PUBLISHED["vit"]
    variables = initial(model, jnp.zeros((1, 8, 8, 3)))
    save(tmp_path, model, variables["params"])
    (tmp_path / "config.json").unlink()
    found, read = weights.load(tmp_path / "model.safetensors", ViT(dataclasses.replace(model.config, classes=7)))
    assert found == model
    assert_same_bits(read, variables)


@pytest.mark.peers
def test_pickles_are_known_by_what_they_hold(tmp_path):
    torch = pytest.importorskip("torch")
    model = DenseNet((1,), growth=4, stem=8, num_classes=5)
    variables = initial(model, jnp.zeros((1, 32, 32, 3)))
    weights.save_state_dict(tmp_path / "model.safetensors", model, variables)
    state = {name: torch.from_numpy(tensor) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    torch.save(state, tmp_path / "new")
    torch.save(state, tmp_path / "old", _use_new_zipfile_serialization=False)
    os.link(tmp_path / "model.safetensors", tmp_path / "misnamed.pth")
    for name in ("new", "old", "misnamed.pth"):
        assert_same_bits(weights.load(tmp_path / name, model)[1], dict(variables))


# Training that begins from weights


def test_training_begins_from_weights(saved):
    variables = small(MODEL.clone(param_dtype="bfloat16"))
    begun = weights.begin(variables, saved.parent)
    assert_same_bits(begun, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), small()))
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 2, 3)))
    assert_same_bits(weights.begin(shapes, saved), small())
    assert_same_bits(weights.begin(freeze(shapes), saved), freeze(small()))


def test_weights_to_begin_from_lie_where_they_are_needed(saved):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    begun = weights.begin(jax.device_put(small(), everywhere), saved)
    assert {leaf.sharding for leaf in jax.tree.leaves(begun)} == {everywhere}
    assert not any(leaf.committed for leaf in jax.tree.leaves(weights.begin(small(), saved)))


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (MODEL.clone(hidden=(5,)), r"params/dense1/bias in .* has shape \(4,\), but the model expects \(5,\)$"),
        (MODEL.clone(hidden=(4, 3)), "has no params/dense3/bias: it is not from the same model$"),
        (MODEL.clone(hidden=()), r"params/dense1/bias in .* has shape \(4,\), but the model expects \(3,\)$"),
    ],
)
def test_the_first_array_that_differs_is_named(saved, model, sentence):
    with pytest.raises(UserError, match=sentence):
        weights.begin(small(model), saved)


def test_arrays_that_the_model_does_not_have_are_named(saved):
    weights.save(saved, MODEL, small() | {"batch_stats": {"norm": {"mean": normal(3)}}})
    with pytest.raises(UserError, match=r"has batch_stats/norm/mean, which the model does not have$"):
        weights.begin(small(), saved)
    whole = jax.tree.map(lambda leaf: leaf.astype(int), small())
    weights.save(saved, MODEL, whole)
    with pytest.raises(UserError, match=r"params/dense1/bias in .* is of type int32, but the model expects float32$"):
        weights.begin(small(), saved)
