"""The user's photographs: read from any format, preprocessed as the published weights expect, and classified."""

import dataclasses
import importlib.util
import io
import json
import re
import typing

import jax
import numpy as np
import pytest
import tyro
from PIL import Image

from dlc import config as configs
from dlc import weights
from dlc.data import imagenet, images
from dlc.errors import UserError
from dlc.models.squeezenet import squeezenet1_1
from dlc.run import Run
from experiments.bench import vision_torch
from experiments.imagenet import classify

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
    for name, sentence in {
        "none.jpg": "there is no .*none.jpg",
        ".": "is a folder",
        "text.jpg": "text.jpg is not an image",
        "cut.jpg": "cut.jpg is damaged or cut short",
    }.items():
        with pytest.raises(UserError, match=sentence):
            images.decode(tmp_path / name)


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
    assert set(typing.get_args(classify.Config.__annotations__["model"])) == set(classify.MODELS)
    assert set(classify.RULES) < set(classify.MODELS)
    for make in classify.MODELS.values():
        weights.images.published(make())


@pytest.mark.peers
@pytest.mark.parametrize("name", classify.MODELS)
def test_photographs_are_prepared_as_torchvision_and_timm_do(name):
    pytest.importorskip("torch")
    if not (importlib.util.find_spec("torchvision") and importlib.util.find_spec("timm")):
        pytest.skip("needs torchvision and timm")
    vision_torch.define_operators()  # the imports may fail without this
    timm, torchvision = importlib.import_module("timm"), importlib.import_module("torchvision")

    rule = classify.RULES.get(name, imagenet.Rule())
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


def config(known, *names, **changes):
    given = {"weights": known / "weights.safetensors", "classes": known / "names.txt", "model": "squeezenet1_1"}
    given["images"] = tuple(known / name for name in names or ["photograph.png"])
    return classify.Config(**given | changes)


def test_photographs_are_named_with_probabilities(known, tmp_path, capsys):
    figures = classify.main(config(known, "photograph.png", "grey.png"), Run(tmp_path))
    answers = ["   62.5%  dog", "   25.0%  horse", "   12.5%  cat", ""]
    written = [str(known / "photograph.png"), *answers, str(known / "grey.png"), *answers]
    assert capsys.readouterr().out.splitlines() == written
    assert (tmp_path / "answers.txt").read_text() == "\n".join(written)
    assert (tmp_path / "figures" / "answers.png").exists()
    assert figures == {"images": 2, "probability_of_the_first": pytest.approx(0.625)}


def refusals(known):
    yield config(known, images=()), "nothing to look at: name the file of at least one photograph"
    yield config(known, weights=None), "squeezenet1_1 needs published weights: fetch those"
    yield config(known, "none.png"), "there is no .*none.png"
    yield config(known, "names.txt"), "names.txt is not an image"
    yield config(known, weights=known / "none.pth"), "there is no file .*none.pth"
    yield config(known, weights=known / "photograph.png"), "photograph.png is not a safetensors file"
    yield config(known, model="resnet18"), "is not a state dict of a ResNet: it lacks fc.bias"
    yield config(known, model="squeezenet1_0"), r"weights.safetensors .*(has tensors|lacks|has shape \()"
    yield config(known, classes=None), r"is for 3 classes, and ImageNet has 1,000: name each in a line .* --classes"
    yield config(known, classes=known / "none.txt"), "none.txt cannot be read: give a text file"
    yield config(known, classes=known / "photograph.png"), "photograph.png cannot be read: give a text file"
    yield config(known, resize=100), "a crop of 224x224 is larger than its image of 128x100"


def test_mistakes_are_one_sentence(known):
    (known / "two.txt").write_text("cat\ndog\n")
    two = (config(known, classes=known / "two.txt"), r"is for 3 classes, and .*two.txt has 2")
    for wrong, sentence in [*refusals(known), two]:
        with pytest.raises(UserError, match=sentence) as caught:
            classify.main(wrong, Run())
        assert re.fullmatch(r"[^\n]+(\n[^\n]+)?", str(caught.value))  # and at most one line from the reader of the file
    with pytest.raises(UserError, match=r"^--images, --weights, --classes means nothing with --made-up: leave it out$"):
        config(known, made_up=True)
    with pytest.raises(UserError, match="--resize must be greater than 0"):
        config(known, resize=0)


def test_the_command_line_takes_photographs_and_gives_them_back(known, tmp_path):
    weights = known / "weights.safetensors"
    argv = ["--model", "vgg16", "--weights", str(weights), str(known / "a.jpg"), str(known / "b.jpg")]
    parsed = tyro.cli(classify.Config, args=argv)
    assert parsed == classify.Config((known / "a.jpg", known / "b.jpg"), "vgg16", weights)
    configs.save(tmp_path, "imagenet.classify", parsed, "")
    assert json.loads((tmp_path / "config.json").read_text())["config"]["images"][0].endswith("a.jpg")
    assert configs.load(tmp_path, "imagenet.classify", classify.Config) == parsed
    assert dataclasses.replace(parsed, images=()).images == ()
