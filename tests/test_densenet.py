"""DenseNet: the sizes of its paper's table, what its layers keep, and older files of published weights."""

import re

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_resnet import outputs

from dlc import weights
from dlc.models.densenet import DenseNet, densenet121


@pytest.mark.usefixtures("_plain")
def test_sizes_of_table_1():
    shapes = outputs(densenet121(), (224, 224))
    assert shapes["conv"] == (112, 112, 64)
    assert [shapes[f"transition{i}_conv"] for i in (1, 2, 3)] == [(56, 56, 128), (28, 28, 256), (14, 14, 512)]
    assert shapes["norm2"] == (7, 7, 1024)
    assert {shapes[f"block{i}_layer1/conv1"][-1] for i in (1, 2, 3, 4)} == {128}


def test_files_with_points_in_the_names_of_modules_are_read(tmp_path):
    model = DenseNet((2, 1), growth=4, stem=8, num_classes=3)
    variables = drawn.variables(model, jnp.zeros((1, 32, 32, 3)))
    weights.save_state_dict(tmp_path / "today.safetensors", model, variables)
    today = load_file(tmp_path / "today.safetensors")
    old = {re.sub(r"(denselayer\d\.)(conv|norm)(\d)", r"\1\2.\3", name): tensor for name, tensor in today.items()}
    assert "features.denseblock1.denselayer2.norm.2.running_var" in old
    save_file(old, tmp_path / "old.safetensors")
    again = weights.load_state_dict(tmp_path / "old.safetensors", model)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
