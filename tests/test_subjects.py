"""Networks that are trained once and found again, and those that the user gives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dlc import metrics
from dlc.errors import UserError
from dlc.models.squeezenet import squeezenet1_1
from dlc.run.run import Run
from dlc.tasks import images, subjects


@pytest.fixture
def quick(tmp_path, monkeypatch):
    monkeypatch.setenv("DLC_DATA", str(tmp_path))
    monkeypatch.setitem(subjects.RECIPES, "digits", (2, 25, 0.1))


def test_a_network_is_trained_once(quick, monkeypatch):
    run, said = Run(), []
    monkeypatch.setattr(Run, "say", lambda run, what: said.append(what))
    first = subjects.trained(run, "digits")
    assert len(run.parts) == 1
    assert "the network for digits is trained first, and kept for every later run ..." in said
    said.clear()
    monkeypatch.setattr(images, "fit", None)
    second = subjects.trained(run, "digits")
    jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)
    assert run.facts["dataset"] == "digits"
    assert [what.split()[:3] for what in said] == [["the", "network", "is"]]
    assert run.facts["network"].startswith("digits-0-")
    logits = second.apply(second.variables, second.image)
    assert metrics.error(logits, second.label) < 0.3


def test_what_is_found_again_does_not_begin_with_weights_of_ones_own(quick, tmp_path):
    with pytest.raises(UserError, match=r"^leave out --init-from: this experiment looks into a network"):
        subjects.trained(Run(init_from=tmp_path / "weights.safetensors"), "digits")
    assert not (tmp_path / "networks").exists()


def test_another_recipe_or_seed_is_another_network(quick, monkeypatch):
    task = subjects.problem("digits")
    names = {subjects._file(task, 0), subjects._file(task, 1)}
    monkeypatch.setitem(subjects.RECIPES, "digits", (3, 25, 0.1))
    assert len(names | {subjects._file(task, 0)}) == 3


def test_pixels_may_be_floats_and_have_gradients(quick):
    subject = subjects.given(Run(), *_untrained("digits"), name="digits")
    pixels = subject.image[:2]
    np.testing.assert_array_equal(subject.prepare(pixels), subject.prepare(pixels.astype(np.float32)))
    gradient = jax.grad(lambda pixels: subject.apply(subject.variables, pixels).sum())(pixels.astype(np.float32))
    assert np.abs(gradient).max() > 0


def test_photographs_are_cropped_as_published_networks_expect(tmp_path):
    file = tmp_path / "grey.png"
    Image.new("RGB", (300, 400), (128, 128, 128)).save(file)
    model = squeezenet1_1()
    subject = subjects.given(Run(), model, _shapes(model, (1, 224, 224, 3)), photographs=[file])
    assert subject.image.shape == (1, 224, 224, 3)
    assert (subject.name, subject.label, len(subject.classes)) == ("photographs", None, 1000)


def test_mistakes_are_one_sentence(tmp_path):
    model, variables = _untrained("digits")
    table = {
        "there is nothing to look at": {},
        "Convnet cannot take the images of digits32": {"name": "digits32"},
    }
    for sentence, how in table.items():
        with pytest.raises(UserError, match=sentence) as raised:
            subjects.given(Run(), model, variables, **how)
        assert "\n" not in str(raised.value)
    pair = nn.Sequential([lambda pixels: (pixels, pixels)])
    with pytest.raises(UserError, match=r"^Sequential does not classify images: name a network that returns logits$"):
        subjects.given(Run(), pair, {}, name="digits")
    model = squeezenet1_1(num_classes=7)
    file = tmp_path / "grey.png"
    Image.new("RGB", (300, 400)).save(file)
    with pytest.raises(UserError, match="for 7 classes, but photographs have 1,000"):
        subjects.given(Run(), model, _shapes(model, (1, 224, 224, 3)), photographs=[file])


def _untrained(name):
    model = subjects.problem(name).model
    shape = (1, 28, 28, 1) if name == "digits" else (1, 32, 32, 3)
    return model, model.init(jax.random.key(0), jnp.zeros(shape))


def _shapes(model, shape):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
