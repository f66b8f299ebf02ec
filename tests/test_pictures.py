"""Sets of pictures: folders, archives, and what to do about sets that are not here."""

import hashlib
import re
import tarfile

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from dlc.data import DataUnavailable, _fetch, imagenette, images, pictures
from dlc.data.__main__ import main
from dlc.data._published import File
from dlc.errors import UserError


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
    refused(r"^.*set has a folder train but no val: add that, or put the classes in .*set$")
    photographs(tmp_path / "set", {"val/cats": 1, "val/birds": 1}, side=8)
    refused(r"^the class birds is in .*val but not in .*train: it could not be learned$")


def test_sets_that_cannot_be_had_say_what_to_put_where(monkeypatch):
    with pytest.raises(DataUnavailable, match=r"(?s)^imagenet2012 is not on this machine.*image-net.org.*tfds build"):
        pictures.load("imagenet2012")
    monkeypatch.setattr(_fetch, "unreachable", lambda url: "no network")
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
    with pytest.raises(
        UserError, match=r"^.*imagenette2-160.tgz is damaged: it has .* bytes instead of 99,003,388; delete it"
    ):
        pictures.load("imagenette")
    content = archive.read_bytes()
    same = File(archive.name, "", len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(imagenette, "SIZES", (*imagenette.SIZES[:2], same))
    archive.write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match="is not the published file"):
        pictures.load("imagenette")
    assert not list(pictures.data_dir().glob("pictures/*"))
    archive.write_bytes(content)
    assert pictures.state("imagenette")[0] == "found"
    found = pictures.load("imagenette")
    assert (len(found.train), len(found.validation), found.source) == (23, 7, "archive imagenette2-160")
    archive.unlink()
    assert pictures.load("imagenette").train == found.train  # unpacked once
    assert pictures.state("imagenette") == ("ready", "archive imagenette2-160")
    assert main(["imagenette"]) == main([]) == 0
    said = capsys.readouterr().out
    assert "imagenette: 23 train, 7 validation pictures; from archive imagenette2-160" in said
    assert re.search(r"imagenet2012 +not here +- +to be fetched by hand", said)


def test_the_digits_as_pictures():
    found = pictures.load("digits32")
    assert (len(found.train), len(found.validation), len(found.classes)) == (1437, 360, 10)
    file, label = found.validation[5]
    assert images.decode(file).shape == (32, 32, 3)
    assert file.parent.name == str(label)
    assert pictures.load("digits32") == found
