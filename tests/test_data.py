"""`dlc.data` on tiny sets in the original formats, and on the real sets if DLC_TEST_DATA is set.

No test needs a network: every published address is replaced by one of this machine, where nothing listens unless the
test itself serves files.
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dlc.data import (
    NAMES,
    SETS,
    DataDamaged,
    Dataset,
    DataUnavailable,
    _arrays,
    _cache,
    _fetch,
    _published,
    check_name,
    cifar,
    data_dir,
    is_ready,
    load,
    text,
)
from dlc.data.__main__ import PICTURES, main
from dlc.data._directory import lock
from dlc.data._published import File
from dlc.errors import UserError

COUNTS = (120, 30)
ONLINE = [name for name, data in SETS.items() if data.published.files]
REAL = os.environ.get("DLC_TEST_DATA")
needs_real = pytest.mark.skipif(not REAL, reason="DLC_TEST_DATA does not name a folder with the real mnist and cifar10")


# Tiny sets in the original formats -----------------------------------------------------------------------------------


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    while STARTED:
        with STARTED.pop() as process:
            process.kill()


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data directory, no TFDS folders, no proxies, and no address that leads off this machine."""
    monkeypatch.setenv("DLC_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("no_proxy", "*")
    for name in ONLINE:
        files = SETS[name].published.files
        publish(monkeypatch, name, tuple(file._replace(url=f"http://127.0.0.1:9/{file.name}") for file in files))
    return tmp_path / "data"


def publish(monkeypatch: pytest.MonkeyPatch, name: str, files: tuple[File, ...], **changes: object) -> None:
    """Has `SETS` describe other files."""
    data = SETS[name]
    monkeypatch.setitem(SETS, name, data._replace(published=data.published._replace(files=files), **changes))


def make(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, url: str = "http://127.0.0.1:9/") -> Dataset:
    """Writes a tiny `name` in its original format to `folder` and has `SETS` describe it."""
    data = SETS[name]
    rng = np.random.default_rng(len(name))
    splits = []
    for count in COUNTS:
        image = rng.integers(0, 256, (count, *data.example["image"].shape), np.uint8)
        splits.append({"image": image, "label": (np.arange(count) * 7 % len(data.classes)).astype(np.int32)})
    dataset = Dataset(name, splits[0], splits[1], data.classes, f"original files in sources/{name}")
    folder.mkdir(parents=True, exist_ok=True)
    if name.startswith("cifar"):
        contents = [cifar_archive(dataset)]
    else:
        contents = [gzip.compress(idx(split[key]), mtime=0) for split in splits for key in ("image", "label")]
    files = []
    for file, content in zip(data.published.files, contents, strict=True):
        (folder / file.name).write_bytes(content)
        unpacked = sha256(gzip.decompress(content)) if name == "mnist" else ""
        files.append(File(file.name, url + file.name, len(content), sha256(content), unpacked))
    publish(monkeypatch, name, tuple(files), counts=COUNTS)
    return dataset


def idx(array: np.ndarray) -> bytes:
    values = array.squeeze().astype(np.uint8)
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.tobytes()


def cifar_archive(dataset: Dataset) -> bytes:
    """Records of label bytes (cifar100: a coarse one first) and channels-first pixels, in files named as published."""
    out = io.BytesIO()
    files = cifar.MEMBERS[dataset.name]
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for names, split in zip(files, (dataset.train, dataset.test), strict=True):
            for name, rows in zip(names, np.array_split(np.arange(len(split["label"])), len(names)), strict=True):
                label = split["label"][rows, None].astype(np.uint8)
                pixels = split["image"][rows].transpose(0, 3, 1, 2).reshape(len(rows), -1)
                columns = [label // 5, label, pixels] if dataset.name == "cifar100" else [label, pixels]
                content = np.concatenate(columns, 1).tobytes()
                member = tarfile.TarInfo(f"cifar-binary/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def torchvision_folder(folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    parts = np.array_split(np.arange(COUNTS[0]), 5)
    batches = [(dataset.train["image"][p], dataset.train["label"][p]) for p in parts]
    batches.append((dataset.test["image"], dataset.test["label"]))
    for file, (image, label) in zip(cifar.TORCHVISION, batches, strict=True):
        data = np.ascontiguousarray(image.transpose(0, 3, 1, 2).reshape(len(image), -1))
        content = pickle.dumps({b"data": data, b"labels": label.tolist()}, protocol=4)
        (folder / file).write_bytes(content)
        monkeypatch.setitem(cifar.TORCHVISION, file, hashlib.md5(content).hexdigest())


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def assert_same(found: Dataset, expected: Dataset) -> None:
    for split in ("train", "test"):
        ours, theirs = getattr(found, split), getattr(expected, split)
        assert set(ours) == {"image", "label"}
        for key, dtype in (("image", np.uint8), ("label", np.int32)):
            assert ours[key].dtype == dtype
            np.testing.assert_array_equal(ours[key], theirs[key])
    assert found.name == expected.name
    assert found.classes == expected.classes


def leftovers(root: Path) -> list[Path]:
    """What is in the data directory beside published files, the locks and complete array folders."""
    whole = [_cache.folder(root, name) for name in SETS]
    published = [root / "sources" / name for name in SETS] + [root / "sources" / "cifar10" / "cifar-10-batches-py"]
    files = [p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".lock-")]
    return [p for p in files if p.parent not in (*published, *whole)]


def command(code: str) -> list[str]:
    """A Python of its own that knows the same tiny sets. Ctrl-C ends it, even if this process ignores Ctrl-C."""
    known = {name: (SETS[name].published.files, SETS[name].counts) for name in ONLINE}
    prelude = (
        "import json, os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from dlc.data import SETS, load\n"
        "from dlc.data._published import File\n"
        "from dlc.data.__main__ import main\n"
        f"for name, (files, counts) in json.loads({json.dumps(known)!r}).items():\n"
        "    published = SETS[name].published._replace(files=tuple(File(*file) for file in files))\n"
        "    SETS[name] = SETS[name]._replace(published=published, counts=tuple(counts))\n"
    )
    return [sys.executable, "-c", prelude + code]


def other_process(code: str, **options) -> subprocess.Popen:
    process = subprocess.Popen(
        command(code),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], **options,
    )  # fmt: skip
    STARTED.append(process)
    return process


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate()
    return process.returncode, out, err


class Server:
    """Serves a folder over HTTP on this machine; `slow` stops half-way through each file, `cut` hangs up there."""

    def __init__(self, folder: Path) -> None:
        self.seen: list[str] = []
        self.slow = self.cut = False
        self.half_way, self.released = threading.Event(), threading.Event()
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args) -> None:
                super().__init__(*args, directory=str(folder))

            def do_GET(self) -> None:
                content = (folder / self.path[1:]).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                half = len(content) // 2 if server.slow or server.cut else len(content)
                self.wfile.write(content[:half])
                self.wfile.flush()
                if server.slow:
                    server.half_way.set()
                    server.released.wait()

            def log_message(self, *args) -> None:
                server.seen.append(f"{self.command} {self.path}")

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    serving = Server(tmp_path / "web")
    yield serving
    serving.released.set()
    serving.http.shutdown()
    serving.http.server_close()


# Names, places, digits -----------------------------------------------------------------------------------------------


def test_files_are_those_that_tfds_registers() -> None:
    # Read without importing TFDS, which takes seconds; and in a module of its own, as `nowhere` changes addresses.
    spec = find_spec("tensorflow_datasets")
    assert spec
    assert spec.submodule_search_locations
    code = "import json; from dlc.data import SETS; print(json.dumps({n: s.published.files for n, s in SETS.items()}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=Path(__file__).parents[1])
    for name, files in json.loads(run.stdout).items():
        if files:
            listed = Path(spec.submodule_search_locations[0], "url_checksums", f"{name}.txt").read_text().split("\n")
            rows = {tuple(line.split("\t")) for line in listed if line}
            assert rows == {(url, str(size), sha256, file) for file, url, size, sha256, _ in files}
            classes = SETS[name].classes
            assert len(classes) == len(set(classes)) == (100 if name == "cifar100" else 10)


def test_one_variable_moves_the_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_dir() == tmp_path / "data"
    monkeypatch.delenv("DLC_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data_dir() == tmp_path / "xdg" / "dlc" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data_dir() == tmp_path / "home" / ".cache" / "dlc" / "data"


def test_digits_need_neither_network_nor_data_directory(nowhere: Path) -> None:
    dataset = load("digits")
    assert dataset.train["image"].shape == (1437, 28, 28, 1)
    assert dataset.test["image"].shape == (360, 28, 28, 1)
    assert dataset.train["image"].dtype == np.uint8
    assert dataset.train["label"].dtype == np.int32
    assert dataset.train["image"].min() == 0
    assert dataset.train["image"].max() == 255
    np.testing.assert_array_equal(dataset.train["label"][:12], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])
    assert not nowhere.exists()


def test_digits32_have_the_shape_of_cifar() -> None:
    dataset = load("digits32")
    assert dataset.train["image"].shape == (1437, 32, 32, 3)
    assert dataset.test["image"].shape == (360, 32, 32, 3)
    np.testing.assert_array_equal(dataset.train["image"][..., 0], dataset.train["image"][..., 2])
    np.testing.assert_array_equal(dataset.train["label"], load("digits").train["label"])
    assert dataset.train["image"].max() == 255


def test_unknown_name_is_one_sentence() -> None:
    with pytest.raises(
        UserError, match=r"^there is no data set 'minst': choose from mnist, .*digits, digits32, or tfds:NAME$"
    ) as caught:
        load("minst")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["tfds:", "tfds:a b", "tfds:eurosat:2", "tfds:eurosat/"])
def test_names_of_tfds_are_checked(name: str) -> None:
    with pytest.raises(UserError, match=f"^'{name}' does not name a set: write tfds:NAME, tfds:NAME/CONFIG or tfds:"):
        check_name(name)
    for good in ("mnist", "tfds:eurosat", "tfds:eurosat/rgb:2.0.0", "tfds:imagenette/full-size-v2"):
        assert check_name(good, "mnist", "digits") == good
    with pytest.raises(UserError, match=r"^there is no data set 'cifar10': choose from mnist, digits, or tfds:NAME$"):
        check_name("cifar10", "mnist", "digits")


# Original files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ONLINE)
def test_original_files_in_sources(name: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make(name, nowhere / "sources" / name, monkeypatch)
    for _ in range(2):
        found = load(name)
        assert_same(found, expected)
        assert found.source == f"original files in sources/{name}"
    assert not leftovers(nowhere)
    found.train["image"][:] = 0  # a private copy: nothing reaches the cache
    assert_same(load(name), expected)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("dot", ["-idx", ".idx"])
def test_unpacked_idx_files(name: str, dot: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = nowhere / "sources" / name
    expected = make(name, folder, monkeypatch)
    for path in list(folder.iterdir()):
        (folder / path.stem.replace("-idx", dot)).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert_same(load(name), expected)
    shutil.rmtree(nowhere / "arrays")
    path = next(folder.glob("t10k-images*"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataDamaged, match=f"^{path} is "):
        load(name)


def test_torchvision_folder(nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make("cifar10", tmp_path / "elsewhere", monkeypatch)
    folder = nowhere / "sources" / "cifar10" / "cifar-10-batches-py"
    torchvision_folder(folder, expected, monkeypatch)
    found = load("cifar10")
    assert_same(found, expected)
    assert found.source == "cifar-10-batches-py in sources/cifar10"
    shutil.rmtree(nowhere / "arrays")
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataDamaged, match="has no data_batch_3"):
        load("cifar10")


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["DLC_DATA"] + "-evil",)


def test_nothing_but_published_pickles_is_unpickled(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = nowhere / "sources" / "cifar10" / "cifar-10-batches-py"
    torchvision_folder(folder, make("cifar10", tmp_path / "elsewhere", monkeypatch), monkeypatch)
    content = pickle.dumps({b"data": Evil(), b"labels": []}, protocol=4)
    (folder / "data_batch_1").write_bytes(content)
    with pytest.raises(DataDamaged, match="data_batch_1 is not the published file"):
        load("cifar10")
    monkeypatch.setitem(cifar.TORCHVISION, "data_batch_1", hashlib.md5(content).hexdigest())
    with pytest.raises(pickle.UnpicklingError, match="does not belong"):  # even if the md5 were forged
        load("cifar10")
    assert not Path(os.environ["DLC_DATA"] + "-evil").exists()
    assert not leftovers(nowhere)


@pytest.mark.parametrize("name", ONLINE)
@pytest.mark.parametrize("how", ["truncated", "altered"])
def test_damaged_original(name: str, how: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(name, nowhere / "sources" / name, monkeypatch)
    path = nowhere / "sources" / name / SETS[name].published.files[0].name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if how == "altered" else content[:-9])
    what = (
        "is not the published file: its sha256 differs" if how == "altered" else "is damaged: it has .* bytes instead"
    )
    with pytest.raises(DataDamaged, match=f"^{path} {what}.*; delete it and fetch it again from http"):
        load(name)
    assert not leftovers(nowhere)
    assert not _cache.folder(nowhere, name).exists()


def test_wrong_counts_are_refused(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("mnist", nowhere / "sources" / "mnist", monkeypatch)
    monkeypatch.setitem(SETS, "mnist", SETS["mnist"]._replace(counts=(121, 30)))
    with pytest.raises(DataDamaged, match="train holds"):
        load("mnist")
    assert not leftovers(nowhere)
    assert not _cache.folder(nowhere, "mnist").exists()


# The array cache -----------------------------------------------------------------------------------------------------


def damage(folder: Path, how: str) -> None:
    path = folder / "train_image.npy"
    if how == "truncated":
        os.truncate(path, 1000)
    elif how == "altered":
        with open(path, "r+b") as file:
            file.seek(5000)
            byte = file.read(1)[0]
            file.seek(5000)
            file.write(bytes([byte ^ 1]))
    elif how == "missing":
        path.unlink()
    else:
        (folder / "meta.json").write_text("{")


@pytest.mark.parametrize("how", ["truncated", "altered", "missing", "meta"])
def test_damaged_cache_is_prepared_again_or_refused(
    how: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = make("mnist", nowhere / "sources" / "mnist", monkeypatch)
    load("mnist")
    folder = _cache.folder(nowhere, "mnist")
    damage(folder, how)
    assert_same(load("mnist"), expected)
    assert f"the prepared arrays of mnist in {folder} are damaged (" in capsys.readouterr().err
    load("mnist")
    assert capsys.readouterr().err == ""
    assert not leftovers(nowhere)
    damage(folder, how)
    shutil.rmtree(nowhere / "sources")
    with pytest.raises(DataDamaged, match=r"are damaged .* and cannot be prepared again: mnist is not on this machine"):
        load("mnist")


def test_second_start_imports_nothing_that_takes_long(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("mnist", nowhere / "sources" / "mnist", monkeypatch)
    load("mnist")
    slow = "tensorflow_datasets tensorflow array_record jax grain sklearn pooch requests filelock rich".split()
    code = command(f"load('mnist'); print(*set(sys.modules) & set({slow}))")[-1]
    without_fcntl = "import sys; sys.modules['fcntl'] = None\n"  # as on Windows
    run = [sys.executable, "-c", without_fcntl + code]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", "")


def test_arrays_of_an_earlier_version_are_read(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make("cifar10", nowhere / "sources" / "cifar10", monkeypatch)
    load("cifar10")
    meta = _cache.folder(nowhere, "cifar10") / "meta.json"
    meta.write_text(
        json.dumps(
            {key: value for key, value in json.loads(meta.read_text()).items() if key not in ("classes", "crc32")}
        )
    )
    shutil.rmtree(nowhere / "sources")
    assert_same(load("cifar10"), expected)


def test_other_arrays_than_images_are_kept(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adding a set is one value: boxes [4, 4] and masks of one example give batches of their shape."""
    example = {"box": _arrays.Leaf((4, 4), np.float32), "mask": _arrays.Leaf((6, 5), np.bool_)}
    content = np.arange(160, dtype=np.float32).tobytes()
    file = File("boxes.bin", "http://127.0.0.1:9/boxes.bin", len(content), sha256(content))

    def parse(paths):
        box = np.frombuffer(_published.content(paths[0]), np.float32).reshape(10, 4, 4)
        both = {"box": box, "mask": np.arange(300).reshape(10, 6, 5) % 3 == 0}
        return {key: value[:7] for key, value in both.items()}, {key: value[7:] for key, value in both.items()}

    boxes = _arrays.Arrays(_published.Published("boxes", (file,), "`digits` is one"), parse, example, (7, 3), ())
    with pytest.raises(
        DataUnavailable, match=r"^boxes is not on this machine .*; `digits` is one.\nTo bring it by hand"
    ):
        _arrays.load(boxes)
    (nowhere / "sources" / "boxes").mkdir(parents=True)
    (nowhere / "sources" / "boxes" / "boxes.bin").write_bytes(content)
    first, second = _arrays.load(boxes), _arrays.load(boxes)
    assert _arrays.state(boxes) == ("ready", "original files in sources/boxes")
    for found in (first, second):
        assert found.train["box"].shape == (7, 4, 4)
        assert found.test["mask"].dtype == np.bool_
        np.testing.assert_array_equal(found.test["box"].ravel(), np.arange(112, 160))


def test_killed_at_any_moment_leaves_nothing_that_reads_as_whole(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make("mnist", nowhere / "sources" / "mnist", monkeypatch)
    code = (
        "import filelock\n"
        "def deadly(f):\n"
        "    def g(*a, **k):\n"
        "        global calls; calls += 1\n"
        "        if calls == last: os.kill(os.getpid(), 9)\n"
        "        return f(*a, **k)\n"
        "    return g\n"
        "os.fsync, os.rename = deadly(os.fsync), deadly(os.rename)\n"
        "root = os.environ['DLC_DATA']\n"
        "for last in range(1, 9):\n"
        "    calls, os.environ['DLC_DATA'] = 0, root + str(last)\n"
        "    if not (child := os.fork()):\n"
        "        load('mnist')\n"
        "        os._exit(0)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    # Killed before each of: four arrays and the meta flushed, the folder renamed, its parent flushed; then not at all.
    roots = [nowhere.with_name(f"data{last}") for last in range(1, 9)]
    for root in roots:
        shutil.copytree(nowhere, root)
    status, out, err = finish(other_process(code))
    assert (status, err) == (0, "")
    assert [int(line) for line in out.split()] == [-signal.SIGKILL] * 7 + [0]
    for last, root in enumerate(roots, 1):
        monkeypatch.setenv("DLC_DATA", str(root))
        assert _cache.folder(root, "mnist").exists() == (last >= 7)
        assert_same(load("mnist"), expected)
        assert not leftovers(root)


def test_two_processes_at_once(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make("mnist", nowhere / "sources" / "mnist", monkeypatch)
    with lock(nowhere, "mnist"):  # both find it held, say so, and then take turns
        processes = [other_process("print(load('mnist').train['image'].sum())") for _ in range(2)]
        lines = [process.stderr.readline() for process in processes if process.stderr]
    assert lines == [f"waiting for another process that is preparing mnist in {nowhere}\n"] * 2
    for process in processes:
        status, out, _ = finish(process)
        assert (status, int(out)) == (0, expected.train["image"].sum())
    assert not leftovers(nowhere)


# A data directory that cannot be used --------------------------------------------------------------------------------


def test_unwritable_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DLC_DATA", str(tmp_path / "file" / "data"))  # holds for root too, unlike permissions
    with pytest.raises(UserError, match=r"^the data directory .*file/data cannot be used: Not a directory .*DLC_DATA"):
        load("mnist")


def test_full_disk(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("mnist", nowhere / "sources" / "mnist", monkeypatch)
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))\n"
        "sys.exit(main(['mnist']))"  # the largest file has 94,208 bytes: the write itself fails, as on a full disk
    )
    status, out, err = finish(other_process(code))
    assert (status, out) == (2, "")
    assert err.startswith(f"the data directory {nowhere} cannot be used: File too large; ")
    assert err.count("\n") == 1
    assert not leftovers(nowhere)
    assert not _cache.folder(nowhere, "mnist").exists()


# No network ----------------------------------------------------------------------------------------------------------


def test_unavailable_lists_what_to_put_where(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataUnavailable) as caught:
        load("mnist")
    first, _, *files = str(caught.value).split("\n")
    assert first == (
        "mnist is not on this machine and cannot be downloaded: no network (127.0.0.1: Connection refused); "
        "`digits` is a data set of images that needs no download."
    )
    assert len(files) == 4
    assert files[0] == (
        "  http://127.0.0.1:9/train-images-idx3-ubyte.gz (9.91 MB) "
        f"at {nowhere / 'sources' / 'mnist' / 'train-images-idx3-ubyte.gz'}"
    )
    assert caught.value.exit_code == 3


def test_server_without_the_file_and_server_that_is_silent(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("mnist", tmp_path / "web", monkeypatch, server.url)
    (tmp_path / "web" / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataUnavailable, match=r"127.0.0.1 answered 404 File not found"):
        load("mnist")
    monkeypatch.setattr(_fetch, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        make("mnist", tmp_path / "web", monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with pytest.raises(DataUnavailable, match=r"did not answer within 0.2 s"):
            load("mnist")


# Downloads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "cifar100"])
def test_download(
    name: str,
    nowhere: Path,
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    expected = make(name, tmp_path / "web", monkeypatch, server.url)
    files = SETS[name].published.files
    assert not is_ready(name)
    found = load(name)
    assert_same(found, expected)
    assert found.source == f"original files in sources/{name}"
    assert server.seen == [f"HEAD /{files[0].name}"] + [f"GET /{file.name}" for file in files]
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"downloading {name}: ")
    assert err.count("\n") == 1
    assert is_ready(name)
    assert not leftovers(nowhere)
    kept = sorted((nowhere / "sources" / name).iterdir())
    assert kept == sorted(nowhere / "sources" / name / file.name for file in files)
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o644}

    # What is there is not downloaded again.
    shutil.rmtree(nowhere / "arrays")
    kept[0].unlink()
    assert_same(load(name), expected)
    assert server.seen[1 + len(files) :] == [f"HEAD /{kept[0].name}", f"GET /{kept[0].name}"]


def test_progress_on_a_terminal(nowhere: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    make("mnist", tmp_path / "web", monkeypatch, server.url)
    terminal, end = os.openpty()
    process = subprocess.Popen(
        command("sys.exit(main(['mnist']))"), cwd=Path(__file__).parents[1], stderr=end,
        stdout=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(end)
    shown = b""
    with suppress(OSError):  # Linux reports the end of a terminal as an error
        while more := os.read(terminal, 1000):
            shown += more
    os.close(terminal)
    assert process.wait() == 0
    assert b"downloading mnist" in shown
    assert b"/" in shown.split(b"downloading mnist", 2)[2]  # bytes so far / all bytes
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l")  # the cursor is back


@pytest.mark.parametrize("how", ["altered", "cut"])
def test_download_that_goes_wrong(
    how: str, nowhere: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("cifar10", tmp_path / "web", monkeypatch, server.url)
    if how == "altered":
        path = tmp_path / "web" / "cifar-10-binary.tar.gz"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        with pytest.raises(DataDamaged, match=r"cifar-10-binary.tar.gz has another size or sha256; try again"):
            load("cifar10")
    else:
        server.cut = True
        with pytest.raises(DataUnavailable, match="cannot be downloaded: the download broke off"):
            load("cifar10")
    assert not leftovers(nowhere)
    assert not _cache.folder(nowhere, "cifar10").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_while_downloading(
    how: signal.Signals, nowhere: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make("cifar10", tmp_path / "web", monkeypatch, server.url)
    server.slow = True
    code = (
        "from dlc.data import _fetch\n"
        "_fetch._Bar.update = lambda self, size: print('arrived', flush=True)\n"
        "sys.exit(main(['cifar10']))"
    )
    process = other_process(code, start_new_session=True)
    assert process.stdout
    assert process.stdout.readline() == "arrived\n"  # part of the file has been written
    assert leftovers(nowhere)
    os.killpg(process.pid, how)  # as a terminal sends Ctrl-C: to every process of the program
    status, _, err = finish(process)
    if how == signal.SIGINT:
        assert status == 130
        assert err.split("\n")[1:] == ["stopped; nothing half-prepared is left, and the same command starts again", ""]
    else:
        assert status == (128 + how if how == signal.SIGTERM else -how)
    assert bool(leftovers(nowhere)) == (how == signal.SIGKILL)
    make("cifar10", nowhere / "sources" / "cifar10", monkeypatch)
    assert_same(load("cifar10"), expected)
    assert not leftovers(nowhere)


def test_what_handles_sigterm_already_keeps_it(
    nowhere: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("mnist", tmp_path / "web", monkeypatch, server.url)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    mine = signal.getsignal(signal.SIGTERM)
    try:
        load("mnist")
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


# The command ---------------------------------------------------------------------------------------------------------


def test_command_prepares_ahead(nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    make("mnist", nowhere / "sources" / "mnist", monkeypatch)
    assert main(["mnist", "digits"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    where = f"original files in sources/mnist, in {nowhere / 'arrays' / 'mnist-1'}"
    assert first.startswith(f"mnist: 120 train, 30 test, 28x28x1; from {where}; ")
    assert first.endswith(" s")
    assert second.startswith("digits: 1,437 train, 360 test, 28x28x1; from scikit-learn digits; ")


def test_command_lists_what_is_there(nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(
        dict.fromkeys([*NAMES, *PICTURES, *text.CORPORA, *text.PARALLEL])
    )
    assert lines[0].split() == ["mnist", "not", "here", "-", "11.6", "MB", "to", "download"]
    assert lines[-1] == f"data directory {nowhere} (DLC_DATA moves it)"
    make("mnist", nowhere / "sources" / "mnist", monkeypatch)
    main([])
    assert "found" in capsys.readouterr().out.splitlines()[0]
    load("mnist")
    main([])
    assert "ready" in (line := capsys.readouterr().out.splitlines()[0])
    assert "original files in sources/mnist" in line
    damage(_cache.folder(nowhere, "mnist"), "truncated")
    main([])
    assert "damaged" in capsys.readouterr().out.splitlines()[0]


def test_command_prints_the_first_that_can_be_had(nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert main(["--first-of", "mnist", "digits"]) == 0
    out, err = capsys.readouterr()
    assert out == "digits\n"
    assert err == "mnist is not available (no network (127.0.0.1: Connection refused)); using digits\n"
    make("mnist", nowhere / "sources" / "mnist", monkeypatch)
    assert main(["--first-of", "mnist", "digits"]) == 0
    assert capsys.readouterr() == ("mnist\n", "")
    assert main(["--first-of", "cifar10", "cifar100"]) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["minst"], 2, "there is no data set 'minst'"),
        (["--first-of", "digits", "minst"], 2, "there is no data set 'minst'"),
        (["mnist"], 3, "mnist is not on this machine"),
    ],
)
def test_command_fails_with_a_sentence(arguments: list[str], code: int, said: str, capsys) -> None:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(said)


def test_help_is_short(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 28  # a terminal of eighty columns
    assert "DLC_DATA" in text
    assert "--first-of" in text


# The real sets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def real(nowhere: Path) -> None:
    assert REAL
    for name in ("mnist", "cifar10"):
        (nowhere / "sources").mkdir(parents=True, exist_ok=True)
        (nowhere / "sources" / name).symlink_to(Path(REAL, name).absolute())


@needs_real
def test_real_mnist(real: None) -> None:
    dataset = load("mnist")
    assert dataset.train["image"].shape == (60000, 28, 28, 1)
    assert dataset.test["image"].shape == (10000, 28, 28, 1)
    assert dataset.train["label"][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert dataset.test["label"][:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert dataset.train["image"].mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert dataset.train["image"].std() / 255 == pytest.approx(0.3081, abs=5e-5)


@needs_real
def test_real_cifar10(real: None) -> None:
    dataset = load("cifar10")
    assert np.bincount(dataset.train["label"]).tolist() == [5000] * 10
    assert np.bincount(dataset.test["label"]).tolist() == [1000] * 10
    image = dataset.train["image"][43]
    assert image[0, :, 0][:12].tolist() == [99, 98, 100, 103, 105, 107, 108, 110, 114, 115, 117, 118]
    assert image[1, :, 0][:12].tolist() == [100, 100, 102, 105, 107, 109, 110, 112, 115, 117, 119, 120]
    assert image[0, :, 1][:12].tolist() == [166, 165, 167, 169, 171, 172, 173, 175, 176, 178, 179, 181]
    assert image[0, :, 2][:12].tolist() == [198, 196, 199, 200, 200, 202, 203, 204, 205, 206, 208, 209]
    assert dataset.classes[dataset.train["label"][43]] == "horse"
