"""Random projections as scikit-learn estimators, for Pipeline, GridSearchCV, clone, pickle and set_output.

`RandomProjection` stands in for GaussianRandomProjection and SparseRandomProjection: the same parameters and fitted
attributes, but what it keeps is the 24-byte operator instead of a matrix. `SimHash` turns rows into packed bit codes.

Needs scikit-learn: pip install 'edgefast[sklearn]'.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgefast import sketch
from edgefast.sketch import SketchOperator, johnson_lindenstrauss_min_dim

try:
    from sklearn import base
    from sklearn.exceptions import DataDimensionalityWarning
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ModuleNotFoundError as _error:
    if _error.name is None or _error.name.partition(".")[0] != "sklearn":
        raise
    raise ImportError("edgefast.integrations.sklearn needs scikit-learn: pip install 'edgefast[sklearn]'") from _error

__all__ = ["RandomProjection", "SimHash"]

_FLOATS = (np.float64, np.float32)

if TYPE_CHECKING:
    from typing import Self

    class _Transformer:
        # scikit-learn has no types of its own: what its base classes add.
        def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Any: ...
        def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]: ...
        def get_params(self, deep: bool = True) -> dict[str, Any]: ...
        def set_params(self, **params: Any) -> Self: ...
        def set_output(self, *, transform: str | None = None) -> Self: ...
        def __sklearn_tags__(self) -> Any: ...

else:

    class _Transformer(base.ClassNamePrefixFeaturesOutMixin, base.TransformerMixin, base.BaseEstimator):
        pass


def _seed_of(random_state: Any) -> int:
    """The operator's seed: an integer is the seed itself, a generator is asked for one."""
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**64, dtype=np.uint64))
    if isinstance(random_state, (int, np.integer)) and not isinstance(random_state, bool):
        return int(random_state)
    state = check_random_state(random_state)
    return int.from_bytes(state.bytes(8), "little")


class RandomProjection(_Transformer):
    """Project rows to fewer features, keeping distances on average.

    Args:
        n_components: features of the output, or "auto" for the Johnson-Lindenstrauss bound of the rows seen by fit.
        kind: of the operator, see `edgefast.sketch.SketchOperator`.
        eps: distortion of distances that n_components="auto" allows, between 0 and 1.
        nnz: nonzero entries per feature of kind="sparse_stack".
        density: of kind="sparse": "auto" for 1 / sqrt(n_features), or 1/s.
        dense_output: False gives a SciPy CSR matrix for sparse input, as SparseRandomProjection does.
        compute_inverse_components: keep the pseudo-inverse after fit (n_features x n_components numbers).
        random_state: an integer is the operator's seed (0 to 2**64 - 1): the same one gives the same operator on every
            machine. None or a generator draws one.
        num_threads: threads of transform; None for the default of edgefast.

    Attributes:
        operator_: the `SketchOperator`; operator_.to_bytes() is all another device needs.
        n_components_: features of the output.
        seed_: seed of the operator.
        density_: share of nonzero entries of the operator's matrix.
        components_: the matrix, (n_components_, n_features_in_), scale included, in the dtype fit saw. Made anew at
            every access: SciPy CSR for the sparse kinds, an array for the others.
        inverse_components_: pseudo-inverse of the matrix, only with compute_inverse_components=True.
        n_features_in_, feature_names_in_: as in every scikit-learn estimator.

    Examples:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).standard_normal((25, 3000))
        >>> RandomProjection(n_components=128, random_state=0).fit_transform(X).shape
        (25, 128)
    """

    def __init__(
        self,
        n_components: int | Literal["auto"] = "auto",
        *,
        kind: str = "sparse_stack",
        eps: float = 0.1,
        nnz: int = 8,
        density: float | Literal["auto"] = "auto",
        dense_output: bool = True,
        compute_inverse_components: bool = False,
        random_state: Any = None,
        num_threads: int | None = None,
    ) -> None:
        self.n_components = n_components
        self.kind = kind
        self.eps = eps
        self.nnz = nnz
        self.density = density
        self.dense_output = dense_output
        self.compute_inverse_components = compute_inverse_components
        self.random_state = random_state
        self.num_threads = num_threads

    def fit(self, X: Any, y: Any = None) -> RandomProjection:
        """Choose the operator. Of X only the shape and the dtype count.

        Args:
            X: (n_samples, n_features), dense or SciPy CSR/CSC.
            y: ignored.

        Raises:
            ValueError: a parameter out of range, n_components="auto" beyond n_features, NaN or infinity in X.
            TypeError: a parameter of the wrong type.
        """
        X = validate_data(self, X, accept_sparse=["csr", "csc"], dtype=_FLOATS)
        self._fit(X.shape[0], X.shape[1], X.dtype)
        return self

    def fit_shape(self, n_samples: int, n_features: int, dtype: Any = np.float64) -> RandomProjection:
        """`fit` without data: `n_samples` counts for n_components="auto" only.

        Raises:
            TypeError, ValueError: as `fit`.
        """
        self._fit(n_samples, n_features, np.dtype(dtype))
        self.n_features_in_: int = self.operator_.n_features
        self.__dict__.pop("feature_names_in_", None)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> RandomProjection:
        """`fit` on the first batch; later ones are checked and change nothing.

        Raises:
            TypeError, ValueError: as `fit`; a batch of another width than the first.
        """
        if not hasattr(self, "operator_"):
            return self.fit(X)
        validate_data(self, X, reset=False, accept_sparse=["csr", "csc"], dtype=_FLOATS)
        return self

    def _fit(self, n_samples: int, n_features: int, dtype: np.dtype[Any]) -> None:
        if isinstance(self.n_components, str):
            if self.n_components != "auto":
                raise ValueError(f"n_components: expected 'auto' or a positive integer, got {self.n_components!r}")
            k = int(johnson_lindenstrauss_min_dim(n_samples, eps=self.eps))
            if k <= 0:
                raise ValueError(
                    f"eps={self.eps:f} and n_samples={n_samples} lead to a target dimension of {k} which is invalid"
                )
            if k > n_features:
                raise ValueError(
                    f"eps={self.eps:f} and n_samples={n_samples} lead to a target dimension of {k} which is larger "
                    f"than the original space with n_features={n_features}"
                )
        else:
            k = self.n_components
            if isinstance(k, (int, np.integer)) and k > n_features:
                warnings.warn(
                    "The number of components is higher than the number of features: "
                    f"n_features < n_components ({n_features} < {k}). "
                    "The dimensionality of the problem will not be reduced.",
                    DataDimensionalityWarning,
                    stacklevel=3,
                )
        self.operator_: SketchOperator = SketchOperator(
            self.kind,
            n_features,
            k,
            seed=_seed_of(self.random_state),
            nnz=self.nnz,
            density=self.density,  # type: ignore[arg-type] - checked there
        )
        self.n_components_: int = self.operator_.n_components
        self.seed_: int = self.operator_.seed
        self._dtype = np.dtype(np.float32 if dtype == np.float32 else np.float64)
        if self.compute_inverse_components:
            self.inverse_components_: NDArray[Any] = self._pseudo_inverse()
        else:
            self.__dict__.pop("inverse_components_", None)

    @property
    def components_(self) -> Any:
        """The matrix, (n_components_, n_features_in_), its scale included: CSR for sparse kinds, else an array."""
        check_is_fitted(self, "operator_")
        operator = self.operator_
        if operator.kind in ("sparse_stack", "countsketch", "sparse"):
            return operator.tosparse().tocsr().astype(self._dtype)
        return operator.toarray().astype(self._dtype)

    @property
    def density_(self) -> float:
        """Share of the matrix that is not zero, expected where entries are drawn independently."""
        check_is_fitted(self, "operator_")
        operator = self.operator_
        if operator.kind == "sparse":
            return float(operator.density)
        return float(operator.nnz) / operator.n_components if operator.kind in ("sparse_stack", "countsketch") else 1.0

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def transform(self, X: Any) -> Any:
        """Project rows.

        Args:
            X: (n_samples, n_features_in_), dense or SciPy CSR/CSC; float32 stays float32, everything else becomes
                float64.

        Returns:
            (n_samples, n_components_): an array, or a CSR matrix for sparse X with dense_output=False.

        Raises:
            NotFittedError: fit was not called.
            ValueError: another number of features, NaN or infinity.
        """
        check_is_fitted(self, "operator_")
        X = validate_data(self, X, reset=False, accept_sparse=["csr", "csc"], dtype=_FLOATS)
        Y = self.operator_.transform(X, num_threads=self.num_threads)
        if not self.dense_output and hasattr(X, "tocsr"):
            import scipy.sparse

            return scipy.sparse.csr_array(Y) if isinstance(X, scipy.sparse.sparray) else scipy.sparse.csr_matrix(Y)
        return Y

    def inverse_transform(self, X: Any) -> NDArray[Any]:
        """The shortest rows that project to X: X @ pinv(components_).T.

        Costs a singular value decomposition of the dense matrix unless compute_inverse_components=True kept it;
        `operator_.adjoint` is the cheap, approximate way back.

        Args:
            X: (n_samples, n_components_).

        Returns:
            (n_samples, n_features_in_).

        Raises:
            NotFittedError: fit was not called.
            ValueError: another number of components, NaN or infinity.
        """
        from sklearn.utils import check_array

        check_is_fitted(self, "operator_")
        check: Any = check_array
        X = check(X, dtype=_FLOATS, accept_sparse=["csr", "csc"])
        if X.shape[1] != self.n_components_:
            raise ValueError(f"X: expected {self.n_components_} components, got {X.shape[1]}")
        inverse = getattr(self, "inverse_components_", None)
        return X @ (self._pseudo_inverse() if inverse is None else inverse).T

    def _pseudo_inverse(self) -> NDArray[Any]:
        from scipy import linalg

        inverse: Any = linalg.pinv(self.operator_.toarray())
        return inverse.astype(self._dtype)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.sparse = True
        return tags


class SimHash(_Transformer):
    """Turn rows into packed bit codes whose Hamming distance measures the angle between rows.

    The estimator over `edgefast.sketch.SimHash`, whose hamming, angle, nearest and search work on the codes
    (`hasher_`).

    Args:
        n_bits: bits of a code.
        kind: "srht" or "sparse_stack", the projection whose signs are the bits.
        random_state: an integer is the seed itself (0 to 2**64 - 1); None or a generator draws one.
        num_threads: threads of transform; None for the default of edgefast.

    Attributes:
        hasher_: the `edgefast.sketch.SimHash`.
        seed_: its seed.
        n_features_in_, feature_names_in_: as in every scikit-learn estimator.

    Examples:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).standard_normal((5, 20))
        >>> SimHash(64, random_state=0).fit_transform(X).shape
        (5, 8)
    """

    def __init__(
        self,
        n_bits: int = 256,
        *,
        kind: str = "srht",
        random_state: Any = None,
        num_threads: int | None = None,
    ) -> None:
        self.n_bits = n_bits
        self.kind = kind
        self.random_state = random_state
        self.num_threads = num_threads

    def fit(self, X: Any, y: Any = None) -> SimHash:
        """Choose the hash. Of X only the width counts.

        Args:
            X: (n_samples, n_features).
            y: ignored.

        Raises:
            ValueError: a parameter out of range, NaN or infinity in X.
            TypeError: a parameter of the wrong type.
        """
        validate_data(self, X, dtype=_FLOATS)
        self.seed_: int = _seed_of(self.random_state)
        kind: Any = self.kind
        self.hasher_: sketch.SimHash = sketch.SimHash(
            self.n_bits, kind=kind, seed=self.seed_, num_threads=self.num_threads
        )
        return self

    @property
    def _n_features_out(self) -> int:
        return self.hasher_.n_bytes

    def transform(self, X: Any) -> NDArray[np.uint8]:
        """Codes of the rows.

        Args:
            X: (n_samples, n_features_in_).

        Returns:
            uint8 (n_samples, ceil(n_bits / 8)), bits as `edgefast.sketch.SimHash.transform` packs them.

        Raises:
            NotFittedError: fit was not called.
            ValueError: another number of features, NaN or infinity.
        """
        check_is_fitted(self, "hasher_")
        return self.hasher_.transform(validate_data(self, X, reset=False, dtype=_FLOATS))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags
