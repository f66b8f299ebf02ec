"""Similarity of representations: what CKA and dissimilarity matrices ignore, and ridge regression as scikit-learn's."""

import numpy as np
import pytest
from drawn import normal
from sklearn.linear_model import Ridge, RidgeCV

from dlc.analysis import similarity
from dlc.analysis.similarity import cka, explained, gram, rdm, rsa
from dlc.errors import UserError

X, Y = np.asarray(normal(40, 12, seed=1)), np.asarray(normal(40, 7, seed=2))
ROTATION = np.linalg.qr(np.asarray(normal(12, 12, seed=3)))[0]


def alike(one, other):
    return float(cka(gram(one), gram(other)))


def test_cka_is_one_under_rotation_and_isotropic_scaling_and_shift():
    assert alike(X, X @ ROTATION) == pytest.approx(1, abs=1e-5)
    assert alike(X, 3.7 * X @ ROTATION + 5) == pytest.approx(1, abs=1e-5)
    assert alike(X, X[:, ::-1]) == pytest.approx(1, abs=1e-5)


def test_cka_is_less_than_one_under_other_linear_maps_and_for_other_images():
    assert alike(X, X * np.linspace(0.1, 3, 12)) < 0.95
    assert 0 < alike(X, Y) < 0.5
    assert alike(X, np.ones((40, 3))) == 0


def test_cka_of_gram_matrices_is_that_of_features():
    x, y = (a - a.mean(0) for a in (X, Y))
    direct = np.sum((y.T @ x) ** 2) / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    assert alike(X, Y) == pytest.approx(direct, rel=1e-5)


def test_images_of_any_shape_are_flattened():
    assert alike(X.reshape(40, 2, 3, 2), X) == pytest.approx(1, abs=1e-5)


def test_a_dissimilarity_matrix_is_one_minus_the_correlations():
    matrix = rdm(X)
    np.testing.assert_allclose(matrix, 1 - np.corrcoef(X), atol=1e-5)
    np.testing.assert_array_equal(np.diag(matrix), 0)
    constant = rdm(np.ones((3, 5)))
    np.testing.assert_array_equal(constant, 1 - np.eye(3))


def test_rsa_sees_only_the_order_of_the_dissimilarities():
    assert float(rsa(rdm(X), rdm(X) ** 3)) == pytest.approx(1, abs=1e-5)
    assert float(rsa(rdm(X), 2 - rdm(X))) == pytest.approx(-1, abs=1e-5)
    assert abs(float(rsa(rdm(X), rdm(Y)))) < 0.2


def test_what_is_linear_is_explained_and_noise_is_not():
    units = np.concatenate([X @ normal(12, 3, seed=4), normal(40, 3, seed=5), np.ones((40, 1))], axis=1)
    share = np.asarray(explained(X, units))
    assert (share[:3] > 0.99).all()
    assert (share[3:6] < 0.4).all()
    assert share[6] == 0


def test_the_ridge_is_that_of_scikit_learn():
    guess = similarity._ridge(X[:30], Y[:30], X[30:])
    strengths = np.asarray(similarity.STRENGTHS) * float(np.mean(np.linalg.eigvalsh(np.asarray(gram(X[:30])))))
    chosen = RidgeCV(strengths, alpha_per_target=True).fit(X[:30], Y[:30]).alpha_
    expected = np.stack([Ridge(a).fit(X[:30], Y[:30, i]).predict(X[30:]) for i, a in enumerate(chosen)], axis=1)
    np.testing.assert_allclose(guess, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("units", "folds", "sentence"),
    [
        (Y[:39], 5, r"^features of 40 images cannot explain answers to 39: both need the same images$"),
        (Y, 21, r"^21 folds need at least 42 images and two folds, not 40 images$"),
        (Y, 1, r"^1 folds need at least 4 images and two folds, not 40 images$"),
    ],
)
def test_bad_input_is_one_sentence(units, folds, sentence):
    with pytest.raises(UserError, match=sentence):
        explained(X, units, folds)
