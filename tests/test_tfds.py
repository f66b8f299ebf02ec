"""What TensorFlow Datasets prepared, read without it; and sets that it prepares when they are asked for as tfds:NAME.

Small sets are prepared for real, once, by TensorFlow Datasets in a process of its own, without TensorFlow.
"""

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlc.data import (
    SETS,
    DataDamaged,
    DataUnavailable,
    _array_record,
    _tfds,
    data_dir,
    is_ready,
    load,
    pictures,
    stream,
    text,
)
from dlc.data.__main__ import main
from dlc.errors import UserError

VERSE = "".join(f"First Citizen:\nLine {i}, speak.\n\n" for i in range(100))
COUNTS = (120, 30)
SHAPES = {"mnist": (28, 28, 1), "cifar100": (32, 32, 3)}

PREPARE = """
import json, sys
from pathlib import Path
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

root, verse = Path(sys.argv[1]), sys.argv[2]

def prepare(upstream, splits, make, **options):
    parent = tfds.builder_cls(upstream)
    with tfds.core.registered.skip_registration():
        class Builder(parent):
            name, pkg_dir_path = parent.name, parent.pkg_dir_path
            def _split_generators(self, manager):
                if upstream == "cifar100":
                    self.info.features["label"].names = [f"class {i}" for i in range(100)]
                return {split: make(self, split) for split in splits}
    Builder(data_dir=root, file_format="array_record", **options).download_and_prepare()

def images(builder, split):
    arrays = dict(np.load(root / f"{builder.name}.npz"))  # read once
    for i, label in enumerate(arrays[f"{split}_label"].tolist()):
        example = {"image": Image.fromarray(arrays[f"{split}_image"][i].squeeze()), "label": label}
        if builder.name == "cifar100":
            example |= {"coarse_label": label // 5, "id": f"{split}_{i:05d}"}
        yield i, example

def verses(builder, split):
    ends = [0, int(0.9 * len(verse)), int(0.95 * len(verse)), len(verse)]
    i = ["train", "validation", "test"].index(split)
    return builder._generate_examples(split, verse[ends[i]:ends[i + 1]])

def photographs(builder, split):
    for i in range(23 if split == "train" else 7):
        label = ["n01440764", "n02102040"][i % 2]
        yield f"{label}{i}", {"image": (root / f"{i % 4}.jpg").read_bytes(), "label": label}

prepare("mnist", ["train", "test"], images)
prepare("cifar100", ["train", "test"], images)
prepare("tiny_shakespeare", ["train", "validation", "test"], verses)
prepare("imagenette", ["train", "validation"], photographs, config="320px-v2")
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder as TensorFlow Datasets leaves it, and the arrays from which it was prepared."""
    root = tmp_path_factory.mktemp("prepared")
    draw, arrays = np.random.default_rng(0), {}
    for name, shape in SHAPES.items():
        arrays[name] = {}
        for split, count in zip(("train", "test"), COUNTS, strict=True):
            arrays[name][f"{split}_image"] = draw.integers(0, 256, (count, *shape), np.uint8)
            arrays[name][f"{split}_label"] = (np.arange(count) * 7 % 10).astype(np.int32)
        np.savez(root / f"{name}.npz", **arrays[name])
    for i in range(4):
        Image.fromarray(draw.integers(0, 256, (40, 50, 3), np.uint8)).save(root / f"{i}.jpg")
    command = [sys.executable, "-W", "ignore", "-c", PREPARE, os.fspath(root), VERSE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root, arrays


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch):
    """No address that leads off this machine, and the counts of the small sets."""
    monkeypatch.setenv("no_proxy", "*")
    for name in SHAPES:
        published = SETS[name].published
        files = tuple(file._replace(url=f"http://127.0.0.1:9/{file.name}") for file in published.files)
        changed = SETS[name]._replace(published=published._replace(files=files), counts=COUNTS)
        monkeypatch.setitem(SETS, name, changed)


def put(prepared, name, place=None):
    """Copies a prepared set to where it is looked for; returns its folder."""
    place = place or data_dir() / "tfds"
    shutil.copytree(prepared[0] / name, place / name)
    return next(folder.parent for folder in (place / name).rglob("features.json"))


def assert_arrays(found, arrays):
    for split in ("train", "test"):
        for key, dtype in (("image", np.uint8), ("label", np.int32)):
            values = getattr(found, split)[key]
            assert values.dtype == dtype
            np.testing.assert_array_equal(values, arrays[f"{split}_{key}"])


# Sets of our own


@pytest.mark.parametrize("name", SHAPES)
def test_prepared_arrays_come_in_the_order_of_the_original_files(name, prepared, tmp_path, monkeypatch, capsys):
    put(prepared, name)
    assert main([]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{name} "))
    assert line.split()[1] == "found"
    found = load(name)
    assert found.source == f"tfds {name} {SETS[name].published.tfds[0]}"
    assert found.classes == SETS[name].classes
    assert_arrays(found, prepared[1][name])
    assert capsys.readouterr() == ("", "")
    assert "tensorflow_datasets" not in sys.modules
    shutil.rmtree(data_dir())
    put(prepared, name, tmp_path / "own")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "own"))  # where the user's own TFDS keeps it
    assert_arrays(load(name), prepared[1][name])


def test_a_damaged_prepared_folder_is_ignored(prepared, monkeypatch, capsys):
    folder = put(prepared, "mnist")
    with monkeypatch.context() as patched:
        patched.setitem(SETS, "mnist", SETS["mnist"]._replace(counts=(121, 30)))
        with pytest.raises(DataUnavailable):
            load("mnist")
    assert f"{folder} is ignored: it holds 120 train records instead of 121" in capsys.readouterr().err
    shard = next(folder.glob("*train.array_record*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole.replace(b"IHDR", b"IHXX"))
    with pytest.raises(DataUnavailable):
        load("mnist")
    assert " is ignored: record 0 of " in capsys.readouterr().err
    os.truncate(shard, len(whole) // 2)
    with pytest.raises(DataUnavailable):
        load("mnist")
    assert " is ignored: " in capsys.readouterr().err


def with_checksum(content):
    return content + _array_record.masked(_array_record.crc32c(content)).to_bytes(4, "little")


def test_the_checksum_of_records_is_that_of_its_standard():
    """RFC 3720, appendix B.4, and the check value of the CRC catalogues."""
    known = {b"123456789": 0xE3069283, bytes(32): 0x8A9136AA, b"\xff" * 32: 0x62A8AB43, bytes(range(32)): 0x46DD794E}
    assert {content: _array_record.crc32c(content) for content in known} == known
    assert _array_record.crc32c(b"") == 0


def test_tfrecords_are_read_too(prepared, capsys):
    """TFRecord is what TensorFlow Datasets writes by default: length, checksum, record, checksum."""
    folder = put(prepared, "mnist")
    for split in ("train", "test"):
        records = _array_record.Records(folder, "mnist", split).source
        raw = [records[i] for i in range(len(records))]
        content = b"".join(with_checksum(len(one).to_bytes(8, "little")) + with_checksum(one) for one in raw)
        (folder / f"mnist-{split}.tfrecord-00000-of-00001").write_bytes(content)
        (folder / f"mnist-{split}.array_record-00000-of-00001").unlink()
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    found = load("mnist")
    assert found.source == "tfds mnist 3.0.1"
    assert_arrays(found, prepared[1]["mnist"])
    shutil.rmtree(data_dir() / "arrays")
    shard = folder / "mnist-train.tfrecord-00000-of-00001"
    whole = shard.read_bytes()
    for at, sentence in (
        (100, "record 0 of .* is damaged .*its checksum differs"),
        (3, "is damaged at byte 0|cut short"),
    ):
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DataUnavailable):
            load("mnist")
        assert re.search(sentence, capsys.readouterr().err)
    shard.write_bytes(whole)
    os.truncate(shard, 5000)
    with pytest.raises(DataUnavailable):
        load("mnist")
    assert "mnist-train.tfrecord-00000-of-00001 is cut short: prepare the set again" in capsys.readouterr().err


def test_other_formats_are_ignored(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"fileFormat": "riegeli"}))
    with pytest.raises(DataUnavailable):
        load("mnist")
    assert f"{folder} is ignored: it is written as riegeli, which cannot be read here" in capsys.readouterr().err


def test_prepared_text(prepared, monkeypatch, capsys):
    folder = put(prepared, "tiny_shakespeare")
    published = text.TEXTS["tiny_shakespeare"].published
    (file,) = published.files
    sha256 = hashlib.sha256(VERSE.encode()).hexdigest()
    for now in (sha256, "another"):
        files = (file._replace(url="http://127.0.0.1:9/input.txt", sha256=now),)
        changed = text.TEXTS["tiny_shakespeare"]._replace(published=published._replace(files=files))
        monkeypatch.setitem(text.TEXTS, "tiny_shakespeare", changed)
        if now == sha256:
            found = text.corpus("tiny_shakespeare")
            assert found.train + found.validation == VERSE
            assert found.source == "tfds tiny_shakespeare 1.0.0"
            assert text.state(changed) == ("ready", "tfds tiny_shakespeare 1.0.0")
            assert capsys.readouterr() == ("", "")
    with pytest.raises(DataUnavailable):
        text.corpus("tiny_shakespeare")
    assert f"{folder} is ignored: it holds another text" in capsys.readouterr().err


def test_prepared_photographs(prepared):
    folder = put(prepared, "imagenette")
    found = pictures.load("imagenette")
    assert found.source == "tfds imagenette 320px-v2/1.0.0"
    assert found.classes[:3] == ("tench", "English springer", "cassette player")
    assert (len(found.classes), len(found.train), len(found.validation)) == (10, 23, 7)
    contents = {(prepared[0] / f"{i}.jpg").read_bytes() for i in range(4)}
    assert {found.train[i][0] for i in range(23)} == contents
    assert sorted(found.train[i][1] for i in range(23)) == [0] * 12 + [1] * 11
    assert "tensorflow_datasets" not in sys.modules
    batches = stream.Batches(found.train, partial(stream.random_part, how="area", size=8), batch=4, seed=0)
    assert batches.one(0)["image"].shape == (4, 8, 8, 3)

    content = found.train[3][0]
    cut = type(content)(content[:300])
    cut.where = content.where
    with pytest.raises(UserError, match=r"^record 3 of .*1.0.0 train is damaged or cut short"):
        stream.centre((cut, 0), side=8)

    (shard,) = folder.glob("*-train.array_record*")
    info = json.loads((folder / "dataset_info.json").read_text())
    for split in info["splits"]:
        split["shardLengths"] = ["24"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"holds 23 train records instead of 24: prepare it again$"):
        pictures.load("imagenette")
    shard.unlink()
    with pytest.raises(UserError, match=r"train.array_record-00000-of-00001 is missing: prepare imagenette again$"):
        pictures.load("imagenette")
    (folder / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    with pytest.raises(UserError, match=r"is not a folder that TensorFlow Datasets prepared \(KeyError\('splits'\)\)"):
        pictures.load("imagenette")


def test_an_example_reads_packed_and_single_numbers_and_skips_others():
    def field(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    def pair(name, feature):
        return field(1, field(1, name) + field(2, feature))

    image = pair(b"image", field(1, field(1, b"jpeg")))
    others = pair(b"area", field(2, field(1, b"\0" * 4))) + pair(b"one", field(2, b"\x0d\0\0\0\0")) + pair(b"no", b"")
    others += pair(b"empty", field(1, b""))
    for number in (field(1, b"\x97\x03"), b"\x08\x97\x03"):
        record = field(1, image + others + pair(b"label", field(3, number)))
        assert _array_record.example(record) == {"image": b"jpeg", "label": 407}
    with pytest.raises(ValueError, match="not an example"):
        _array_record.example(field(1, image)[:-3])


# Sets asked for as tfds:NAME


def test_a_prepared_set_is_read_as_it_is(prepared, capsys):
    assert not is_ready("tfds:cifar100")
    put(prepared, "cifar100")
    assert main([]) == 0
    assert re.search(r"\ntfds:cifar100:3.0.2 +found +\S+ kB +to be read from .*3.0.2\n", capsys.readouterr().out)
    found = load("tfds:cifar100")
    assert (found.name, found.source) == ("tfds:cifar100", "tfds cifar100 3.0.2")
    assert found.classes == tuple(f"class {i}" for i in range(100))
    for split, count in zip(("train", "test"), COUNTS, strict=True):
        order = _tfds.original_order(split, count)
        for key in ("image", "label"):
            np.testing.assert_array_equal(getattr(found, split)[key], prepared[1]["cifar100"][f"{split}_{key}"][order])
    assert "tensorflow_datasets" not in sys.modules
    shutil.rmtree(data_dir() / "tfds")
    assert is_ready("tfds:cifar100")
    np.testing.assert_array_equal(load("tfds:cifar100").train["image"], found.train["image"])
    assert main([]) == 0
    assert re.search(r"\ntfds:cifar100:3.0.2 +ready +\S+ kB +tfds cifar100 3.0.2\n", capsys.readouterr().out)
    assert main(["tfds:cifar100"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("tfds:cifar100: 120 train, 30 test, 32x32x3; from tfds cifar100 3.0.2, in ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": ["-1", "-1", "3"]}, "has images of several sizes: choose an image classification set with images"),
        ({"dtype": "uint16"}, "has images of uint16: choose"),
        ({"splits": ["train"]}, "has the splits train, not train and test or validation: choose"),
        ({"kind": "tensorflow_datasets.core.features.text_feature.Text"}, "is not image classification, it has "),
    ],
)
def test_what_is_not_image_classification_of_one_size_is_refused(change, said, prepared):
    folder = put(prepared, "cifar100")
    info, features = (json.loads((folder / name).read_text()) for name in ("dataset_info.json", "features.json"))
    image = features["featuresDict"]["features"]["image"]
    image["pythonClassName"] = change.get("kind", image["pythonClassName"])
    image["image"]["dtype"] = change.get("dtype", "uint8")
    image["image"]["shape"]["dimensions"] = change.get("shape", ["32", "32", "3"])
    info["splits"] = [split for split in info["splits"] if split["name"] in change.get("splits", ("train", "test"))]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match=f"^tfds:cifar100 {said}") as caught:
        load("tfds:cifar100")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("features.json", '{"featuresDict": {"features": []}}', "is not a folder that TensorFlow Datasets prepared"),
        (
            "dataset_info.json",
            '{"fileFormat": "array_record", "supervisedKeys": []}',
            "is not a folder that TensorFlow",
        ),
        ("label.labels.txt", b"\xff\xfe", "is not a folder that TensorFlow Datasets prepared"),
        ("label.labels.txt", b"one\ntwo\n", "has labels beyond its 2 classes: prepare it again"),
    ],
)
def test_a_damaged_prepared_set_is_named(file, content, said, prepared):
    folder = put(prepared, "cifar100")
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataDamaged, match=f"^{folder} {said}"):
        load("tfds:cifar100")


def test_the_newest_version_and_the_default_configuration_are_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for folder in ("plain/1.0.0", "plain/1.10.0", "plain/1.9.0", "two/a/1.0.0", "two/b/1.0.0", "one/only/2.0.0"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "dataset_info.json").write_text('{"fileFormat": "array_record"}')

    def newest(name):
        found = _tfds.newest(data_dir(), _tfds.parse(name))
        return found and os.fspath(found.relative_to(tmp_path))

    assert newest("tfds:plain") == "plain/1.10.0"
    assert newest("tfds:plain:1.9.0") == "plain/1.9.0"
    assert newest("tfds:plain:3.0.0") is None
    assert newest("tfds:nothing") is None
    assert newest("tfds:one") == newest("tfds:one/only") == "one/only/2.0.0"
    assert newest("tfds:two/b") == "two/b/1.0.0"
    with pytest.raises(UserError, match=r"two holds several configurations: name one of tfds:two/a, b$"):
        newest("tfds:two")
    (tmp_path / "two" / ".config").mkdir()
    (tmp_path / "two" / ".config" / "metadata.json").write_text('{"defaultConfigName": "b"}')
    assert newest("tfds:two") == "two/b/1.0.0"


# Sets that TensorFlow Datasets prepares. The child of these tests knows three more sets than TFDS itself.

CHILD = """
import json, os, sys
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

url, size, sha256 = json.loads(os.environ["FILE"])

class Shapes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")
    pkg_dir_path = None
    url_infos = {url: tfds.core.download.checksums.UrlInfo(tfds.core.utils.Size(size), sha256, "shapes.zip")}
    def _info(self):
        label = tfds.features.ClassLabel(names=["a b", "c"])
        features = {"image": tfds.features.Image(shape=(4, 5, 3)), "label": label, "area": np.float32}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )
    def _split_generators(self, manager):
        folder = manager.download_and_extract(url)
        return {"train": self._generate_examples(folder, 7), "validation": self._generate_examples(folder, 3)}
    def _generate_examples(self, folder, count):
        with tf.io.gfile.GFile(os.path.join(folder, "shapes.bin"), "rb") as file:
            images = np.frombuffer(file.read(), np.uint8).reshape(-1, 4, 5, 3)
        for i in range(count):
            yield i, {"image": images[i], "label": i % 2, "area": i / 2}

class Computed(Shapes):
    def _generate_examples(self, folder, count):
        yield 0, {"image": tf.random.uniform((4, 5, 3)), "label": 0, "area": 0}

class Imported(Shapes):
    def _generate_examples(self, folder, count):
        import tensorflow

from dlc.data import _tfds_child
_tfds_child.main()
"""


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serves the file of "shapes"; the images in it."""
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), np.uint8)
    (tmp_path / "web").mkdir()
    with zipfile.ZipFile(tmp_path / "web" / "shapes.zip", "w") as archive:
        archive.writestr("shapes.bin", images.tobytes())
    content = (tmp_path / "web" / "shapes.zip").read_bytes()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "web")))
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    url = f"http://127.0.0.1:{http.server_port}/shapes.zip"
    monkeypatch.setenv("FILE", json.dumps([url, len(content), hashlib.sha256(content).hexdigest()]))
    monkeypatch.setattr(_tfds, "CHILD", (sys.executable, "-W", "ignore", "-c", CHILD))
    yield images
    http.shutdown()
    http.server_close()


def test_a_set_is_prepared_without_tensorflow(served, capfd):
    """An archive that is unpacked, arrays that are written as PNG, no test split."""
    found = load("tfds:shapes")
    assert (found.name, found.source, found.classes) == ("tfds:shapes", "tfds shapes 1.2.0", ("a b", "c"))
    order, validation = _tfds.original_order("train", 7), _tfds.original_order("validation", 3)
    np.testing.assert_array_equal(found.train["image"], served[order])
    np.testing.assert_array_equal(found.train["label"], order % 2)
    np.testing.assert_array_equal(found.test["image"], served[validation])
    assert capfd.readouterr() == ("", "")
    root = data_dir() / "tfds"
    assert not list(root.glob("**/incomplete.*"))
    assert not list((root / "downloads").iterdir())
    assert _tfds.newest(data_dir(), _tfds.parse("tfds:shapes:1.2.0")) == root / "shapes" / "1.2.0"


@pytest.mark.parametrize(("name", "why"), [("computed", "it needs tf.random"), ("imported", "its own code imports it")])
def test_a_set_that_needs_tensorflow_is_refused(name, why, served):
    with pytest.raises(UserError) as caught:
        load(f"tfds:{name}")
    assert str(caught.value).split("\n") == [
        f"tfds:{name} cannot be prepared without TensorFlow ({why})",
        "To bring it by hand, run, with TensorFlow installed,",
        f"  tfds build {name} --file_format=array_record --data_dir={data_dir() / 'tfds'}",
    ]
    assert not list((data_dir() / "tfds").glob("**/incomplete.*"))


def test_no_network_and_no_such_set(served, monkeypatch):
    monkeypatch.setenv("FILE", json.dumps(["http://127.0.0.1:9/shapes.zip", 1, "0" * 64]))
    with pytest.raises(DataUnavailable) as caught:
        load("tfds:shapes")
    assert str(caught.value).split("\n")[0] == (
        "tfds:shapes is not on this machine and cannot be downloaded: no network (127.0.0.1: Connection refused); "
        "`digits` is a data set of images that needs no download."
    )
    assert caught.value.exit_code == 3
    with pytest.raises(UserError, match=r"^TensorFlow Datasets has no set tfds:shapez"):
        load("tfds:shapez")


def test_a_child_that_dies_is_said(monkeypatch):
    monkeypatch.setattr(_tfds, "CHILD", (sys.executable, "-c", "import os; os._exit(7)"))
    with pytest.raises(
        UserError, match=r"^TensorFlow Datasets failed on tfds:shapes: its process ended with status 7$"
    ):
        load("tfds:shapes")


def test_a_child_ends_with_its_parent():
    """The child inherits stderr, so the end of that is the end of both."""
    child = "from dlc.data import _tfds_child; _tfds_child.prepare = lambda *_: [os.kill(os.getppid(), 9), input()]"
    child = f"import os; {child}; _tfds_child._stand_in = lambda: None; _tfds_child.main()"
    code = (
        "import sys; from dlc.data import _tfds, load\n"
        f"_tfds.CHILD = (sys.executable, '-W', 'ignore', '-c', {child!r})\n"
        "load('tfds:shapes')"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (-9, b"")


def test_damage_is_reported_by_its_record(prepared):
    folder = put(prepared, "mnist")
    records = _array_record.Labelled(_array_record.Records(folder, "mnist", "test"), label="nothing")
    with pytest.raises(DataDamaged, match=r"^record 4 of .*3.0.1 test is damaged \(KeyError\('nothing'\)\): prepare"):
        records[4]
