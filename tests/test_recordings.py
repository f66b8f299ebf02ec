"""Recordings that people bring: the answers of sites, their images, and a sentence for every mistake."""

import re

import numpy as np
import pytest
from PIL import Image

from dlc.data import recordings
from dlc.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name, shade in (("b", 200), ("a", 100), ("c", 0)):
        Image.fromarray(np.full((9, 12, 3), shade, np.uint8)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    return tmp_path


def test_images_are_those_of_the_folder_in_the_order_of_their_names(folder):
    files = recordings.stimuli(folder / "images")
    assert [path.name for path in files] == ["a.png", "b.png", "c.png"]
    assert recordings.squares(files, 6, 3).shape == (3, 6, 6, 3)
    grey = recordings.squares(files, 6, 1)
    assert grey.shape == (3, 6, 6, 1)
    assert grey[:, 0, 0, 0].tolist() == [100, 200, 0]


def test_sites_are_read_as_they_were_written(folder):
    np.save(folder / "sites.npy", np.arange(6).reshape(3, 2))
    found = recordings.sites(folder / "sites.npy", 3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.arange(6).reshape(3, 2))


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros(3), "must be an array of images x sites, not of shape (3,)"),
        (np.zeros((3, 2, 2)), "must be an array of images x sites, not of shape (3, 2, 2)"),
        (np.zeros((0, 2)), "must be an array of images x sites, not of shape (0, 2)"),
        (np.zeros((4, 2)), "has answers to 4 images, but there are 3 images"),
        (np.full((3, 2), np.nan), "holds answers that are not finite numbers: leave those images or sites out"),
        (np.full((3, 2), "a"), "holds answers that are not finite numbers: leave those images or sites out"),
    ],
)
def test_an_array_of_another_form_is_one_sentence(folder, array, sentence):
    np.save(folder / "sites.npy", array)
    with pytest.raises(UserError, match=f"^{re.escape(f'{folder}/sites.npy {sentence}')}$"):
        recordings.sites(folder / "sites.npy", 3)


def test_a_file_that_is_no_array_is_one_sentence(folder):
    (folder / "half.npz").write_bytes(b"PK\x03\x04 the rest is missing")
    for name in ("images/notes.txt", "missing.npy", "half.npz"):
        with pytest.raises(UserError, match=r"cannot be read: give an array of images x sites that numpy\.save has"):
            recordings.sites(folder / name, 3)
    np.savez(folder / "several.npz", a=np.zeros((3, 2)))
    with pytest.raises(UserError, match=r"must be an array of images x sites, not several arrays$"):
        recordings.sites(folder / "several.npz", 3)


def test_a_folder_without_images_is_one_sentence(folder):
    for place in (folder, folder / "nowhere"):
        with pytest.raises(UserError, match=r"has no images: give a folder of image files, one for each row"):
            recordings.stimuli(place)
