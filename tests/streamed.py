"""One of several processes that read a stream together. Used by test_stream.py.

python -m streamed PORT HOST HOSTS      prints the rows that its two devices hold, and fails if they hold another thing
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dlc.data.stream import Batches


def view(number, rng=None):
    return {"number": np.int32(number), "drawn": np.float64(0 if rng is None else rng.random())}


def main(port, host, hosts):
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(f"localhost:{port}", hosts, host, initialization_timeout=60)
    mesh = jax.make_mesh((2 * hosts,), ("data",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec(None, "data"))
    for seed in (0, None):
        part = Batches(range(30), view, batch=8, seed=seed, sharding=place)
        whole = Batches(range(30), view, batch=8, seed=seed)
        for first, count in ((0, 2), (7, 1), (8, 3)):
            here, there = part(first, count), whole(first, count)
            assert jax.tree.map(np.shape, here) == jax.tree.map(np.shape, there)
            for name, leaf in here.items():
                assert len(leaf.addressable_shards) == 2
                for shard in leaf.addressable_shards:
                    np.testing.assert_array_equal(np.asarray(shard.data), there[name][shard.index])
        total = jax.jit(jnp.sum)(here["number"])
        assert int(total) == there["number"].sum()
    print(*part.rows)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
