"""The user's photographs: read from any format, preprocessed as the published weights expect, and classified."""

import importlib.util
import io
import json
import os
import struct
import sys
import typing
import zlib

import jax
import numpy as np
import pytest
from cli import assert_refused, folder_of, here
from PIL import Image

from dlc import weights
from dlc.data import imagenet, images
from dlc.errors import UserError
from dlc.models.squeezenet import squeezenet1_1
from dlc.run import flags
from dlc.weights.imagenet import NETWORKS, RULES
from experiments.bench import vision_torch
from experiments.imagenet import classify

assert here  # a fixture

MODULE = "experiments.imagenet.classify"

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# Reading


def test_an_image_is_read_as_it_was_saved(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "image.png")
    np.testing.assert_array_equal(images.decode(tmp_path / "image.png"), PIXELS)
    np.testing.assert_array_equal(images.decode((tmp_path / "image.png").read_bytes()), PIXELS)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_kind_becomes_red_green_and_blue(mode):
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    image = images.decode(encoded(Image.fromarray(PIXELS).convert(mode), kind))
    assert image.shape == PIXELS.shape
    assert image.dtype == np.uint8
    if mode in ("1", "L", "LA"):
        np.testing.assert_array_equal(image[..., :1].repeat(3, -1), image)
    if mode == "RGBA":  # and every pixel is opaque
        np.testing.assert_array_equal(image, PIXELS)


def test_what_is_transparent_lies_on_white():
    alpha = np.arange(63, dtype=np.uint8).reshape(9, 7, 1) // 32 * 255  # the upper half
    image = images.decode(encoded(Image.fromarray(np.concatenate([PIXELS, alpha], -1))))
    np.testing.assert_array_equal(image, np.where(alpha, PIXELS, 255))


def test_sixteen_bits_become_eight():
    deep = (np.arange(63, dtype=np.uint16) * 1000).reshape(9, 7)
    np.testing.assert_array_equal(images.decode(encoded(Image.fromarray(deep)))[..., 0], deep >> 8)


def test_a_photograph_on_its_side_is_turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned to the left
    np.testing.assert_array_equal(images.decode(encoded(Image.fromarray(PIXELS), exif=exif)), np.rot90(PIXELS, -1))


def test_what_is_no_image_is_named(tmp_path):
    whole = encoded(Image.fromarray(np.repeat(PIXELS, 50, 0)), "JPEG")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "link.jpg").symlink_to("gone.jpg")
    for name, sentence in {
        "none.jpg": "there is no .*none.jpg",
        "link.jpg": "link.jpg is a link to gone.jpg, which is not there: mend it",
        ".": "is a folder",
        "text.jpg": "text.jpg is not an image",
        "cut.jpg": "cut.jpg is damaged or cut short",
    }.items():
        with pytest.raises(UserError, match=sentence):
            images.decode(tmp_path / name)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (png(100_000, 100_000), "has too many pixels to be decoded: make it smaller"),
        (png(10_000, 9_500), "has too many pixels to be decoded: make it smaller"),  # where warnings are errors
        (png(0, 10), "is not an image that can be read: give a JPEG or PNG"),
        (png(10, 10), "is damaged or cut short: fetch it again"),
        (encoded(Image.fromarray(PIXELS))[:200], "is damaged or cut short: fetch it again"),
        (encoded(Image.fromarray(PIXELS[..., 0].astype(np.int32)), "TIFF"), "has 32 bits per pixel and no known range"),
        (encoded(Image.fromarray(PIXELS[..., 0].astype(np.float32)), "TIFF"), "has 32 bits per pixel and no known"),
        (
            encoded(Image.fromarray(PIXELS).convert("LAB"), "TIFF"),
            "has the colours LAB: save it as red, green and blue",
        ),
        (b"version https://git-lfs.github.com/spec/v1", "is not an image that can be read: give a JPEG or PNG"),
    ],
)
def test_an_error_names_its_file(tmp_path, content, sentence):
    file = tmp_path / "image.jpg"
    file.write_bytes(content)
    for read in (images.decode, lambda file: images.decode_part(file, lambda height, width: (0.0, 0.0, 5.0, 5.0), 4)):
        with pytest.raises(UserError) as raised:
            read(file)
        assert str(raised.value).startswith(f"{file} {sentence}")


# Preparing


def test_the_shorter_side_and_the_middle():
    image = np.arange(10 * 21 * 3, dtype=np.uint8).reshape(10, 21, 3)
    assert images.resize_shorter(image, 5).shape == (5, 10, 3)
    assert images.resize_shorter(image.swapaxes(0, 1), 7).shape == (14, 7, 3)
    np.testing.assert_array_equal(images.resize_shorter(image, 10), image)
    np.testing.assert_array_equal(images.centre_crop(image, 7), image[2:9, 7:14])  # of the 3 rows cut, 2 are above
    with pytest.raises(UserError, match="a crop of 11x11 is larger than its image of 10x21"):
        images.centre_crop(image, 11)


def test_the_names_are_a_thousand():
    names = imagenet.classes()
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[207], names[281], names[999]) == ("tench", "golden retriever", "tabby", "toilet tissue")


def test_the_models_on_offer_have_published_weights():
    offered, _ = typing.get_args(classify.Config.__annotations__["model"])
    assert set(typing.get_args(offered)) == set(NETWORKS)
    assert set(RULES) < set(NETWORKS)
    for make in NETWORKS.values():
        weights.images.published(make())


@pytest.mark.peers
@pytest.mark.parametrize("name", NETWORKS)
def test_photographs_are_prepared_as_torchvision_and_timm_do(name):
    pytest.importorskip("torch")
    if not (importlib.util.find_spec("torchvision") and importlib.util.find_spec("timm")):
        pytest.skip("needs torchvision and timm")
    vision_torch.define_operators()  # the imports may fail without this
    timm, torchvision = importlib.import_module("timm"), importlib.import_module("torchvision")

    rule = RULES.get(name, imagenet.Rule())
    image = np.random.default_rng(1).integers(0, 256, (365, 412, 3), dtype=np.uint8)
    ours = imagenet.standardised(imagenet.square(image, rule), rule)
    if name == "inception_v4":
        settings = timm.get_pretrained_cfg(name).to_dict() | {"input_size": (3, 299, 299)}
        theirs = timm.data.create_transform(**timm.data.resolve_data_config(settings))
    else:
        theirs = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
    expected = theirs(Image.fromarray(image)).numpy().transpose(1, 2, 0)
    if name in ("googlenet", "inception_v3"):  # the models of these weights begin with this
        expected = (expected * imagenet.STD + imagenet.MEAN - 0.5) / 0.5
    np.testing.assert_allclose(ours, expected, atol=1e-5)


# Naming


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A SqueezeNet for three classes whose output depends only on its last biases; class names; a photograph."""
    folder = tmp_path_factory.mktemp("known")
    model = squeezenet1_1(num_classes=3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    variables["params"]["conv10"]["bias"] = np.log(np.float32([2, 10, 4]))
    weights.save_state_dict(folder / "weights.safetensors", model, variables)
    (folder / "names.txt").write_text("cat\n dog \nhorse\n\n")
    Image.fromarray(PIXELS).save(folder / "photograph.png")
    Image.fromarray(PIXELS).convert("LA").save(folder / "grey.png")
    return folder


def words(known, *names, **changes):
    """The flags for these photographs; a flag that is changed to None is left out."""
    given = {"model": "squeezenet1_1", "weights": known / "weights.safetensors", "classes": known / "names.txt"}
    given |= changes
    return *(known / name for name in names), *(w for k, v in given.items() if v for w in (f"--{k}", v))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_a_photographs_name_need_not_be_utf8(known, tmp_path, here):
    odd = tmp_path / os.fsdecode(b"\xe9\xff.png")
    odd.write_bytes((known / "photograph.png").read_bytes())
    code, stdout, stderr = here(MODULE, *words(known, odd), "--out", tmp_path)
    assert code == 0, stderr
    assert stdout.splitlines()[0] == f"{tmp_path}/\\udce9\\udcff.png"


def test_photographs_are_named_with_probabilities(known, tmp_path, here):
    code, stdout, stderr = here(MODULE, *words(known, "photograph.png", "grey.png"), "--out", tmp_path)
    assert code == 0, stderr
    answers = ["   62.5%  dog", "   25.0%  horse", "   12.5%  cat", ""]
    written = [str(known / "photograph.png"), *answers, str(known / "grey.png"), *answers]
    folder = folder_of(tmp_path)
    assert stdout.splitlines()[: len(written)] == written
    assert (folder / "answers.txt").read_text() == "\n".join(written)
    assert (folder / "figures" / "answers.png").exists()
    figures = json.loads((folder / "result.json").read_text())["figures"]
    assert figures == {"images": 2, "probability_of_the_first": pytest.approx(0.625)}
    saved = flags.load(folder, "imagenet.classify", classify.Config)
    photographs = (known / "photograph.png", known / "grey.png")
    assert saved == classify.Config(photographs, "squeezenet1_1", known / "names.txt")


def refusals(known):
    yield words(known), "there is nothing to look at: name the file of at least one photograph"
    one = "photograph.png"
    yield words(known, one, weights=None), "squeezenet1_1 needs published weights: download some from https"
    yield words(known, "none.png"), "there is no .*none.png"
    yield words(known, "names.txt"), "names.txt is not an image"
    yield words(known, one, weights=known / "none.pth"), "none.pth does not exist: give .* a file of weights"
    yield words(known, one, weights=known / one), "photograph.png is not a safetensors file"
    yield words(known, one, model="resnet18"), "is not a state dict of a ResNet: it lacks fc.bias"
    yield words(known, one, model="squeezenet1_0"), r"weights.safetensors .*(has tensors|lacks|has shape \()"
    few = "the weights are for 3 classes, and"
    yield words(known, one, classes=None), rf"{few} ImageNet has 1,000: name each in a line of --classes FILE"
    yield words(known, one, classes=known / "none.txt"), "none.txt cannot be read: give a text file"
    yield words(known, one, classes=known / one), "photograph.png cannot be read: give a text file"
    yield words(known, one, classes=known / "two.txt"), rf"{few} .*two.txt has 2: name each in a line"
    yield words(known, one, resize=100), "--resize 100 is less than 224, the side of what squeezenet1_1 looks at"
    yield words(known, one, resize=-1), "--resize must be greater than 0, not -1"
    yield (*words(known, one), "--made-up"), "leave out --made-up: --weights does not train"


def test_mistakes_are_one_sentence(known, tmp_path, here):
    (known / "two.txt").write_text("cat\ndog\n")
    for wrong, sentence in refusals(known):
        result = here(MODULE, *wrong, "--out", tmp_path)
        assert_refused(result, sentence)
        assert len(result[2].splitlines()) <= 2  # and at most one line from the reader of the file
        assert not list(tmp_path.glob("*/*"))
