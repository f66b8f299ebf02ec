"""A model with its weights in one file: it runs in a process without `dlc`, and is a program for three platforms."""

import subprocess
import sys

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc import export
from dlc.errors import UserError
from dlc.models.resnet_cifar import CifarResNet
from dlc.models.vit import ViT, ViTConfig

SMALL = {
    "with batch statistics": CifarResNet((1,), (16,), num_classes=7),
    "with attention": ViT(ViTConfig(image=32, patch=8, classes=7, layers=1, heads=2, width=32)),
}

ELSEWHERE = """
import sys
import jax, jax.export
import numpy as np
exported = jax.export.deserialize(open("model.jax", "rb").read())
np.save("logits.npy", exported.call(np.load("images.npy")))
assert not {"dlc", "flax"} & set(sys.modules), "not without them"
print(*exported.platforms)
"""


@pytest.mark.parametrize("model", SMALL.values(), ids=SMALL)
def test_a_file_is_all_that_another_process_needs(model, tmp_path):
    images = drawn.normal(2, 32, 32, 3)
    variables = drawn.variables(model, images)  # no zeros: initial weights may have a head of zeros, which says nothing
    export.save(tmp_path / "model.jax", model, variables, images)
    np.save(tmp_path / "images.npy", images)
    # -I: no path of this checkout; where the package is installed it is not imported, as the program asserts.
    done = subprocess.run([sys.executable, "-I", "-c", ELSEWHERE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["cpu", "cuda", "tpu"]
    expected = jax.jit(model.apply)(variables, images)
    assert np.std(expected) > 1e-3
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(export.load(tmp_path / "model.jax")(images), expected, rtol=1e-4, atol=1e-5)


def test_what_is_no_exported_model_is_named(tmp_path):
    model, images = SMALL["with attention"], jnp.zeros((1, 32, 32, 3))
    variables = drawn.variables(model, images)
    export.save(tmp_path / "model.jax", model, variables, images)
    whole = (tmp_path / "model.jax").read_bytes()
    (tmp_path / "short.jax").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jax").write_text("no model")
    for name in ("short", "text"):
        with pytest.raises(
            UserError, match=rf"{name}\.jax is not a model that export.save wrote, or is damaged: export it again"
        ):
            export.load(tmp_path / f"{name}.jax")
    with pytest.raises(UserError, match=r"missing\.jax cannot be read: No such file"):
        export.load(tmp_path / "missing.jax")
    with pytest.raises(UserError, match=r"the folder .*nowhere does not exist: make it first"):
        export.save(tmp_path / "nowhere" / "model.jax", model, variables, images)
