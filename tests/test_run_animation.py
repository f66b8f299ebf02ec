"""Animations that a run leaves."""

import numpy as np
import pytest
from PIL import Image, ImageSequence

from dlc.run.run import Run


def frames(count):
    """A square that moves along a line, in four colours."""
    whole = np.full((count, 20, 60, 3), (255, 250, 240), np.uint8)
    for i in range(count):
        whole[i, 5:15, i : i + 10] = (200, 85, 61)
        whole[i, 15:, :] = (27, 58, 92)
        whole[i, :2, :] = (0, 158, 115)
    return whole


def test_an_animation_shows_its_frames_and_lasts_as_long_as_asked(tmp_path):
    wanted = frames(30)
    Run(tmp_path).animation("square", wanted, seconds=1.25)
    with Image.open(tmp_path / "figures" / "square.gif") as gif:
        assert gif.info["loop"] == 0  # over and over
        seen = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(gif)]
    assert sum(lasts for _, lasts in seen) == 1250
    np.testing.assert_array_equal([image for image, _ in seen], wanted)
    assert (tmp_path / "figures" / "square.gif").stat().st_size < 10_000


def test_without_a_folder_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Run().animation("square", frames(3), seconds=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "seconds"),
    [(frames(2)[0], 1), (frames(2) / 255.0, 1), (frames(2)[..., :1], 1), (frames(60), 1), (frames(2)[:0], 1)],
)
def test_frames_of_another_form_are_one_sentence(wrong, seconds):
    with pytest.raises(ValueError, match="an animation takes uint8 frames"):
        Run().animation("square", wrong, seconds)
