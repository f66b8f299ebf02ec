"""Several processes of one run: what they tell each other, how they end together, and a run in two real ones."""

import itertools
import json
import signal
import socket
import threading
from types import SimpleNamespace

import jax
import pytest
from cli import assert_refused, finish, folder_of, here, lines, start

from dlc import hosts
from dlc.errors import UserError
from dlc.run import cluster

assert here  # a fixture

TIMES = {"seconds", "examples_per_second", "crc32"}  # of a line of the log: times, and what depends on them


class Store:
    """The key-value store of JAX's coordination service, in memory."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.changed:
            if key in self.values and not allow_overwrite:
                raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED: {key}")
            return self.values[key]

    def key_value_dir_get(self, folder):
        with self.changed:
            return sorted((key, value) for key, value in self.values.items() if key.startswith(folder))

    def key_value_delete(self, folder):
        with self.changed:
            self.values = {key: value for key, value in self.values.items() if not key.startswith(folder)}


@pytest.fixture
def several(monkeypatch):
    """`several(3, function) -> [function(), ...]`: in three threads that take themselves for processes."""
    store, own = Store(), threading.local()

    def run(count, function):
        class Joined:
            client, num_processes = store, count
            process_id = property(lambda self: own.index)

        class Numbers:
            def __init__(self):
                self.own = [itertools.count() for _ in range(count)]

            def __next__(self):
                return next(self.own[own.index])

        monkeypatch.setattr(hosts, "_joined", Joined())
        monkeypatch.setattr(hosts, "_tellings", Numbers())
        monkeypatch.setattr(hosts, "_gatherings", Numbers())
        store.values.clear()
        found = [None] * count

        def process(index):
            own.index = index
            try:
                found[index] = function()
            except UserError as error:
                found[index] = str(error)

        threads = [threading.Thread(target=process, args=(i,), daemon=True) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        return found

    run.store = store
    return run


def test_a_process_alone_is_the_lead_and_hears_itself(tmp_path):
    assert (hosts.count(), hosts.index(), hosts.lead()) == (1, 0, True)
    assert hosts.told(tmp_path) is tmp_path
    assert hosts.gathered(3) == [3]
    assert hosts.agreed(None) is None
    assert hosts.agreed(15) == 15
    hosts.same("flags", object())
    hosts.shared(tmp_path / "nowhere")
    with cluster.together(None, pytest.fail, pytest.fail):
        pass


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0/2@10.0.0.1:1234", (0, 2, "10.0.0.1:1234")),
        ("63/64@node-1.cluster:80", (63, 64, "node-1.cluster:80")),
        ("1/2@[fe80::1]:9", (1, 2, "[fe80::1]:9")),
        ("auto", (None, None, None)),
    ],
)
def test_the_place_of_a_process_is_read_from_one_word(text, expected):
    assert cluster.place(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "2/2@a:1", "0/0@a:1", "0/2", "0/2@a", "0/2@:1", "0/2@a:0", "a/2@b:1", "0/2@a:1,b:2", "auto ", "-1/2@a:1"],
)
def test_another_word_is_refused(text):
    with pytest.raises(UserError, match=r'^several processes are written as "0/2@HOST:PORT"'):
        cluster.place(text)


def test_all_processes_hear_the_lead_and_each_other_and_the_store_stays_small(several):
    def talk():
        heard = [hosts.told([hosts.index(), i]) for i in range(500)]
        return heard, hosts.gathered(hosts.index() * 10), hosts.gathered("x")

    for heard, numbers, letters in several(3, talk):
        assert heard == [[0, i] for i in range(500)]
        assert (numbers, letters) == ([0, 10, 20], ["x"] * 3)
    assert len(several.store.values) < 2 * hosts.MANY


@pytest.mark.parametrize("signalled", [0, 2])
def test_a_signal_to_any_process_stops_all_at_the_same_moment(several, signalled):
    def train():
        for step in range(1000):
            got = signal.SIGTERM if hosts.index() == signalled and step >= 5 else None
            if stop := hosts.agreed(got):
                return step, stop
        return None

    (step, stop), *others = several(3, train)
    assert stop == signal.SIGTERM
    assert step >= 5
    assert others == [(step, stop)] * 2


def test_other_flags_are_refused_by_all(several):
    said = several(3, lambda: hosts.same("flags", hosts.index() == 2))
    assert said == ["process 2 has other flags than process 0: start all processes with the same"] * 3


def test_a_folder_that_is_not_shared_is_refused_by_all(several, tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "LATE", 0.2)
    assert several(2, lambda: hosts.shared(tmp_path)) == [None, None]
    assert not list(tmp_path.iterdir())
    for i in range(2):
        (tmp_path / str(i)).mkdir()
    said = several(2, lambda: hosts.shared(tmp_path / str(hosts.index())))
    assert all(text.startswith("process 1 does not see the files that process 0 writes to") for text in said)
    assert not any((tmp_path / str(i) / ".shared").exists() for i in range(2))


def test_the_lead_misses_a_process_that_falls_silent_but_not_one_that_left(several, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(cluster.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(cluster.socket, "gethostname", lambda: "node")
    live, left = threading.Barrier(3), threading.Barrier(3)

    def sign():
        cluster._live({})
        live.wait(10)
        if hosts.index() == 1:
            cluster._sign(cluster.LEFT)
        left.wait(10)
        if not hosts.lead():
            return None
        signs, ends = {}, []
        for second in range(cluster.SILENT + 3):
            clock.now = float(second)
            ends.append(cluster._live(signs))
        assert ends[: cluster.SILENT + 1] == [None] * (cluster.SILENT + 1)
        return ends[-1]

    sentence = f"process 2 on node has died: nothing was heard of it for {cluster.SILENT} s"
    assert several(3, sign)[0] == [sentence, cluster.DIED]


def test_the_first_end_counts(several):
    def end():
        cluster._declare(f"process {hosts.index()} stopped", hosts.index() + 1)
        return cluster._live({})

    first, *others = several(3, end)
    assert others == [first] * 2


def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def logged(folder):
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines(folder)]


def test_other_processes_without_a_need_are_refused(here):
    refused = here("experiments.mnist.mlp", "--weights", "runs/x", "--cluster", "auto")
    assert_refused(refused, "leave out --cluster: --weights does not train, and needs no other processes")
    assert_refused(here("experiments.mnist.mlp", "--smoke", "--cluster", "2"), "several processes are written as")


def test_two_processes_stop_together_and_their_run_goes_on_in_one(tmp_path, here):
    """A worker gets SIGTERM; both stop; the run goes on here, as if one process had done it all."""
    flags = [
        "--smoke",
        "--hidden",
        "8",
        "--batch",
        "96",
        "--epochs",
        "6",
        "--save-every",
        "0",
        "--mesh",
        "data=2",
        "--out",
        tmp_path,
    ]
    module, where = "experiments.mnist.mlp", address()
    lead = start(module, *flags, "--cluster", f"0/2@{where}", XLA_FLAGS="")
    worker = start("killed", "SIGTERM", "dlc.run.loop.Loop.evaluate", module, *flags, "--cluster", f"1/2@{where}")
    try:
        (code, _, said), (other, _, told) = finish(lead), finish(worker)
    finally:
        for process in (lead, worker):
            process.kill()
    assert (code, other) == (143, 143), (said, told)
    run = folder_of(tmp_path)
    for text, i in ((said, 0), (told, 1)):
        assert f"continue with: python -m {module} --cluster {i}/2@{where} --resume {run}" in text
        assert "Traceback" not in text
    assert "training MLP" in said
    assert "training" not in told  # only the lead speaks
    assert not (run / "result.json").exists()
    done = [line["step"] for line in lines(run)][-1]

    assert here(module, "--resume", run)[0] == 0  # its mesh is known
    assert here(module, *flags[:-1], tmp_path / "whole")[0] == 0
    whole = folder_of(tmp_path / "whole")
    assert done < max(line["step"] for line in lines(run))
    assert logged(run) == logged(whole)
    assert (run / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert json.loads((run / "result.json").read_text())["figures"]["test_error"] < 0.9
