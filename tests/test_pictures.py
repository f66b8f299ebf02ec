"""Sets of pictures: folders, archives, and what to do about sets that are not here."""

import errno
import hashlib
import io
import os
import re
import shutil
import stat
import sys
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from dlc import data, files
from dlc.data import DataUnavailable, _fetch, _folder, imagenette, images, pictures, stream
from dlc.data.__main__ import main
from dlc.data._published import File
from dlc.errors import UserError
from experiments.bench import vision_torch


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


@pytest.mark.parametrize("name", ["digits", "digits32"])  # with one colour, and with three
def test_a_set_of_arrays_written_as_pictures(name, tmp_path, capsys):
    assert main([name, "--pictures", str(tmp_path / "new")]) == 0
    assert "1,437 train and 360 val pictures" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    found, arrays = pictures.folder(tmp_path / "new"), data.load(name)
    assert found.classes == arrays.classes
    assert (len(found.train), len(found.validation)) == (1437, 360)
    for file, label in found.train[::200]:
        assert label == arrays.train["label"][int(file.stem)]
        difference = images.decode(file).astype(int) - arrays.train["image"][int(file.stem)]
        assert np.abs(difference).mean() < 3


def test_names_of_classes_become_names_of_folders(tmp_path):
    split = {"image": np.zeros((2, 8, 8, 3), np.uint8), "label": np.arange(2, dtype=np.int32)}
    pictures.write(data.Dataset("odd", split, split, ("../up", "a b"), ""), tmp_path / "new")
    assert pictures.folder(tmp_path / "new").classes == ("___up", "a_b")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "--pictures writes one set of images: name it, for example cifar10 --pictures FOLDER"),
        (["digits", "mnist"], "--pictures writes one set of images: name it"),
        (["tiny_shakespeare"], "--pictures writes one set of images: name it"),
        (["imagenette"], "there is no data set 'imagenette': choose from mnist"),
        (["digits"], "here is there already: give a new folder"),
        (["digits", "--pictures", "none/new"], "cannot write none/new: No such file or directory"),
        (["digits", "--pictures", "here/file/new"], "cannot write here/file/new: Not a directory"),
    ],
)
def test_what_cannot_be_written_as_pictures(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").touch()
    assert main(["--pictures", "here", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "here"]


# What is no picture, and what cannot be read


def test_hidden_and_system_files_of_any_depth_are_no_pictures(tmp_path):
    halves = {f"{half}/{name}": 2 for half in ("train", "val") for name in ("china", "flower/red/dark")}
    photographs(tmp_path, halves, side=8)
    expected = pictures.folder(tmp_path)
    copy = (tmp_path / "train" / "china" / "00.jpg").read_bytes()
    places = (
        ".ipynb_checkpoints",
        "__MACOSX",
        "@eaDir/00.jpg",
        "$RECYCLE.BIN",
        "lost+found",
        ".Trash-1000",
        "#recycle",
    )
    for folder in ("", "train", "train/china", "val/flower", "train/flower/red/dark", "val/china/new/.git"):
        for place in (*places, "System Volume Information", "@Recycle", ".@__thumb"):
            (tmp_path / folder / place).mkdir(parents=True)
            (tmp_path / folder / place / "01.jpg").write_bytes(copy)
        for name in ("._00.jpg", ".DS_Store", ".hidden.png", "Thumbs.db", "desktop.ini", "00.jpg~", "list.txt"):
            (tmp_path / folder / name).write_bytes(b"\0\0\0")
    assert pictures.folder(tmp_path) == expected


@pytest.mark.parametrize("mark", [{"st_file_attributes": stat.FILE_ATTRIBUTE_HIDDEN}, {"st_flags": stat.UF_HIDDEN}])
def test_what_windows_and_macos_hide_is_hidden(mark):
    assert _folder._marked_hidden(SimpleNamespace(**mark))
    assert not _folder._marked_hidden(SimpleNamespace(st_file_attributes=32, st_flags=0))


def test_links_are_followed_and_loops_end(some, tmp_path):
    for name in ("china", "flower"):
        shutil.copytree(some / "train" / name, tmp_path / "set" / name)
    photographs(tmp_path, {"elsewhere/deep": 3, "third": 4}, side=8)
    inside = tmp_path / "set" / "china"
    (inside / "more").symlink_to(tmp_path / "elsewhere")
    (inside / "one.jpg").symlink_to(tmp_path / "elsewhere" / "deep" / "00.jpg")
    (tmp_path / "set" / "third").symlink_to(tmp_path / "third")
    before = every(pictures.folder(tmp_path / "set"))
    assert len(before) == 12 + 11 + 3 + 1 + 4
    (inside / "self").symlink_to(inside)
    (inside / "up").symlink_to("../..")
    (tmp_path / "elsewhere" / "back").symlink_to(inside)
    assert every(pictures.folder(tmp_path / "set")) == before


def every(found):
    return sorted(file for file, _ in (*found.train, *found.validation))


@pytest.mark.peers
def test_the_pictures_are_those_of_torchvision(some, tmp_path):
    pytest.importorskip("torch")
    vision_torch.define_operators()  # the import may fail without this
    datasets = pytest.importorskip("torchvision.datasets")
    shutil.copytree(some / "train", tmp_path, dirs_exist_ok=True)
    photographs(tmp_path, {"flower/album.jpg/deep": 2}, side=8)
    (tmp_path / "china" / "link").symlink_to(some / "val" / "china")
    for suffix in ("JPG", "Jpeg", "JPEG"):
        shutil.copy(tmp_path / "china" / "00.jpg", tmp_path / "china" / f"upper.{suffix}")
    for suffix in ("png", "ppm", "pgm", "bmp", "tif", "tiff", "webp"):
        Image.new("RGB", (9, 9)).save(tmp_path / "flower" / f"kind.{suffix}")
    theirs = datasets.ImageFolder(tmp_path)
    ours = pictures.folder(tmp_path)
    assert sorted((*ours.train, *ours.validation)) == sorted((Path(file), label) for file, label in theirs.samples)
    assert ours.classes == tuple(theirs.classes)


def spoil(name, folder):
    """Makes `folder / name` something that cannot be read as a picture."""
    file, whole = folder / name, (folder / "00.jpg").read_bytes()
    if name.startswith("link"):
        file.symlink_to(file if "itself" in name else folder / "gone")
    elif name.startswith("pipe"):
        os.mkfifo(file)
    else:
        draw = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        encoded = io.BytesIO()
        if name not in ("empty.jpg", "text.jpg", "cut.jpg", "zeros.jpg"):
            Image.fromarray(draw).save(encoded, Image.registered_extensions()[file.suffix])
        content = {
            "empty.jpg": b"",
            "text.jpg": b"no picture",
            "cut.jpg": whole[: len(whole) // 2],
            "zeros.jpg": bytes(99),
        }
        file.write_bytes(content.get(name, encoded.getvalue()[:-300]))


@pytest.mark.parametrize("half", ["train", "val"])
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("empty.jpg", "is not an image that can be read: give a JPEG or PNG"),
        ("text.jpg", "is not an image that can be read: give a JPEG or PNG"),
        ("zeros.jpg", "is not an image that can be read: give a JPEG or PNG"),
        ("cut.jpg", "is damaged or cut short: fetch it again"),
        *((f"cut.{kind}", "is (damaged or cut|not an image)") for kind in ("png", "bmp", "tif", "webp", "ppm")),
        ("link.jpg", "is a link to .*gone, which cannot be read: No such file"),
        ("link", "is a link to .*gone, which cannot be read: No such file"),
        ("link_to_itself.png", "is a link to .*link_to_itself.png, which cannot be read: Too many"),
        ("pipe.jpg", "is not a file"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_by_the_listing(tmp_path, half, name, sentence):
    photographs(tmp_path, dict.fromkeys(("train/china", "train/flower", "val/china", "val/flower"), 1), side=40)
    spoil(name, tmp_path / half / "flower")
    with pytest.raises(
        UserError, match=rf"^1 of the pictures in .* mend or remove them\n  \S*{half}/flower/{name} {sentence}"
    ):
        pictures.folder(tmp_path)


def test_many_that_cannot_be_read_are_counted(tmp_path, monkeypatch, capsys):
    photographs(tmp_path, dict.fromkeys(("train/china", "train/flower", "val/china", "val/flower"), 12), side=8)
    for file in (tmp_path / "train" / "china").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"^12 of the pictures (?s:.*)\n  \.\.\.$") as raised:
        pictures.folder(tmp_path)
    assert len(str(raised.value).splitlines()) == 12
    monkeypatch.setattr(_folder, "LOOKING", 0.0)
    monkeypatch.setattr(_folder, "MANY", 1)
    shutil.copytree(tmp_path / "val" / "china", tmp_path / "train" / "china", dirs_exist_ok=True)
    pictures.folder(tmp_path)
    said = capsys.readouterr().err
    assert "looking at the first and last bytes of 48 pictures" in said
    assert "looked at 1 of 48 pictures in 0 s; the others are read in their turn" in said


def test_what_may_not_be_read_is_said(tmp_path, monkeypatch):
    photographs(tmp_path, dict.fromkeys(("train/china", "train/flower", "val/china", "val/flower"), 1), side=8)
    closed = os.fspath(tmp_path / "train" / "china")

    def scandir(folder):
        if os.fspath(folder) == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), closed)
        return os.scandir(folder)

    monkeypatch.setattr(_folder, "os", SimpleNamespace(**{**vars(os), "scandir": scandir}))
    with pytest.raises(UserError, match=r"\n  .*train/china cannot be listed: Permission denied$"):
        pictures.folder(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_names_need_not_be_utf8(tmp_path, capsys):
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    photographs(odd, {os.fsdecode(b"flower\xff"): 30, "china": 30}, side=8)
    for file in (odd / "china").iterdir():
        file.rename(file.with_name(os.fsdecode(b"\xe9") + file.name))
    found = pictures.folder(odd)
    assert (found.name, found.classes) == ("caf\\udce9", ("china", "flower\\udcff"))
    one = stream.Batches(found.train, partial(stream.random_part, how="area", size=8), batch=4, seed=0)
    assert one(0, 1)["image"].shape == (1, 4, 8, 8, 3)
    one.close()
    file, _ = found.train[0]
    file.write_bytes(b"")
    with pytest.raises(UserError, match="is not an image") as raised:
        images.decode(file)
    print(raised.value)
    assert "caf\\udce9" in capsys.readouterr().out
    files.write_whole(tmp_path / "name.txt", os.fspath(odd))
    assert (tmp_path / "name.txt").read_text() == f"{tmp_path}/caf\\udce9"
