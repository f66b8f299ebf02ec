"""Pictures on the disk, and how they come to the device: sets, crops, batches that are a function of their number."""

import hashlib
import json
import multiprocessing
import re
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from dlc import sharding
from dlc.data import DataUnavailable, images, pictures, records, stream, tfds
from dlc.data.__main__ import main
from dlc.data.sources import Original
from dlc.errors import UserError

ROOT = Path(__file__).parents[1]


def photographs(root, counts, side=80):
    """Parts of scikit-learn's two photographs, as JPEG: `counts` maps folders to how many, "flower" or not."""
    draw = np.random.default_rng(0)
    for name, count in counts.items():
        whole = load_sample_image("flower.jpg" if "flower" in name else "china.jpg")
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            y, x = draw.integers(0, 400 - side), draw.integers(0, 600 - 2 * side)
            Image.fromarray(whole[y : y + side, x : x + 2 * side]).save(root / name / f"{i:02d}.jpg", quality=95)
    return root


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    counts = {"train/china": 12, "train/flower": 11, "val/china": 4, "val/flower": 3}
    return photographs(tmp_path_factory.mktemp("some"), counts)


# Sets


def test_a_folder_for_each_class(some):
    found = pictures.folder(some)
    assert found.classes == ("china", "flower")
    assert (len(found.train), len(found.validation)) == (23, 7)
    assert found.train[12] == (some / "train" / "flower" / "00.jpg", 1)


def test_a_tenth_is_held_out_and_stays_so(tmp_path):
    photographs(tmp_path, {"china": 40, "flower": 40}, side=8)
    before = pictures.folder(tmp_path)
    assert {file for file, _ in before.train}.isdisjoint(file for file, _ in before.validation)
    assert 2 <= len(before.validation) <= 16
    assert len(before.train) + len(before.validation) == 80
    (tmp_path / "china" / "00.jpg").rename(tmp_path / "china" / "more.jpg")
    after = pictures.folder(tmp_path)
    assert [one for one in before.validation if one in after.validation] == [
        one for one in before.validation if one[0].exists()
    ]


def test_folders_that_are_no_set_of_pictures(tmp_path):
    def refused(sentence):
        with pytest.raises(UserError, match=sentence):
            pictures.folder(tmp_path / "set")

    refused(r"^there is no folder .*set: give one that has a folder of pictures for each class$")
    (tmp_path / "set" / "cats").mkdir(parents=True)
    refused(r"^.*set has 1 folders of pictures: give each class a folder of its own, two or more$")
    (tmp_path / "set" / "dogs").mkdir()
    refused(r"^.*set/cats has no picture \(.jpg, .*\): remove it, or put some there$")
    photographs(tmp_path / "set", {"cats": 1, "dogs": 1}, side=8)
    refused(r"^.*set has too few pictures to hold some out: add more, or make folders train and val$")
    photographs(tmp_path / "set", {"train/cats": 1, "train/dogs": 1}, side=8)
    refused(r"^.*set has a folder train and no val: add that, or put the classes in .*set$")
    photographs(tmp_path / "set", {"val/cats": 1, "val/birds": 1}, side=8)
    refused(r"^the class birds is in .*val and not in .*train: nothing could learn it$")


def test_sets_that_cannot_be_had_say_what_to_put_where(monkeypatch):
    with pytest.raises(DataUnavailable, match=r"(?s)^imagenet2012 is not on this machine.*image-net.org.*tfds build"):
        pictures.load("imagenet2012")
    monkeypatch.setattr(tfds, "_unreachable", lambda url: "no network")
    with pytest.raises(
        DataUnavailable, match=r"(?s)^imagenette is not .* downloaded: no network; .*imagenette2-320.tgz"
    ):
        pictures.load("imagenette")
    with pytest.raises(UserError, match=r"^there is no set of pictures 'mnist': choose from imagenet2012, imagenette"):
        pictures.load("mnist")


def test_imagenette_from_its_archive(some, monkeypatch, capsys):
    here = pictures.data_dir() / "sources" / "imagenette"
    here.mkdir(parents=True)
    archive = here / "imagenette2-160.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(some, "imagenette2-160")
    with pytest.raises(UserError, match=r"^.*imagenette2-160.tgz has .* bytes instead of 99,003,388: fetch it again$"):
        pictures.load("imagenette")
    content = archive.read_bytes()
    same = Original(archive.name, "", len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(pictures, "IMAGENETTE", (*pictures.IMAGENETTE[:2], same))
    archive.write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match="is not the file that was published"):
        pictures.load("imagenette")
    assert not list(pictures.data_dir().glob("pictures/*"))
    archive.write_bytes(content)
    assert pictures.state("imagenette")[0] == "at hand"
    found = pictures.load("imagenette")
    assert (len(found.train), len(found.validation), found.source) == (23, 7, "archive imagenette2-160")
    archive.unlink()
    assert pictures.load("imagenette").train == found.train  # unpacked once
    assert pictures.state("imagenette") == ("ready", "archive imagenette2-160")
    assert main(["imagenette"]) == main([]) == 0
    said = capsys.readouterr().out
    assert "imagenette: 23 train, 7 validation pictures; from archive imagenette2-160" in said
    assert re.search(r"imagenet2012 +not here +- +to be fetched by hand", said)


BUILDER = """
import sys
from pathlib import Path
import tensorflow_datasets as tfds

label = {"china": "n01440764", "flower": "n02102040"}
upstream, folder = tfds.builder_cls("imagenette"), Path(sys.argv[1])
with tfds.core.registered.skip_registration():
    class Builder(upstream):
        name = "imagenette"
        pkg_dir_path = upstream.pkg_dir_path
        def _split_generators(self, manager):
            return {"train": self.examples("train"), "validation": self.examples("val")}
        def examples(self, half):
            for file in sorted((folder / half).rglob("*.jpg")):
                yield f"{file.parent.name}{file.name}", {"image": file.read_bytes(), "label": label[file.parent.name]}
builder = Builder(data_dir=sys.argv[2], config="320px-v2", file_format="array_record")
builder.download_and_prepare(file_format="array_record")
assert "tensorflow" not in sys.modules
"""


def test_what_tensorflow_datasets_prepared_is_read_without_it(some, tmp_path):
    home = pictures.data_dir() / "tfds"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", BUILDER, some, home], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = pictures.load("imagenette")
    assert found.source == "tfds imagenette 320px-v2/1.0.0"
    assert found.classes[:3] == ("tench", "English springer", "cassette player")
    assert len(found.classes) == 10
    ours = {(file.read_bytes(), label) for file, label in pictures.folder(some).train}
    assert {found.train[i] for i in range(len(found.train))} == ours
    assert len(found.validation) == 7
    assert "tensorflow_datasets" not in sys.modules
    batches = stream.Batches(found.train, partial(stream.random_part, how="area", size=8), batch=4, size=8, seed=0)
    assert batches.one(0)["image"].shape == (4, 8, 8, 3)

    content = found.train[3][0]
    cut = type(content)(content[:300])
    cut.where = content.where
    with pytest.raises(UserError, match=r"^record 3 of .*1.0.0 train is damaged or cut short"):
        stream.centre((cut, 0), side=8)

    prepared = next(home.glob("imagenette/*/*"))
    (shard,) = prepared.glob("*-train.array_record*")
    info = json.loads((prepared / "dataset_info.json").read_text())
    for split in info["splits"]:
        split["shardLengths"] = ["24"]
    (prepared / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"holds 23 train records instead of 24: prepare it again$"):
        pictures.load("imagenette")
    shard.unlink()
    with pytest.raises(UserError, match=r"train.array_record-00000-of-00001 is missing: prepare imagenette again$"):
        pictures.load("imagenette")
    (prepared / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    with pytest.raises(UserError, match=r"is not what TensorFlow Datasets prepares \(KeyError\('splits'\)\)"):
        pictures.load("imagenette")


def test_an_example_reads_packed_and_single_numbers_and_refuses_others():
    def field(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    def pair(name, feature):
        return field(1, field(1, name) + field(2, feature))

    image = pair(b"image", field(1, field(1, b"jpeg")))
    for number in (field(1, b"\x97\x03"), b"\x08\x97\x03"):
        assert records.example(field(1, image + pair(b"label", field(3, number)))) == {"image": b"jpeg", "label": 407}
    with pytest.raises(ValueError, match="not an example"):
        records.example(field(1, image)[:-3])


# Parts of a picture


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / height, 255 * x / width, 60 + 0 * y], -1).astype(np.uint8)


def test_a_part_is_what_decoding_cropping_and_resizing_give(tmp_path):
    Image.fromarray(smooth(90, 120)).save(tmp_path / "a.png")
    part = images.decode_part(tmp_path / "a.png", lambda height, width: (20.0, 10.0, 100.0, 90.0), 40)
    whole = images.resize(images.decode(tmp_path / "a.png")[10:90, 20:100], (40, 40))
    np.testing.assert_allclose(part.astype(int), whole.astype(int), atol=2)


@pytest.mark.parametrize("turn", [1, 3, 6])
def test_a_large_jpeg_is_decoded_in_part_and_turned_as_its_camera_says(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(smooth(1200, 1600)).save(tmp_path / "a.jpg", quality=95, exif=exif)
    asked = []

    def choose(height, width):
        asked.append((height, width))
        return 0.0, 0.0, float(min(height, width)), float(min(height, width))

    part = images.decode_part(tmp_path / "a.jpg", choose, 64)
    whole = images.decode(tmp_path / "a.jpg")
    assert asked == [whole.shape[:2]]
    expected = images.resize(whole[:1200, :1200], (64, 64))
    np.testing.assert_allclose(part.astype(int), expected.astype(int), atol=4)


def test_the_crops_of_the_papers(tmp_path):
    Image.fromarray(smooth(300, 450)).save(tmp_path / "a.png")
    draw, boxes = np.random.default_rng(0), {}
    for how, choose in (("fixed", stream._fixed), ("scale", stream._scale), ("area", stream._area)):
        boxes[how] = np.array([choose(draw, 224, 300, 450) for _ in range(500)])
        left, top, right, bottom = boxes[how].T
        assert (left >= 0).all()
        assert (top >= 0).all()
        assert (right <= 450 + 1e-6).all()
        assert (bottom <= 300 + 1e-6).all()
    left, _, right, _ = boxes["fixed"].T
    np.testing.assert_allclose(right - left, 300 * 224 / 256)
    assert (left.min(), right.max()) == (75, 375)  # of the square in the middle, all of it
    widths = boxes["scale"][:, 2] - boxes["scale"][:, 0]
    np.testing.assert_allclose([widths.min(), widths.max()], [300 * 224 / 480, 300 * 224 / 256])
    w, h = (boxes["area"][:, i + 2] - boxes["area"][:, i] for i in (0, 1))
    assert 0.07 < (w * h / 300 / 450).min() < 0.12
    assert (w * h / 300 / 450).max() > 0.8
    assert 0.74 < (w / h).min() < 0.8
    assert 1.25 < (w / h).max() < 1.35
    assert stream._area(draw, 224, 10, 900) == (445, 0, 455, 10)


def test_crops_at_the_end_of_a_scale_meet_the_resized_picture(some):
    """ "fixed" takes pixels of the picture resized to 256, as the paper does it, but for rounding in between."""
    file, label = pictures.folder(some).train[0]
    whole = stream.centre((file, label), side=256)["image"]
    draw = np.random.default_rng(3)
    part = stream.random_part((file, label), draw, how="fixed", size=224)["image"]
    x, y = np.random.default_rng(3).integers(32, endpoint=True, size=2)
    expected = whole[y : y + 224, x : x + 224].astype(int)
    assert min(np.abs(part - expected).max(), np.abs(part[:, ::-1] - expected).max()) <= 2


# Batches


def batches(some, workers=0, seed=0, **changes):
    view = partial(stream.random_part, how="area", size=16)
    return stream.Batches(pictures.folder(some).train, view, batch=4, size=16, seed=seed, workers=workers, **changes)


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_batches_are_a_function_of_seed_and_number(some):
    one = batches(some)
    whole = one(0, 12)  # two passes over 23 pictures
    assert whole["image"].shape == (12, 4, 16, 16, 3)
    for first, count in ((0, 3), (3, 2), (9, 3), (2, 4)):
        assert_same(one(first, count), {name: leaf[first : first + count] for name, leaf in whole.items()})
    assert_same(one.one(5), {name: leaf[5] for name, leaf in whole.items()})
    assert not np.array_equal(batches(some, seed=1)(0, 1)["image"], whole["image"][:1])
    assert sorted(whole["label"].ravel()[:23]) == [0] * 12 + [1] * 11  # every picture once a pass
    one.close()


def test_workers_make_the_same_batches(some):
    alone, two = batches(some), batches(some, workers=2)
    try:
        assert_same(two(3, 5), alone(3, 5))
        assert_same(two(8, 2), alone(8, 2))
    finally:
        alone.close()
        two.close()


def test_in_order_the_last_batch_is_filled_up(some):
    found = pictures.folder(some)
    held = stream.Batches(found.validation, partial(stream.centre, side=16), batch=4, size=16)
    assert (held.steps, held.examples) == (2, 7)
    both = held(0, 2)
    assert both["counts"].tolist() == [[True] * 4, [True] * 3 + [False]]
    labels = [label for _, label in found.validation]
    assert both["label"].ravel().tolist() == [*labels, labels[-1]]
    assert 0 < sum(labels[:4]) < 4  # the first batch has both classes
    np.testing.assert_array_equal(both["image"][1, 3], both["image"][1, 2])
    at = held._iterator
    assert_same(held(0, 2), both)
    assert held._iterator is at  # another pass goes on where the last one ended
    held.close()


def test_shapes_are_known_without_a_look(some):
    devices = sharding.mesh("data=4")
    one = batches(some, sharding=sharding.split(devices, axis=1))
    like, got = one.like(0, 2), one(0, 2)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), got) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), like
    )
    one.close()
    nothing = stream.Batches([(Path("nowhere.jpg"), 0)], stream.centre, batch=2, size=16)
    assert nothing.like(0, 3)["counts"].shape == (3, 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_named(tmp_path, workers):
    photographs(tmp_path, {"train/china": 3, "train/flower": 3, "val/china": 1, "val/flower": 1})
    file = tmp_path / "train" / "flower" / "01.jpg"
    file.write_bytes(file.read_bytes()[:500])
    one = batches(tmp_path, workers)
    with pytest.raises(UserError, match=r"^.*train/flower/01.jpg is damaged or cut short: fetch it again"):
        one(0, 3)
    one.close()


def test_a_worker_that_dies_is_said(some):
    one = batches(some, workers=1)
    one(0, 1)
    (child,) = multiprocessing.active_children()
    child.kill()
    with pytest.raises(UserError, match=r"^a worker that decodes pictures has died, most often because memory ran out"):
        one(1, 50)
    one.close()


def test_no_pictures_at_all():
    with pytest.raises(UserError, match=r"^there are no pictures to make batches of$"):
        stream.Batches([], stream.centre, batch=2, size=16)


def test_the_digits_as_pictures():
    found = pictures.load("digits32")
    assert (len(found.train), len(found.validation), len(found.classes)) == (1437, 360, 10)
    file, label = found.validation[5]
    assert images.decode(file).shape == (32, 32, 3)
    assert file.parent.name == str(label)
    assert pictures.load("digits32") == found
