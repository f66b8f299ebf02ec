"""`dlc.data` on tiny sets in the original formats, prepared for real; and on the real sets where DLC_TEST_DATA is set.

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
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dlc.data import NAMES, DataDamaged, Dataset, DataUnavailable, cache, data_dir, load, sources, text, tfds
from dlc.data.__main__ import PICTURES, main
from dlc.data.sources import PUBLISHED, Original
from dlc.errors import UserError

COUNTS = (120, 30)
REAL = os.environ.get("DLC_TEST_DATA")
needs_real = pytest.mark.skipif(not REAL, reason="DLC_TEST_DATA does not name a folder with the real mnist and cifar10")


# Tiny sets in the original formats -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data directory, no TFDS folders, no proxies, and no address that leads off this machine."""
    monkeypatch.setenv("DLC_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("no_proxy", "*")
    for name, published in list(PUBLISHED.items()):
        originals = tuple(o._replace(url=f"http://127.0.0.1:9/{o.file}") for o in published.originals)
        monkeypatch.setitem(PUBLISHED, name, published._replace(originals=originals))
    return tmp_path / "data"


def make(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, url: str = "http://127.0.0.1:9/") -> Dataset:
    """Writes a tiny `name` in its original format to `folder` and has `PUBLISHED` describe it."""
    published = PUBLISHED[name]
    rng = np.random.default_rng(len(name))
    splits = []
    for count in COUNTS:
        image = rng.integers(0, 256, (count, *published.shape), np.uint8)
        splits.append({"image": image, "label": (np.arange(count) * 7 % len(published.classes)).astype(np.int32)})
    dataset = Dataset(name, splits[0], splits[1], published.classes, f"original files in sources/{name}")
    folder.mkdir(parents=True, exist_ok=True)
    if name.startswith("cifar"):
        contents = [cifar_archive(dataset)]
    else:
        contents = [gzip.compress(idx(split[key]), mtime=0) for split in splits for key in ("image", "label")]
    originals = []
    for original, content in zip(published.originals, contents, strict=True):
        (folder / original.file).write_bytes(content)
        unpacked = sha256(gzip.decompress(content)) if name == "mnist" else ""
        originals.append(Original(original.file, url + original.file, len(content), sha256(content), unpacked))
    monkeypatch.setitem(PUBLISHED, name, published._replace(originals=tuple(originals), counts=COUNTS))
    return dataset


def idx(array: np.ndarray) -> bytes:
    values = array.squeeze().astype(np.uint8)
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.tobytes()


def cifar_archive(dataset: Dataset) -> bytes:
    """Records of label bytes (cifar100: a coarse one first) and channels-first pixels, in files named as published."""
    out = io.BytesIO()
    files = sources._CIFAR_FILES[dataset.name]
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
    for file, (image, label) in zip(sources.TORCHVISION, batches, strict=True):
        data = np.ascontiguousarray(image.transpose(0, 3, 1, 2).reshape(len(image), -1))
        content = pickle.dumps({b"data": data, b"labels": label.tolist()}, protocol=4)
        (folder / file).write_bytes(content)
        monkeypatch.setitem(sources.TORCHVISION, file, hashlib.md5(content).hexdigest())


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
    """What is in the data directory beside the sources, the locks and whole array folders."""
    whole = [cache.folder(root, name) for name in PUBLISHED]
    files = [p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".lock-")]
    return [p for p in files if "sources" not in p.relative_to(root).parts and p.parent not in whole]


def other_process(code: str, **options) -> subprocess.Popen:
    """A Python of its own that knows the same tiny sets."""
    prelude = (
        "import json, os, sys, time\n"
        "from dlc.data import cache, load, sources, tfds\n"
        "from dlc.data.__main__ import main\n"
        f"for n, (v, o, s, c, k) in json.loads({json.dumps(PUBLISHED)!r}).items():\n"
        "    o = tuple(sources.Original(*i) for i in o)\n"
        "    sources.PUBLISHED[n] = sources.Published(v, o, tuple(s), tuple(c), tuple(k))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], **options,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


class Server:
    """Serves a folder over HTTP on this machine; `slow` stops half-way through each file, `cut` hangs up there."""

    def __init__(self, folder: Path) -> None:
        self.seen: list[str] = []
        self.slow = self.cut = False
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
                while server.slow:
                    time.sleep(0.05)

            def log_message(self, *args) -> None:
                server.seen.append(f"{self.command} {self.path}")

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    serving = Server(tmp_path / "web")
    yield serving
    serving.slow = False
    serving.http.shutdown()
    serving.http.server_close()


# Names, places, digits -----------------------------------------------------------------------------------------------


def test_constants_are_those_that_tfds_registers() -> None:
    # Read without importing TFDS, which takes seconds; `nowhere` has changed the addresses, so compare file names.
    spec = find_spec("tensorflow_datasets")
    assert spec
    assert spec.submodule_search_locations
    for name, published in PUBLISHED.items():
        registered = Path(spec.submodule_search_locations[0], "url_checksums", f"{name}.txt").read_text().split("\n")
        rows = {tuple(line.split("\t")[1:]) for line in registered if line}
        assert rows == {(str(o.size), o.sha256, o.file) for o in published.originals}
        assert len(published.classes) == len(set(published.classes)) == (100 if name == "cifar100" else 10)


def test_addresses_are_those_that_tfds_registers() -> None:
    code = "print(json.dumps({n: [o.url for o in p.originals] for n, p in sources.PUBLISHED.items()}))"
    run = subprocess.run(
        [sys.executable, "-c", "import json; from dlc.data import sources; " + code],
        capture_output=True, check=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    spec = find_spec("tensorflow_datasets")
    assert spec
    assert spec.submodule_search_locations
    for name, urls in json.loads(run.stdout).items():
        registered = Path(spec.submodule_search_locations[0], "url_checksums", f"{name}.txt").read_text()
        assert all(f"{url}\t" in registered for url in urls)


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
        UserError, match=r"^there is no data set 'minst': choose from mnist, .*digits, digits32$"
    ) as caught:
        load("minst")
    assert caught.value.exit_code == 2


# Original files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PUBLISHED))
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
    monkeypatch.setitem(sources.TORCHVISION, "data_batch_1", hashlib.md5(content).hexdigest())
    with pytest.raises(pickle.UnpicklingError, match="no place"):  # even if the md5 were forged
        load("cifar10")
    assert not Path(os.environ["DLC_DATA"] + "-evil").exists()
    assert not leftovers(nowhere)


@pytest.mark.parametrize("name", list(PUBLISHED))
@pytest.mark.parametrize("how", ["truncated", "altered"])
def test_damaged_original(name: str, how: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(name, nowhere / "sources" / name, monkeypatch)
    path = nowhere / "sources" / name / PUBLISHED[name].originals[0].file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if how == "altered" else content[:-9])
    what = (
        "is not the published file: its sha256 differs" if how == "altered" else "is damaged: it has .* bytes instead"
    )
    with pytest.raises(DataDamaged, match=f"^{path} {what}.*; delete it and fetch it again from http"):
        load(name)
    assert not leftovers(nowhere)
    assert not cache.folder(nowhere, name).exists()


def test_wrong_counts_are_refused(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("mnist", nowhere / "sources" / "mnist", monkeypatch)
    monkeypatch.setitem(PUBLISHED, "mnist", PUBLISHED["mnist"]._replace(counts=(121, 30)))
    with pytest.raises(DataDamaged, match="train holds"):
        load("mnist")
    assert not leftovers(nowhere)
    assert not cache.folder(nowhere, "mnist").exists()


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
    folder = cache.folder(nowhere, "mnist")
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


def test_second_start_is_fast_and_imports_neither_tfds_nor_jax(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("mnist", nowhere / "sources" / "mnist", monkeypatch)
    load("mnist")
    code = (
        "start = time.perf_counter(); load('mnist'); print(time.perf_counter() - start)\n"
        "print(*[m for m in ('tensorflow_datasets', 'tensorflow', 'jax', 'sklearn') if m in sys.modules])"
    )
    status, out, err = finish(other_process(code))
    assert (status, err) == (0, "")
    seconds, imported = out.split("\n")[:2]
    assert float(seconds) < 0.1
    assert imported == ""


def test_killed_at_any_moment_leaves_nothing_that_reads_as_whole(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make("mnist", nowhere / "sources" / "mnist", monkeypatch)
    code = (
        "calls = 0\n"
        "def deadly(f):\n"
        "    def g(*a, **k):\n"
        "        global calls; calls += 1\n"
        "        if calls == LAST: os.kill(os.getpid(), 9)\n"
        "        return f(*a, **k)\n"
        "    return g\n"
        "os.fsync, os.rename = deadly(os.fsync), deadly(os.rename)\n"
        "load('mnist')"
    )
    # Killed before each of: four arrays and the meta flushed, the folder renamed, its parent flushed; then not at all.
    processes, outcomes = [], []
    for last in range(1, 9):
        monkeypatch.setenv("DLC_DATA", str(nowhere.with_name(f"data{last}")))
        shutil.copytree(nowhere, os.environ["DLC_DATA"])
        processes.append(other_process(code.replace("LAST", str(last))))
    for last, process in enumerate(processes, 1):
        outcomes.append(finish(process)[0])
        root = nowhere.with_name(f"data{last}")
        monkeypatch.setenv("DLC_DATA", str(root))
        assert cache.folder(root, "mnist").exists() == (last >= 7)
        assert_same(load("mnist"), expected)
        assert not leftovers(root)
    assert outcomes == [-signal.SIGKILL] * 7 + [0]


def test_two_processes_at_once(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make("mnist", nowhere / "sources" / "mnist", monkeypatch)
    with cache.lock(nowhere, "mnist"):  # both find it held, say so, and then take turns
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
    assert not cache.folder(nowhere, "mnist").exists()


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
    monkeypatch.setattr(tfds, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        make("mnist", tmp_path / "web", monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with pytest.raises(DataUnavailable, match=r"did not answer within 0.2 s"):
            load("mnist")


# Through TensorFlow Datasets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "cifar100"])
def test_download_and_prepared_folder(
    name: str,
    nowhere: Path,
    tmp_path: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    expected = make(name, tmp_path / "web", monkeypatch, server.url)
    first = PUBLISHED[name].originals[0].file
    found = load(name)
    assert_same(found, expected)  # in the order of the files, although TFDS shuffles what it writes
    assert found.source == f"tfds {name} {PUBLISHED[name].version}"
    assert server.seen[0] == f"HEAD /{first}"
    assert len(server.seen) == 1 + len(PUBLISHED[name].originals)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"downloading {name}: ")
    assert err.count("\n") == 1
    prepared = nowhere / "tfds" / name / PUBLISHED[name].version
    assert (prepared / "dataset_info.json").exists()
    assert all(prepared in path.parents for path in leftovers(nowhere))

    # The folder alone is enough, here or where the user's own TFDS keeps it; one that is damaged is passed over.
    (tmp_path / "own").mkdir()
    shutil.move(nowhere / "tfds" / name, tmp_path / "own" / name)
    shutil.rmtree(nowhere)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "own"))
    assert_same(load(name), expected)
    if name == "mnist":
        shutil.rmtree(nowhere)
        make(name, nowhere / "sources" / name, monkeypatch)
        with monkeypatch.context() as patched:
            patched.setitem(PUBLISHED, name, PUBLISHED[name]._replace(counts=(121, 30)))
            with pytest.raises(DataDamaged, match=r"^original files in sources/mnist: train holds"):
                load(name)
        assert "it holds 120 train records instead of 121" in capfd.readouterr().err
        shard = next((tmp_path / "own" / name).rglob("*train.array_record*"))
        os.truncate(shard, shard.stat().st_size // 2)
        assert load(name).source == "original files in sources/mnist"
        assert " is passed over: " in capfd.readouterr().err


def test_tfrecord_folder_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "none" / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"fileFormat": "tfrecord"}))
    with pytest.raises(DataUnavailable):
        load("mnist")
    assert "tfrecord, which only TensorFlow can read" in capsys.readouterr().err


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
    assert not cache.folder(nowhere, "cifar10").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_while_downloading(
    how: signal.Signals, nowhere: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make("cifar10", tmp_path / "web", monkeypatch, server.url)
    server.slow = True
    process = other_process("sys.exit(main(['cifar10']))", start_new_session=True)
    downloads = nowhere / "tfds" / "downloads"
    deadline = time.monotonic() + 30
    while not any(p.is_file() for p in downloads.rglob("*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert leftovers(nowhere)  # half a file
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal sends Ctrl-C: to the program and to its child
        status, out, err = finish(process)
        assert (status, out) == (130, "")
        assert err.split("\n")[1:] == ["stopped; nothing half-prepared is left, and the same command begins again", ""]
        assert not leftovers(nowhere)
    else:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            pipe.close()
    server.slow = False
    make("cifar10", nowhere / "sources" / "cifar10", monkeypatch)
    assert_same(load("cifar10"), expected)  # after SIGKILL: once the orphan has seen that nobody waits for it
    assert not leftovers(nowhere)


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
    assert [line.split()[0] for line in lines[:-1]] == [*NAMES, *PICTURES, *text.CORPORA, *text.PARALLEL]
    assert lines[0].split() == ["mnist", "not", "here", "-", "11.6", "MB", "to", "download"]
    assert lines[-1] == f"data directory {nowhere} (DLC_DATA moves it)"
    make("mnist", nowhere / "sources" / "mnist", monkeypatch)
    main([])
    assert "at hand" in capsys.readouterr().out.splitlines()[0]
    load("mnist")
    main([])
    assert "ready" in (line := capsys.readouterr().out.splitlines()[0])
    assert "original files in sources/mnist" in line
    damage(cache.folder(nowhere, "mnist"), "truncated")
    main([])
    assert "damaged" in capsys.readouterr().out.splitlines()[0]


def test_command_prints_the_first_that_can_be_had(nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert main(["--first-of", "mnist", "digits"]) == 0
    out, err = capsys.readouterr()
    assert out == "digits\n"
    assert err == "mnist cannot be had (no network (127.0.0.1: Connection refused)); using digits\n"
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
    assert len(text.splitlines()) < 20
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
