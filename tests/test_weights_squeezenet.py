"""SqueezeNet as its authors compressed it: a file made here, damaged ones, and the published one on photographs."""

import csv
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli import folder_of, here
from jax import lax
from safetensors.numpy import save

from dlc import weights
from dlc.data import imagenet, images
from dlc.errors import UserError
from dlc.layers import plain_conv
from dlc.models.resnet import resnet18
from dlc.models.squeezenet import squeezenet1_0, squeezenet1_1
from dlc.weights.deep_compression import SHAPES, SIZES

assert here  # a fixture

FETCH = "fetch compressed_SqueezeNet.net from https://github.com/songhan/SqueezeNet-Deep-Compression"
DENSE = "fire2/squeeze"  # the layer of which every weight is listed
HEAD = 4 * 26


@pytest.fixture(scope="module")
def made():
    """The bytes of a file, and the kernels [O, I, KH, KW] and biases that it holds, by layer."""
    rng = np.random.default_rng(0)
    head, body, arrays = b"", b"", {}
    for name, shape in SHAPES.items():
        count, high = (SIZES[name], 1) if name == DENSE else (SIZES[name] // 20, 16)
        gaps, codes = rng.integers(0, high, count), rng.integers(0, 256, count).astype(np.uint8)
        values, bias = rng.normal(size=256).astype("<f4"), rng.normal(size=shape[0]).astype("<f4")
        values[0] = 0
        kernel, place = np.zeros(SIZES[name], np.float32), -1
        for gap, code in zip(gaps, codes, strict=True):
            place += gap + 1
            kernel[place] = values[code]
        arrays[name] = kernel.reshape(shape), bias
        halves = np.append(gaps, 0)[: count + count % 2].astype(np.uint8)
        head += np.uint32(count).tobytes()
        body += values.tobytes() + bias.tobytes() + codes.tobytes() + (halves[::2] | halves[1::2] << 4).tobytes()
    return head + body, arrays


@pytest.fixture
def file(made, tmp_path):
    (tmp_path / "some.net").write_bytes(made[0])
    return tmp_path / "some.net"


def test_a_file_gives_the_weights_that_were_written(made, file):
    model, variables = weights.load(file)
    assert model == squeezenet1_0(padded=True)
    expected = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, expected)
    flat = weights.files.flat(variables["params"])
    assert sum(leaf.size for leaf in flat.values()) == 1_248_424
    for name, (kernel, bias) in made[1].items():
        if name != "conv1":
            np.testing.assert_array_equal(flat[f"{name}/kernel"], kernel.transpose(2, 3, 1, 0))
            np.testing.assert_array_equal(flat[f"{name}/bias"], bias)


def test_the_first_layer_takes_what_other_networks_take(made, file):
    kernel, bias = made[1]["conv1"]
    picture = np.random.default_rng(1).integers(0, 256, (1, 31, 31, 3), dtype=np.uint8)
    caffe = picture[..., ::-1].astype(np.float32).transpose(0, 3, 1, 2) - np.float32([[[[104]], [[117]], [[123]]]])
    expected = lax.conv(caffe, kernel, (2, 2), "VALID").transpose(0, 2, 3, 1) + bias[None, None, None]
    ours = weights.load(file)[1]["params"]["conv1"]
    x = jnp.asarray(imagenet.standardised(picture, imagenet.Rule()))
    found = plain_conv(x, ours["kernel"], strides=(2, 2)) + ours["bias"][None, None, None]
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.usefixtures("_plain")
def test_a_border_shows_the_bias_of_the_last_layer(file):
    model, variables = weights.load(file)

    @jax.jit
    def logits(variables, x):
        plain, seen = model.clone(padded=False).apply(
            variables, x, capture_intermediates=lambda m, _: m.name == "fire9"
        )
        return model.apply(variables, x), plain, seen["intermediates"]["fire9"]["__call__"][0]

    x = np.random.default_rng(0).normal(size=(2, 48, 48, 3)).astype(np.float32)
    padded, plain, maps = logits(variables, x)
    whole, side = (maps.shape[1] + 2) ** 2, maps.shape[1] ** 2
    bias = jax.nn.relu(variables["params"]["conv10"]["bias"])
    np.testing.assert_allclose(padded, (side * plain + (whole - side) * bias[None]) / whole, rtol=1e-4, atol=1e-4)


def test_fields_of_the_model_may_differ(file):
    model, variables = weights.load(file, dtype="bfloat16", param_dtype="bfloat16")
    assert model == squeezenet1_0(padded=True, dtype="bfloat16", param_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}
    assert weights.load_squeezenet_dc(file, padded=False)[0] == squeezenet1_0()
    for change in ({"num_classes": 10}, {"version": "1.1"}):
        with pytest.raises(UserError, match=r"is SqueezeNet 1\.0 for 1,000 classes, and no other$"):
            weights.load(file, **change)


def test_training_begins_from_a_file(file):
    model, variables = weights.load(file)
    begun = weights.begin(jax.tree.map(jnp.zeros_like, variables), file, model)
    jax.tree.map(np.testing.assert_array_equal, begun, variables)


def test_a_given_model_must_be_that_of_the_file(file):
    assert weights.load(file, squeezenet1_0(padded=True))[0] == squeezenet1_0(padded=True)
    for other, sentence in {
        squeezenet1_0(): "has padded = True, but the given model has padded = False",
        squeezenet1_1(padded=True): "has version = 1.0, but the given model has version = 1.1",
        resnet18(): "has class = dlc.models.squeezenet.SqueezeNet, but the given model has class = dlc.models.resnet",
    }.items():
        with pytest.raises(UserError, match=f"^the model in {file} {sentence}"):
            weights.load(file, other)


def counted(content, layer, count):
    """The content with another count for a layer."""
    at = 4 * list(SHAPES).index(layer)
    return content[:at] + np.uint32(count).tobytes() + content[at + 4 :]


def written(content, at, new):
    """The content with other bytes `at` some place in the second layer, which begins after the first."""
    count = int.from_bytes(content[:4], "little")
    at += HEAD + 4 * (256 + 96) + count + (count + 1) // 2
    return content[:at] + new + content[at + len(new) :]


GAPS = 4 * (256 + 16) + SIZES[DENSE]  # where the gaps of the second layer begin in it
WRONG = {
    "empty": (lambda content: b"", "is not SqueezeNet 1.0 as its authors compressed it: "),
    "a part of the counts": (lambda content: content[: HEAD - 1], "is not SqueezeNet 1.0 as its authors"),
    "another model's": (lambda content: save({"x": np.zeros(200)}), "is not SqueezeNet 1.0 as its authors"),
    "a web page": (lambda content: b"<!DOCTYPE html>" * 50_000, "is not SqueezeNet 1.0 as its authors"),
    "zeros": (lambda content: bytes(len(content)), "is not SqueezeNet 1.0 as its authors"),
    "no weights": (lambda content: counted(content, "conv10", 0), "is not SqueezeNet 1.0 as its authors"),
    "one too many": (lambda content: counted(content, DENSE, 1537), "is not SqueezeNet 1.0 as its authors"),
    "four billion": (lambda content: counted(content, "conv10", 2**32 - 1), "is not SqueezeNet 1.0 as its authors"),
    "big-endian": (
        lambda content: np.frombuffer(content, "<u4", 26).astype(">u4").tobytes() + content[HEAD:],
        "is not SqueezeNet 1.0 as its authors",
    ),
    "the counts alone": (lambda content: content[:HEAD], "is truncated: it has 104 bytes instead of "),
    "cut": (lambda content: content[:-1], r"is truncated: it has [\d,]+ bytes instead of [\d,]+; "),
    "more": (lambda content: content + b"\n", r"is too long: it has [\d,]+ bytes instead of [\d,]+; "),
    "twice": (lambda content: content * 2, "is too long: "),
    "another count": (lambda content: counted(content, "conv10", 512_000), "is truncated: "),
    "a smaller count": (lambda content: counted(content, "conv10", 1), "is too long: "),
    "gaps": (lambda content: written(content, GAPS, b"\xff"), f"is damaged: {DENSE} has places beyond its weights; "),
    "one gap": (lambda content: written(content, GAPS + 767, b"\x10"), f"is damaged: {DENSE} has places beyond"),
    "values": (
        lambda content: written(content, 8, b"\xff" * 4),
        f"is damaged: {DENSE} has numbers that are not finite",
    ),
    "bias": (lambda content: written(content, 1024, b"\0\0\x80\x7f"), f"is damaged: {DENSE} has numbers that are not"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_read_is_said_in_one_sentence(kind, made, file):
    change, sentence = WRONG[kind]
    file.write_bytes(change(made[0]))
    with pytest.raises(UserError, match=rf"^{file} {sentence}") as raised:
        weights.load_squeezenet_dc(file)
    assert FETCH in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError):  # whichever file it is taken for
        weights.load(file)


def test_what_is_not_there(tmp_path):
    for path in (tmp_path / "none.net", tmp_path):
        with pytest.raises(UserError, match=f"^there is no file {path}: {FETCH}$"):
            weights.load_squeezenet_dc(path)


# The published file


def real(*names):
    """Folders of real data. Skips the test if they are not there."""
    root = os.environ.get("DLC_TEST_DATA")
    if not root or not all((Path(root) / name).is_dir() for name in names):
        pytest.skip(f"DLC_TEST_DATA does not name a folder with {' and '.join(names)}")
    return [Path(root) / name for name in names]


def test_it_knows_photographs_of_imagenet():
    folder, photographs = real("weights_squeezenet_dc", "imagenet_64")
    model, variables = weights.load(folder / "compressed_SqueezeNet.net")
    with (photographs / "imagenet_64" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    files = [photographs / "imagenet_64" / "images" / row["file"] for row in rows]
    squares = np.stack([imagenet.square(images.decode(file), imagenet.Rule()) for file in files])
    apply = jax.jit(model.apply)
    logits = np.concatenate(
        [apply(variables, imagenet.standardised(some, imagenet.Rule())) for some in np.split(squares, 4)]
    )
    right = logits.argmax(-1) == [int(row["class_index"]) for row in rows]
    assert len(right) == 64
    assert right.sum() >= 35


def test_it_names_a_cat_and_a_coffee(tmp_path, here):
    folder, photographs = real("weights_squeezenet_dc", "cc0_photos")
    files = [photographs / "chelsea.png", photographs / "coffee.png"]
    file = folder / "compressed_SqueezeNet.net"
    code, _, stderr = here("experiments.imagenet.classify", "--weights", file, *files, "--out", tmp_path)
    assert code == 0, stderr
    written = (folder_of(tmp_path) / "answers.txt").read_text().split("\n\n")
    first = [re.fullmatch(r" *([\d.]+)%  (.+)", answers.splitlines()[1]).groups() for answers in written[:2]]
    assert [name for _, name in first] == ["Egyptian cat", "espresso"]
    assert min(float(share) for share, _ in first) > 50
