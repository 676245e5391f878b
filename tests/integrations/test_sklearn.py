"""scikit-learn's own estimator checks, and what its test module for random projection asserts, for our estimators."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")

import scipy.sparse as sp  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.exceptions import DataDimensionalityWarning, NotFittedError  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.metrics import euclidean_distances  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.utils.estimator_checks import estimator_checks_generator  # noqa: E402

from edgefast import sketch  # noqa: E402
from edgefast.integrations.sklearn import RandomProjection, SimHash  # noqa: E402

KINDS = ("sparse_stack", "countsketch", "srht", "rademacher", "gaussian", "sparse")


def _checks() -> list[Any]:
    estimators = [
        RandomProjection(n_components=2, random_state=0),
        RandomProjection(2, kind="srht", random_state=0),
        SimHash(16, random_state=0),
    ]
    found = []
    for estimator in estimators:
        for checked, check in estimator_checks_generator(estimator):
            name = getattr(check, "func", check).__name__
            found.append(pytest.param(checked, check, id=f"{type(estimator).__name__}-{estimator.kind}-{name}"))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("estimator", "check"), _checks())
def test_estimator_checks(estimator: Any, check: Any) -> None:
    check(clone(estimator))


def rows(n: int, d: int, *, sparse: bool = False, seed: int = 0, per_row: int = 10) -> Any:
    rng = np.random.default_rng(seed)
    X = np.zeros((n, d))
    at = rng.integers(d, size=(n, max(1, min(d, per_row))))
    X[np.arange(n)[:, None], at] = rng.standard_normal(at.shape)
    return sp.csr_matrix(X) if sparse else X


def test_auto_needs_room() -> None:
    with pytest.raises(ValueError, match="target dimension"):
        RandomProjection().fit([[0, 1, 2]])
    message = "eps=0.100000 and n_samples=1000 lead to a target dimension of 5920 which is larger than the original "
    with pytest.raises(ValueError, match=message + "space with n_features=100"):
        RandomProjection(eps=0.1).fit(np.ones((1000, 100)))


@pytest.mark.parametrize(
    "params",
    [
        {"n_components": 0},
        {"n_components": -3},
        {"n_components": "many"},
        {"n_components": 2.5},
        {"kind": "pca", "n_components": 2},
        {"nnz": 0, "n_components": 2},
        {"random_state": -1, "n_components": 2},
        {"random_state": 2**64, "n_components": 2},
        {"kind": "sparse", "density": 1.1, "n_components": 2},
        {"eps": 0.0},
        {"eps": 1.0},
    ],
)
def test_bad_parameters(params: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        RandomProjection(**params).fit(np.ones((4, 30)))


def test_before_fit() -> None:
    for call in ("transform", "inverse_transform"):
        with pytest.raises(NotFittedError):
            getattr(RandomProjection(), call)(np.ones((2, 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_auto_keeps_the_promised_distances(kind: str) -> None:
    X, eps = rows(8, 5000, per_row=2000), 0.2
    before = euclidean_distances(X, squared=True)[np.triu_indices(8, 1)]
    Y = RandomProjection(eps=eps, kind=kind, random_state=0).fit_transform(X)
    ratio = euclidean_distances(Y, squared=True)[np.triu_indices(8, 1)] / before
    assert 1 - eps < ratio.min()
    assert ratio.max() < 1 + eps


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_repeatability(kind: str) -> None:
    X = rows(10, 1000)
    rp = RandomProjection(eps=0.5, kind=kind, random_state=0).fit(X)
    assert rp.n_components == "auto"
    assert rp.n_components_ == 110
    assert rp.components_.shape == (110, 1000)
    Y = rp.transform(X)
    assert Y.shape == (10, 110)
    np.testing.assert_array_equal(Y, rp.transform(X))
    np.testing.assert_array_equal(Y, RandomProjection(eps=0.5, kind=kind, random_state=0).fit_transform(X))
    np.testing.assert_allclose(Y, X @ np.asarray(rp.operator_.toarray()).T, atol=1e-9)
    with pytest.raises(ValueError, match="features"):
        rp.transform(X[:, 1:5])
    assert rp.get_feature_names_out()[:2].tolist() == ["randomprojection0", "randomprojection1"]


def test_density() -> None:
    X = rows(10, 1000)
    assert RandomProjection(100, kind="sparse", random_state=0).fit(X).density_ == pytest.approx(0.03, abs=0.005)
    rp = RandomProjection(100, kind="sparse", density=0.01, random_state=0).fit(X)
    assert rp.density_ == 0.01
    assert 850 < rp.components_.nnz < 1150
    assert RandomProjection(64, nnz=4).fit(X).density_ == 4 / 64
    assert RandomProjection(64, kind="gaussian").fit(X).density_ == 1


def test_more_components_than_features_warns() -> None:
    with pytest.warns(DataDimensionalityWarning):
        RandomProjection(21).fit(rows(5, 20))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", [sp.csr_matrix, sp.csc_matrix, sp.csr_array, sp.csc_array])
def test_sparse_input(kind: str, layout: Any) -> None:
    X = rows(12, 300)
    rp = RandomProjection(24, kind=kind, random_state=1).fit(layout(X))
    dense = RandomProjection(24, kind=kind, random_state=1).fit(X)
    assert rp.operator_ == dense.operator_
    Y = rp.transform(layout(X))
    assert isinstance(Y, np.ndarray)
    np.testing.assert_allclose(Y, dense.transform(X), atol=1e-12)
    rp.set_params(dense_output=False)
    Z = rp.transform(layout(X))
    assert sp.issparse(Z)
    assert isinstance(Z, sp.sparray) == isinstance(layout(X), sp.sparray)
    np.testing.assert_array_equal(Z.toarray(), Y)
    assert isinstance(rp.transform(X), np.ndarray)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("n", "d"), [(2, 2), (9, 10), (11, 1000), (300, 11)])
def test_inverse_transform(kind: str, n: int, d: int, keep: bool) -> None:
    k = min(10, d)
    rp = RandomProjection(k, kind=kind, random_state=0, compute_inverse_components=keep)
    for X in (rows(n, d), rows(n, d, sparse=True)):
        Y = rp.fit_transform(X)
        assert hasattr(rp, "inverse_components_") == keep
        if keep:
            assert rp.inverse_components_.shape == (d, k)
        back = rp.inverse_transform(Y)
        assert back.shape == X.shape
        # The way back is exact up to the directions that the matrix does not have.
        if np.linalg.matrix_rank(rp.operator_.toarray()) == k:
            np.testing.assert_allclose(rp.transform(back), Y, rtol=1e-7, atol=1e-10)
    with pytest.raises(ValueError, match="components"):
        rp.inverse_transform(np.ones((1, k + 1)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("given", "expected"),
    [(np.float32, np.float32), (np.float64, np.float64), (np.int32, np.float64), (np.int64, np.float64)],
)
def test_dtypes(kind: str, given: Any, expected: Any) -> None:
    X = (10 * np.random.default_rng(0).random((25, 700))).astype(given)
    rp = RandomProjection(32, kind=kind, random_state=0)
    assert rp.fit_transform(X).dtype == expected
    assert rp.components_.dtype == expected


def test_precision_does_not_choose_the_operator() -> None:
    X = np.random.default_rng(42).random((25, 3000))
    single, double = RandomProjection(random_state=0, eps=0.3), RandomProjection(random_state=0, eps=0.3)
    np.testing.assert_allclose(single.fit_transform(X.astype(np.float32)), double.fit_transform(X), atol=2e-5)
    assert single.operator_ == double.operator_


def test_random_state() -> None:
    X = rows(5, 40)
    assert RandomProjection(4, random_state=2**63).fit(X).seed_ == 2**63
    a, b = (RandomProjection(4, random_state=np.random.RandomState(3)).fit(X).seed_ for _ in range(2))
    assert a == b
    a, b = (RandomProjection(4, random_state=np.random.default_rng(3)).fit(X).seed_ for _ in range(2))
    assert a == b
    assert RandomProjection(4).fit(X).seed_ != RandomProjection(4).fit(X).seed_


def test_fit_without_data_and_in_batches() -> None:
    whole = RandomProjection(eps=0.9, random_state=5).fit(rows(20, 600))
    assert RandomProjection(eps=0.9, random_state=5).fit_shape(20, 600).operator_ == whole.operator_
    batches = RandomProjection(8, random_state=5).partial_fit(rows(3, 50)).partial_fit(rows(7, 50, seed=1))
    assert batches.operator_ == RandomProjection(8, random_state=5).fit(rows(1, 50)).operator_
    with pytest.raises(ValueError, match="features"):
        batches.partial_fit(rows(3, 51))


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_is_small_whatever_the_size(kind: str) -> None:
    rp = RandomProjection(1024, kind=kind, random_state=3).fit_shape(10, 1_000_000)
    data = pickle.dumps(rp)
    assert len(data) < 2000
    assert pickle.loads(data).operator_ == rp.operator_


def test_pipeline_grid_search_and_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    X, y = load_digits(return_X_y=True)
    pipeline = make_pipeline(RandomProjection(32, random_state=0), LogisticRegression(max_iter=300, C=0.01))
    search = GridSearchCV(
        pipeline, {"randomprojection__kind": ["srht", "countsketch"], "randomprojection__n_components": [8, 48]}, cv=2
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.fit(X[:900], y[:900])
        assert search.best_params_["randomprojection__n_components"] == 48
        assert search.score(X[900:], y[900:]) > 0.8
    frame = RandomProjection(3, random_state=0).set_output(transform="pandas").fit_transform(pandas.DataFrame(X[:5]))
    assert list(frame.columns) == ["randomprojection0", "randomprojection1", "randomprojection2"]


def test_simhash() -> None:
    X = np.random.default_rng(0).standard_normal((6, 40))
    hasher = SimHash(100, random_state=7).fit(X)
    codes = hasher.transform(X)
    assert codes.shape == (6, 13)
    np.testing.assert_array_equal(codes, sketch.SimHash(100, seed=7).transform(X))
    assert hasher.get_feature_names_out()[-1] == "simhash12"
    assert len(pickle.dumps(hasher)) < 2000
    with pytest.raises(ValueError, match="n_bits"):
        SimHash(0).fit(X)
    with pytest.raises(NotFittedError):
        SimHash().transform(X)
    labels = np.arange(6) % 2
    model = make_pipeline(SimHash(64, random_state=0), KNeighborsClassifier(1, metric="hamming")).fit(X, labels)
    assert model.score(X, labels) == 1


def test_a_fit_that_failed_is_no_fit() -> None:
    X = np.ones((3, 8))
    for estimator in (RandomProjection(0), SimHash(0)):
        with pytest.raises(ValueError, match="expected an integer from 1"):
            estimator.fit(X)
        with pytest.raises(NotFittedError):
            estimator.transform(X)
    projection = RandomProjection(4, nnz=0)
    with pytest.raises(ValueError, match="nnz: expected"):
        projection.fit_shape(3, 8)
    assert not hasattr(projection, "n_features_in_")
