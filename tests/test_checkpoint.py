"""Checkpoints: arrays of every kind and on several devices, a checksum for each, parts of a state."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dlc import sharding
from dlc.errors import UserError
from dlc.weights.checkpoint import Checkpoints, _checksums

ROOT = Path(__file__).parents[1]


class Pair(NamedTuple):
    left: object
    right: object


def everything():
    rng = np.random.default_rng(0)
    return Pair(
        {"weights": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32), "half": jnp.ones(5, jnp.bfloat16)},
        [
            jnp.arange(7, dtype=jnp.int8),
            jnp.array([True, False, True]),
            jnp.array([1 + 2j]),
            jax.random.split(jax.random.key(1), 3),
            jnp.zeros((0, 4)),
            np.float32(2.5),
            None,
        ],
    )


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path)
    yield opened
    opened.close()


def test_arrays_of_every_kind_come_back_as_they_were(checkpoints):
    state = everything()
    checkpoints.save(3, state)
    checkpoints.wait()
    like = jax.tree.map(
        lambda leaf: jnp.zeros_like(leaf) if _plain(leaf) else jax.random.split(jax.random.key(9), 3), state
    )
    step, restored = checkpoints.restore(like, print)
    assert step == 3
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert jnp.result_type(old) == jnp.result_type(new)
        old, new = (leaf if _plain(leaf) else jax.random.key_data(leaf) for leaf in (old, new))
        np.testing.assert_array_equal(old, new)


def _plain(leaf):
    return not jax.dtypes.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def test_a_state_split_among_devices_is_restored_to_other_devices(checkpoints):
    """Eight devices, then two, then one: the same numbers, placed as the new state is."""
    whole = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    eight, two = sharding.mesh("data=8"), sharding.mesh("data=2")
    state = {
        "w": jax.device_put(whole, sharding.split(eight)),
        "b": jax.device_put(whole[0], NamedSharding(eight, PartitionSpec())),
    }
    checkpoints.save(1, state)
    checkpoints.wait()
    for place in (sharding.split(two), jax.devices()[3]):
        like = {"w": jax.device_put(jnp.zeros((16, 3)), place), "b": jax.device_put(jnp.zeros(3), jax.devices()[0])}
        _, restored = checkpoints.restore(like, print)
        np.testing.assert_array_equal(restored["w"], whole)
        np.testing.assert_array_equal(restored["b"], whole[0])
        assert restored["w"].sharding == like["w"].sharding


def test_a_checksum_does_not_depend_on_the_devices_and_notices_every_word():
    whole = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    split = jax.device_put(whole, sharding.split(sharding.mesh("data=8")))
    expected = int(_checksums({"w": jnp.asarray(whole)})["w"])
    assert int(_checksums({"w": split})["w"]) == expected
    words = whole.view(np.uint32).ravel().astype(np.uint64)
    weights = ((np.arange(80, dtype=np.uint64) * 2654435761 % 2**32) << 1 | 1) % 2**32
    assert expected == int((words * weights % 2**32).sum() % 2**32)  # the definition, in NumPy
    for place in range(80):
        for bit in (0, 31):
            words = whole.copy()
            words.view(np.uint32).ravel()[place] ^= np.uint32(1 << bit)
            assert int(_checksums({"w": jnp.asarray(words)})["w"]) != expected
    swapped = whole.copy()
    swapped[[0, 1]] = whole[[1, 0]]
    assert int(_checksums({"w": jnp.asarray(swapped)})["w"]) != expected


def test_a_part_is_read_and_checked_without_the_rest(checkpoints, tmp_path):
    state = {"params": {"w": jnp.arange(6.0)}, "buffer": jnp.zeros(1000), "step": jnp.int32(4)}
    checkpoints.save(4, state)
    checkpoints.wait()
    read = checkpoints.read(("params/", "step"), print)
    assert read.keys() == {"params/w", "step"}
    np.testing.assert_array_equal(read["params/w"], np.arange(6))
    step, part = checkpoints.restore({"params": {"w": jnp.zeros(6)}}, print, part=True)
    assert step == 4
    np.testing.assert_array_equal(part["params"]["w"], np.arange(6))
    assert Checkpoints(tmp_path / "nowhere").read(("",), print) is None


def test_the_damaged_array_is_named(checkpoints, monkeypatch):
    checkpoints.save(1, {"a": jnp.arange(3.0), "b": jnp.arange(3.0)})
    checkpoints.wait()
    said, restore = [], checkpoints.open().restore

    def altered(step, args):
        read = restore(step, args=args)
        return {**read, "state": {**read["state"], "b": read["state"]["b"].at[1].set(9)}}

    monkeypatch.setattr(checkpoints.open(), "restore", altered)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read; start a new run"):
        checkpoints.restore({"a": jnp.zeros(3), "b": jnp.zeros(3)}, said.append)
    assert said == ["the checkpoint of step 1 is damaged (b has a wrong checksum)"]


@pytest.mark.parametrize(
    ("like", "sentence"),
    [
        ({"a": jnp.zeros(3), "b": jnp.zeros(2)}, "model: it has no b"),
        ({"a": jnp.zeros((3, 1))}, "model: a is float32[3] there and float32[3, 1] here"),
        ({"a": jnp.zeros(3, jnp.bfloat16)}, "model: a is float32[3] there and bfloat16[3] here"),
        ({"a": jnp.zeros(3)}, "optimizer: opt_state/mu is float32[3] there and missing here"),
        ({"a": jnp.zeros(3), "opt_state": {"trace": jnp.zeros(3)}}, "optimizer: it has no opt_state/trace"),
    ],
)
def test_arrays_of_another_model_or_optimizer_are_named_and_are_no_damage(checkpoints, like, sentence):
    checkpoints.save(1, {"a": jnp.arange(3.0), "opt_state": {"mu": jnp.zeros(3)}})
    checkpoints.wait()
    said = []
    with pytest.raises(UserError) as refused:
        checkpoints.restore(like, said.append)
    assert str(refused.value) == f"the checkpoint of step 1 in {checkpoints.folder} is of another {sentence}"
    assert said == []
    assert checkpoints.steps() == [1]


def test_two_arrays_of_one_name_are_refused(checkpoints):
    state = {"a/b": jnp.zeros(1), "a": {"b": jnp.ones(1)}}
    for act in (lambda: checkpoints.save(1, state), lambda: checkpoints.restore(state, print)):
        with pytest.raises(UserError, match="two arrays of the state are called a/b"):
            act()


@pytest.mark.parametrize("leaf", [np.zeros(3), np.int64(2**40), 0.1])
def test_what_a_checkpoint_would_round_is_refused(checkpoints, leaf):
    with pytest.raises(UserError, match=r"^a/b is (float|int)64, which a checkpoint would round: use 32 bits"):
        checkpoints.save(1, {"a": {"b": leaf, "count": 3}})


def test_the_state_may_be_overwritten_at_once(checkpoints):
    """What is written later is a copy: the next step may reuse the memory of the state that it was given."""
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    state = jnp.arange(100_000.0)
    checkpoints.save(1, {"w": state})
    overwrite(state)
    checkpoints.wait()
    _, restored = checkpoints.restore({"w": jnp.zeros(100_000)}, print)
    np.testing.assert_array_equal(restored["w"], np.arange(100_000))


PROGRAM = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from pathlib import Path
from dlc import hosts, sharding
from dlc.weights.checkpoint import Checkpoints
devices = sharding.mesh("data=4")
whole = np.arange(8000, dtype=np.float32).reshape(8, 1000)
place = sharding.split(devices)
state = {"w": jax.make_array_from_callback((8, 1000), place, lambda index: whole[index])}
checkpoints = Checkpoints(Path(sys.argv[3]))
checkpoints.save(1, state)
checkpoints.wait()
like = {"w": jax.make_array_from_callback((8, 1000), place, lambda index: 0 * whole[index])}
step, restored = checkpoints.restore(like, print)
for shard in restored["w"].addressable_shards:
    np.testing.assert_array_equal(shard.data, whole[shard.index])
print("the same", step)

checkpoints.save(2, state)
checkpoints.wait()
if hosts.lead():  # what process 1 wrote, and only process 1 reads
    for path in checkpoints.folder.glob("2/default/ocdbt.process_1/d/*"):
        path.write_bytes(path.read_bytes()[:10])
hosts.gathered(None)
said = []
step, restored = checkpoints.restore(like, said.append)
for shard in restored["w"].addressable_shards:
    np.testing.assert_array_equal(shard.data, whole[shard.index])
print("back to", step, said[0].partition(" (")[0])
checkpoints.close()
"""


def test_a_state_split_among_processes_is_written_by_all_of_them(tmp_path, checkpoints):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", PROGRAM, address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen([*words, str(i), str(tmp_path)], env=environment, **pipes) for i in range(2)]
    try:
        said = [process.communicate()[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said
    assert all("the same 1" in text for text in said)
    assert all("back to 1 the checkpoint of step 2 is damaged" in text for text in said), said
    _, restored = checkpoints.restore({"w": jnp.zeros((8, 1000))}, print)  # in one process, on one device
    np.testing.assert_array_equal(restored["w"], np.arange(8000).reshape(8, 1000))
