"""From disk to device: crops, and batches that are a function of their number."""

import errno
import multiprocessing
import os
import signal
import socket
from functools import partial
from types import SimpleNamespace

import cli
import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from dlc import process, sharding
from dlc.data import _workers, images, pictures, stream
from dlc.errors import Stopped, UserError


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


def plain(image, side, crop, smooth="bilinear"):
    return images.centre_crop(images.resize_shorter(image, side, smooth), crop)


@pytest.mark.parametrize("smooth", ["bilinear", "bicubic"])
def test_the_centre_is_cut_from_the_resized_picture(smooth):
    draw = np.random.default_rng(0)
    for height, width in ((30, 30), (31, 48), (64, 31), (256, 300), (20, 320), (319, 20), (1, 16), (19, 3)):
        image = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        np.testing.assert_array_equal(images.centre(image, 32, 28, smooth), plain(image, 32, 28, smooth))


@pytest.mark.parametrize(("height", "width"), [(1, 800), (801, 1), (3, 800), (7, 311), (301, 7), (10, 202), (13, 1000)])
def test_the_ends_of_a_long_picture_are_cut_off_before(monkeypatch, height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected, resize, sizes = plain(image, 32, 28), images.resize, []
    monkeypatch.setattr(images, "resize", lambda image, size, smooth: sizes.append(size) or resize(image, size, smooth))
    found = images.centre(image, 32, 28)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert max(sizes[0]) <= 32 * (images.LONGEST + 4)


@pytest.mark.parametrize("shape", [(1, 8000, 3), (8000, 1, 3), (1, 1, 3)])
def test_pictures_of_any_shape_are_read(tmp_path, shape):
    Image.fromarray(np.full(shape, 77, np.uint8)).save(tmp_path / "thin.png")
    example = (tmp_path / "thin.png", 0)
    views = [
        partial(stream.random_part, rng=np.random.default_rng(0), how=how, size=8) for how in ("fixed", "scale", "area")
    ]
    for view in (*views, partial(stream.centre, side=8)):
        np.testing.assert_array_equal(view(example)["image"], np.full((8, 8, 3), 77))


# Batches


def batches(some, workers=0, seed=0, **changes):
    view = partial(stream.random_part, how="area", size=16)
    return stream.Batches(pictures.folder(some).train, view, batch=4, seed=seed, workers=workers, **changes)


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


def test_workers_make_the_same_batches_until_one_dies(some):
    alone, two = batches(some), batches(some, workers=2)
    try:
        assert_same(two(3, 5), alone(3, 5))
        assert_same(two(8, 2), alone(8, 2))
        multiprocessing.active_children()[0].kill()
        with pytest.raises(Stopped, match=r"^a worker process that makes batches has died, most often because memory"):
            two(10, 50)
    finally:
        alone.close()
        two.close()


RESTARTS = ((0, 3), (3, 1), (9, 2), (1, 4), (5, 1))  # (first, count)


def numbers(number, rng=None):
    return {"number": np.int32(number), "drawn": np.float64(0 if rng is None else rng.random())}


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(
    "rows",
    [
        [range(8)],
        [range(4), range(4, 8)],
        [range(2), range(2, 4), range(4, 6), range(6, 8)],
        [[0, 3, 5], [1], [2, 4, 6, 7]],  # of meshes whose devices lie in another order
    ],
)
def test_the_rows_of_several_hosts_make_up_the_batches_of_one(seed, rows):
    whole = stream.Batches(range(30), numbers, batch=8, seed=seed)
    parts = [stream.Batches(range(30), numbers, batch=8, seed=seed, rows=own) for own in rows]
    for first, count in RESTARTS:
        expected = whole(first, count)
        for part, own in zip(parts, rows, strict=True):
            got, like = part(first, count), part.like(first, count)
            assert_same(got, {name: leaf[:, own] for name, leaf in expected.items()})
            assert {name: leaf.shape for name, leaf in like.items()} == {name: got[name].shape for name in got}
    assert_same(parts[0].one(5), {name: leaf[0] for name, leaf in whole(5, 1).items()})
    for each in (whole, *parts):
        each.close()


def test_a_run_goes_on_with_another_number_of_hosts_and_workers(some):
    """Crops and mirror images are those of one host: they are drawn by the number of the example in the whole."""
    one, half = batches(some), [batches(some, rows=range(2)), batches(some, workers=1, rows=range(2, 4))]
    expected = one(0, 9)
    for first, count in ((0, 2), (5, 4)):
        got = [part(first, count) for part in half]
        joined = {name: np.concatenate([part[name] for part in got], 1) for name in expected}
        assert_same(joined, {name: leaf[first : first + count] for name, leaf in expected.items()})
    for each in (one, *half):
        each.close()


def test_an_evaluation_on_several_hosts_counts_every_example_once(some):
    found = pictures.folder(some).validation
    parts = [stream.Batches(found, partial(stream.centre, side=16), batch=4, rows=[row]) for row in range(4)]
    assert sum(part(0, part.steps)["counts"].sum() for part in parts) == len(found) == 7
    for part in parts:
        part.close()


def test_two_processes_hold_the_batches_of_one():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [cli.start("streamed", port, host, 2) for host in range(2)]
    results = [cli.finish(process) for process in both]
    assert [code for code, *_ in results] == [0, 0], results[0][2] + results[1][2]
    assert [out.splitlines()[-1] for _, out, _ in results] == ["0 1 2 3", "4 5 6 7"]  # after those of JAX's network


def test_in_order_the_last_batch_is_filled_up(some):
    found = pictures.folder(some)
    held = stream.Batches(found.validation, partial(stream.centre, side=16), batch=4)
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


def test_shapes_are_those_of_one_example(some):
    devices = sharding.mesh("data=4")
    one = batches(some, sharding=sharding.split(devices, axis=1))
    like, got = one.like(0, 2), one(0, 2)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), got) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), like
    )
    assert_same(got, batches(some)(0, 2))  # the look at one example changes nothing
    one.close()


def boxes(example, rng=None):
    number = example if rng is None else example + rng.integers(3)
    return {
        "image": np.full((4, 5, 3), number, np.uint8),
        "objects": {"box": np.arange(8, dtype=np.float32).reshape(2, 4) + number, "there": np.array([True, False])},
        "caption": np.full(7, number, np.int32),
        "mask": np.zeros((4, 5), np.bool_),
    }


@pytest.mark.parametrize("seed", [None, 3])
def test_examples_may_be_any_tree_of_arrays(seed):
    found = stream.Batches(range(5), boxes, batch=2, seed=seed)
    like, got = found.like(0, 3), found(0, 3)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), got) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), like
    )
    assert got["objects"]["box"].shape == (3, 2, 2, 4)
    np.testing.assert_array_equal(got["objects"]["box"][..., 0, 0], got["caption"][..., 0])
    np.testing.assert_array_equal(found.one(1)["caption"], got["caption"][1])
    if seed is None:
        assert got["caption"][..., 0].tolist() == [[0, 1], [2, 3], [4, 4]]
        assert got["counts"].tolist() == [[True, True], [True, True], [True, False]]
    found.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_named(tmp_path, workers):
    photographs(tmp_path, {"train/china": 3, "train/flower": 3, "val/china": 1, "val/flower": 1})
    file = tmp_path / "train" / "flower" / "01.jpg"
    one = batches(tmp_path, workers)
    file.write_bytes(file.read_bytes()[:500])  # after the listing, which would have said so
    with pytest.raises(UserError, match=r"^.*train/flower/01.jpg is damaged or cut short: fetch it again"):
        one(0, 3)
    one.close()


@pytest.mark.parametrize(("cores", "batch"), [(1, 4), (64, 4), (64, 7), (2, 64)])
def test_what_waits_is_bounded_in_bytes(monkeypatch, cores, batch):
    monkeypatch.setattr(process, "cores", lambda: cores)
    monkeypatch.setattr(stream, "AHEAD", 2**20)
    made = []

    def view(example, rng):
        made.append(example)
        return {"number": np.full(2**16, example, np.uint8)}  # sixteen of them are as large as may wait

    one = stream.Batches(range(100), view, batch=batch, seed=0)
    several = one(0, 3)["number"][..., 0]
    one.close()
    assert len(made) <= 3 * batch + 16 + 1  # and the one that was looked at
    np.testing.assert_array_equal(several, [one.one(i)["number"][:, 0] for i in range(3)])


def end(example, *, how):
    if how is signal.SIGBUS:
        os.kill(os.getpid(), how)
    raise OSError(how, os.strerror(how))


@pytest.mark.parametrize("how", [signal.SIGBUS, errno.ENOSPC])
def test_full_shared_memory_is_not_a_full_disk(how):
    """Writing to a page that it has no room for ends a process with SIGBUS."""
    one = stream.Batches([0, 1], partial(end, how=how), batch=2, workers=1)
    one._example = {"number": np.zeros(3)}
    with pytest.raises(
        UserError, match=r"^shared memory, .* (is full|cannot be had \(No space.*\)): make /dev/shm larger"
    ):
        one(0, 1)
    one.close()


def test_no_pictures_at_all():
    with pytest.raises(UserError, match=r"^there are no examples to make batches of$"):
        stream.Batches([], stream.centre, batch=2)


def test_a_worker_leaves_signals_to_its_parent(monkeypatch):
    begun, handlers = [], {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(_workers.threading, "Thread", lambda **how: SimpleNamespace(start=lambda: begun.append(how)))
    try:
        _workers.work_for(1, 0, 1)
        assert {signal.getsignal(signum) for signum in handlers} == {signal.SIG_IGN}
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    assert len(begun) == 1
