"""Files that were damaged after they were written are noticed: what tests/torture/damages.py found, and each once."""

import contextlib
import hashlib
import json
import shutil
import struct
import sys
import types
import zipfile

import pytest
from cli import assert_refused, folder_of, here

from dlc import files, weights
from dlc.data import _cache, load, recordings
from dlc.errors import UserError
from dlc.models.squeezenet import squeezenet1_1
from dlc.run import log, pages, record
from dlc.run.launch import _hide_late_futures, launch
from dlc.weights import deep_compression, images
from experiments.mnist import mlp

assert here

MLP = "experiments.mnist.mlp"


def flipped(path, piece):
    """Changes one bit of the first `piece` in a file."""
    content = bytearray(path.read_bytes())
    content[content.index(piece)] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run, made once."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)  # which `launch` replaces
        launch(mlp.train, mlp.Config(), mlp.SMOKE, mlp.show, argv=["--smoke", "--save-every", "0", "--out", str(out)])
    return folder_of(out)


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def test_what_is_sealed_is_read_back_and_any_change_is_noticed():
    content = {"a": [1, 2.5, None, "é\udcff\n"], "b": {"c": float("inf")}}
    for indent in (None, 2):
        sealed = files.sealed(content, indent)
        assert files.unsealed(sealed) == content
        assert files.sealed(files.unsealed(sealed), indent) == sealed
        assert files.sealed(json.loads(sealed), indent) == sealed  # not a checksum of a checksum
        for at in range(len(sealed)):
            changed = sealed[:at] + chr(ord(sealed[at]) ^ 1) + sealed[at + 1 :]
            with contextlib.suppress(ValueError):  # without it, the key of the checksum itself was changed
                found = files.unsealed(changed)
                assert {name: found.get(name) for name in content} == content
    assert files.unsealed('{"a": 1}') == {"a": 1}  # as earlier versions wrote it
    for damaged in ("", "[1]", "1", "{", '{"crc32": 1}', b"\xff", "[" * 100_000):
        with pytest.raises(ValueError, match=r"."):
            files.unsealed(damaged)


def test_a_changed_digit_in_the_configuration_is_refused(run, here):
    flipped(run / "config.json", b"0.1")
    assert_refused(here(MLP, "--resume", run), r"config\.json is damaged or was altered; start a new run")
    assert_refused(here(MLP, "--weights", run), r"config\.json is damaged or was altered")


def test_a_run_without_its_configuration_is_not_shown_with_another(run, here):
    for harm in (lambda path: path.write_text("{"), lambda path: path.unlink()):
        harm(run / "config.json")
        for place in (run, run / "weights.safetensors"):
            assert_refused(here(MLP, "--weights", place), r"the config\.json beside .* is missing or damaged")


def test_a_changed_digit_in_the_log_is_said(run, here):
    whole = list(log.read(run))
    flipped(run / "log.jsonl", b'"step": 28')
    assert list(log.read(run)) == whole[:2]
    code, _, stderr = here(MLP, "--resume", run)
    assert code == 0, stderr
    assert "log.jsonl is damaged: steps 15 to 28 are missing from it" in stderr


def test_lost_origins_and_records_are_said(run, here):
    flipped(run / "origins.json", b"cpu")
    flipped(run / "result.json", b"cpu")
    code, _, stderr = here(MLP, "--resume", run, "--epochs", 3)
    assert code == 0, stderr
    assert "origins.json is damaged: the record will not say where the first 28 steps were trained" in stderr
    assert files.unsealed((run / "origins.json").read_bytes())["origins"][0]["versions"] == record.versions()
    flipped(run / "result.json", b"cpu")
    code, _, stderr = here(MLP, "--resume", run)
    assert code == 0, stderr
    assert "result.json is damaged: a new one is written" in stderr
    pages.load(run / "result.json")


def test_what_orbax_leaves_half_read_prints_no_traceback(monkeypatch):
    async def reading():
        raise ValueError

    shown = []
    monkeypatch.setattr(sys, "__unraisablehook__", lambda unraisable: shown.append(unraisable.object))
    code = reading.__code__.replace(co_filename="/site-packages/orbax/checkpoint/serialization.py")
    theirs, ours = (types.FunctionType(each, {})() for each in (code, reading.__code__))
    for begun in (theirs, ours):
        _hide_late_futures(types.SimpleNamespace(object=begun, exc_value=ValueError()))
        begun.close()
    assert shown == [ours]


def test_a_text_that_was_changed_since_the_run_began_is_refused(tmp_path, here):
    mine = tmp_path / "mine.txt"
    mine.write_text("To be or not to be, that is the question.\n" * 50)
    gpt = ("experiments.attention.gpt", "--text", mine)
    code, _, stderr = here(*gpt, "--smoke", "--steps", 4, "--evaluate-every", 2, "--out", tmp_path / "out")
    assert code == 0, stderr
    run = folder_of(tmp_path / "out")
    shutil.rmtree(run / "checkpoints" / "4")  # as if it had been killed
    flipped(mine, b"n.\n")  # of which the text has another
    assert_refused(here(*gpt[:1], "--resume", run), "the text has changed since the run began: it was mine.txt, sha256")
    flipped(mine, b"o.\n")
    assert here(*gpt[:1], "--resume", run)[0] == 0


def test_a_changed_digit_in_a_record_is_refused(run):
    assert pages.load(run / "result.json")["experiment"] == "mnist.mlp"
    flipped(run / "result.json", b"0.1")
    with pytest.raises(UserError, match=r"result\.json is damaged: restore it, or delete it"):
        pages.load(run / "result.json")


@pytest.mark.parametrize("lost", ["platform", "train", "seconds", "command", "seeds", "kind"])
def test_a_record_without_something_that_the_pages_show_is_refused(run, lost):
    record = files.unsealed((run / "result.json").read_bytes())
    (run / "result.json").write_text(json.dumps(record).replace(f'"{lost}"', '"x"'))
    with pytest.raises(UserError, match=r"result\.json is damaged: restore it, or delete it"):
        pages.load(run / "result.json")


def test_a_changed_model_is_refused(run):
    (run / "weights.safetensors").unlink()
    assert weights.load(run)
    flipped(run / "model.json", b"300")
    with pytest.raises(UserError, match=r"model\.json is damaged: it was altered: its checksum differs"):
        weights.load(run)


def test_what_describes_prepared_arrays_is_checked_too(tmp_path):
    digits = load("digits")
    (tmp_path / "arrays").mkdir()
    _cache.write(tmp_path, digits)
    assert _cache.read(tmp_path, "digits").source == digits.source
    flipped(_cache.folder(tmp_path, "digits") / "meta.json", b"scikit")
    with pytest.raises(UserError, match=r"are damaged .*its checksum differs"):
        _cache.read(tmp_path, "digits")


def test_a_damaged_header_of_an_array_is_refused(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + bytes(8)  # NumPy gives it to Python's tokenizer
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.write(tmp_path / "a.npy", "a.npy")
    with pytest.raises(UserError, match=r"a\.npy cannot be read"):
        recordings.sites(tmp_path / "a.npy", 1)
    with pytest.raises(UserError, match=r"a\.npz is not an \.npz of plain arrays"):
        weights.load(tmp_path / "a.npz", squeezenet1_1())


# Published files


def test_a_changed_bit_in_pytorchs_archive_is_noticed(tmp_path):
    """PyTorch does not compare the checksums that it writes."""
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
        archive.writestr("archive/data/0", bytes(100) + b"weights" + bytes(100))
    flipped(path, b"weights")
    with pytest.raises(UserError, match=r"model\.pth is damaged: fetch it again\n.*archive/data/0"):
        weights.load(path, squeezenet1_1())


def test_a_file_with_the_sum_in_its_name_is_compared_with_it(tmp_path):
    path = tmp_path / "squeezenet1_1-b8a52dc0.pth"
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match="is not the published file of this name, whose sha256 begins with b8a52dc0"):
        images.load_state_dict(path, squeezenet1_1())
    digits = hashlib.sha256(b"something else").hexdigest()[:8]
    images._check_named(path.rename(tmp_path / f"squeezenet1_1-{digits}.pth"), "squeezenet1_1")
    images._check_named(tmp_path / "mine-b8a52dc0.pth", "squeezenet1_1")


def test_a_changed_bit_in_the_one_compressed_squeezenet_is_noticed(tmp_path):
    counts = [size // 2 for size in deep_compression.SIZES.values()]
    each = zip(counts, (shape[0] for shape in deep_compression.SHAPES.values()), strict=True)
    length = 4 * len(counts) + sum(4 * (256 + biases) + n + (n + 1) // 2 for n, biases in each)
    (tmp_path / "net").write_bytes(struct.pack(f"<{len(counts)}I", *counts) + bytes(length - 4 * len(counts)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deep_compression, "LENGTH", length)
        with pytest.raises(UserError, match="is damaged: its sha256 is not that of the published file"):
            weights.load(tmp_path / "net")
