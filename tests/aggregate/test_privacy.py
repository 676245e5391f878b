"""Clipping, noise, adaptive clip norms and accounting. The noise cannot be seeded: statistical tests have a fixed
number of samples and bounds that fail by chance less than once in 10**7 runs."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgefast.aggregate import (
    AdaptiveClipper,
    DtypeMismatch,
    GaussianMechanism,
    NonFiniteUpdate,
    ShapeMismatch,
    StructureMismatch,
    UnequalWeights,
    _extras,
    _noise,
    clip_by_global_norm,
    dp_epsilon,
    dp_noise_multiplier,
    gaussian_noise_multiplier,
    weighted_mean,
)
from edgefast.aggregate._noise import SecureRandom
from edgefast.aggregate.privacy import _grid

SAMPLES = 100_000


@pytest.fixture(params=["chacha20", "urandom"])
def generator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without the cryptography package."""
    if request.param == "chacha20":
        pytest.importorskip("cryptography")
    else:

        def missing(module: str) -> Any:
            raise ImportError(module)

        monkeypatch.setattr(_extras, "crypto", missing)
    return request.param


def cdf(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])


def assert_normal(x: np.ndarray, sigma: float) -> None:
    """Kolmogorov and Smirnov's test at 1e-7, and the variance, which it hardly sees."""
    n = x.size
    expected = cdf(np.sort(x) / sigma)
    steps = np.arange(n + 1) / n
    distance = max((steps[1:] - expected).max(), (expected - steps[:-1]).max())
    assert distance * math.sqrt(n) < math.sqrt(-math.log(0.5e-7) / 2)
    assert abs((x.var() / sigma**2) - 1) < 5.4 * math.sqrt(2 / n)


# ---- the generator -------------------------------------------------------------------------------------------------


def test_noise_is_normal(generator: str) -> None:
    random = SecureRandom()
    assert (random._stream is not None) == (generator == "chacha20")
    x = random.normals(SAMPLES)
    assert_normal(x, 1.0)
    # Neighbours, and the two halves of a pair, are not correlated.
    half = _noise._TILE
    for a, b in ((x[:-1], x[1:]), (x[:half], x[half : 2 * half])):
        assert abs(np.mean(a * b)) < 5.4 / math.sqrt(a.size)
    assert_normal(random.on_grid(1000.0, SAMPLES) / 1000.0, 1.0)
    assert np.unique(x).size == SAMPLES
    assert [random.normals(k).size for k in (0, 1, 2, 3)] == [0, 1, 2, 3]


def test_words_are_uniform_and_never_the_same(generator: str) -> None:
    words = SecureRandom().words(SAMPLES)
    counts = np.bincount(words.view(np.uint8), minlength=256)
    chi2 = ((counts - SAMPLES / 32) ** 2 / (SAMPLES / 32)).sum()
    assert abs(chi2 - 255) < 5.4 * math.sqrt(2 * 255) + 30
    assert not (SecureRandom().words(8) == SecureRandom().words(8)).any()


def test_extreme_words_give_finite_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in (0, 1, 2**64 - 1, 2**63):
        monkeypatch.setattr(SecureRandom, "words", lambda self, count, w=word: np.full(count, w, np.uint64))
        x = SecureRandom().normals(6)
        assert np.isfinite(x).all()
        assert np.abs(x).max() < 9.5


# ---- the mechanism -------------------------------------------------------------------------------------------------


def test_no_noise_is_the_clipped_mean(backend: str) -> None:
    rng = np.random.default_rng(0)
    updates = [{"w": rng.standard_normal((9, 11)), "b": [rng.standard_normal(65).astype(np.float32)]} for _ in range(5)]
    updates[1] = {"w": updates[1]["w"] * 1e-6, "b": [updates[1]["b"][0] * np.float32(1e-6)]}
    mean = GaussianMechanism(0.0, 2.0).mean(updates)
    wide = [{"w": u["w"], "b": [u["b"][0].astype(np.float64)]} for u in updates]
    expected = weighted_mean(clip_by_global_norm(wide, 2.0))
    np.testing.assert_allclose(mean["w"], expected["w"], atol=1e-11)
    np.testing.assert_allclose(mean["b"][0], expected["b"][0], atol=1e-7)
    assert mean["b"][0].dtype == np.float32
    base = {"w": np.ones((9, 11)), "b": [np.ones(65, np.float32)]}
    moved = [{"w": u["w"] + 1, "b": [u["b"][0].astype(np.float32) + np.float32(1)]} for u in updates]
    around = GaussianMechanism(0.0, 2.0).mean(iter(moved), base=base)
    np.testing.assert_allclose(around["w"], expected["w"] + 1, atol=1e-6)
    np.testing.assert_allclose(around["b"][0], expected["b"][0] + 1, atol=1e-6)


@given(
    x=hnp.arrays(np.float64, st.integers(1, 70), elements=st.floats(-1e150, 1e150)),
    clip=st.floats(1e-100, 1e100),
    z=st.sampled_from([0.0, 1e-6, 0.5, 1.0, 300.0]),
)
def test_sensitivity_in_exact_arithmetic(x: np.ndarray, clip: float, z: float) -> None:
    """What one client adds to the integer sums is no longer than clip: not by one unit, not by one rounding."""
    mechanism = GaussianMechanism(z, clip)
    sums, step = [np.zeros(x.size)], _grid(z * clip, clip)
    mechanism._add([x], None, [""], 0, clip, step, sums, 1)
    squares = sum(int(v) ** 2 for v in sums[0])
    assert Fraction(step) ** 2 * squares <= Fraction(clip) ** 2
    norm = math.sqrt(float(np.square(x).sum()))
    scale = min(1.0, clip / norm) if norm else 1.0
    assert np.abs(sums[0] * step - x * scale).max() <= step + 1e-11 * clip


def test_what_a_float64_sum_of_squares_loses_does_not_break_the_bound() -> None:
    """30 000 tensors whose squares are each just too small to be seen beside the first one's."""
    update = [np.array(1.0)] + [np.array(np.nextafter(2**-26.5, 0))] * 30_000
    clipped = GaussianMechanism(0.0, 0.75).mean([update])
    assert sum(Fraction(float(x)) ** 2 for x in clipped) <= Fraction(0.75) ** 2


def test_noise_has_the_stated_scale_and_lies_on_the_grid(generator: str) -> None:
    z, clip, n = 1.5, 3.0, 4
    mechanism = GaussianMechanism(z, clip)
    assert mechanism.noise_std(n) == z * clip / n
    zeros = [np.zeros(SAMPLES) for _ in range(n)]
    mean = mechanism.mean(zeros)
    assert_normal(mean, z * clip / n)
    step = _grid(z * clip, clip)
    assert z * clip * 2.0**-31 < step <= z * clip * 2.0**-30
    assert (mean * n / step == np.rint(mean * n / step)).all()
    # A fixed divisor, as with Poisson sampling, and no update at all.
    assert_normal(mechanism.mean(zeros[:2], count=n), z * clip / n)
    assert_normal(mechanism.mean([], count=n, base=zeros[0]), z * clip / n)
    assert_normal(GaussianMechanism(z, clip).randomize(zeros[0], clients=9), z * clip / 3)
    assert mechanism.rounds == 3
    # Two calls never share their noise.
    assert np.abs(np.corrcoef(mechanism.mean(zeros), mechanism.mean(zeros))[0, 1]) < 5.4 / math.sqrt(SAMPLES)


def test_parts_of_clients_add_up_to_the_mechanism() -> None:
    mechanism = GaussianMechanism(1.0, 2.0)
    base = np.full(SAMPLES // 4, 5.0, np.float32)
    total = sum(mechanism.randomize(base, clients=8, base=base).astype(np.float64) for _ in range(8))
    assert_normal(np.asarray(total), 2.0)
    assert mechanism.randomize(base, clients=8, base=base).dtype == np.float32


def test_weights_have_to_be_equal() -> None:
    updates = [np.zeros(3)] * 3
    mechanism = GaussianMechanism(1.0, 1.0)
    with pytest.raises(UnequalWeights, match=r"client 2: expected the weight 1.0 of the others: .*, got 5.0"):
        mechanism.mean(updates, [1, 1, 5])
    with pytest.raises(UnequalWeights):
        mechanism.mean(updates, [0, 0, 0])
    with pytest.raises(ValueError, match="weights: expected 3 weights"):
        mechanism.mean(updates, [2, 2])
    assert mechanism.rounds == 0
    mechanism.mean(updates, [7, 7, 7])
    assert mechanism.rounds == 1


def test_bad_updates() -> None:
    mechanism = GaussianMechanism(1.0, 1.0)
    with pytest.raises(NonFiniteUpdate, match="client 1, key 'w': expected finite values"):
        mechanism.mean([{"w": np.zeros(2)}, {"w": np.array([1.0, np.nan])}])
    with pytest.raises(NonFiniteUpdate, match="expected a norm below"):
        mechanism.mean([np.array([1e300])])
    with pytest.raises(NonFiniteUpdate, match="client base"):
        mechanism.mean([np.zeros(2)], base=np.array([np.inf, 0]))
    with pytest.raises(DtypeMismatch, match=r"key 'steps': expected floating-point tensors.*got int64"):
        mechanism.mean([{"w": np.zeros(2), "steps": np.array([1])}])
    with pytest.raises(ShapeMismatch, match="client 1"):
        mechanism.mean([np.zeros(2), np.zeros(3)])
    with pytest.raises(StructureMismatch, match="client 0"):
        mechanism.mean([{"w": np.zeros(2)}], base={"v": np.zeros(2)})
    with pytest.raises(ValueError, match="updates: expected at least one"):
        mechanism.mean([])
    with pytest.raises(ValueError, match="count: expected the expected number"):
        mechanism.mean([], base=np.zeros(2))
    with pytest.raises(TypeError, match="updates: expected updates"):
        mechanism.mean({"w": np.zeros(3)})
    assert mechanism.rounds == 0
    zero = GaussianMechanism(0.0, 10.0, nonfinite="zero")
    np.testing.assert_allclose(
        zero.mean([np.array([2.0, 4.0]), np.array([np.nan, 1.0]), np.array([1e300, 0])]), [2 / 3, 4 / 3]
    )
    with pytest.raises(ValueError, match="updates: expected at most"):
        GaussianMechanism(1e-30, 1.0).mean(np.zeros((2**13 + 1, 1)))
    assert "GaussianMechanism(1.0, 1.0" in repr(mechanism)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: GaussianMechanism(-1.0, 1.0), "noise_multiplier"),
        (lambda: GaussianMechanism(1.0, 0.0), "clip"),
        (lambda: GaussianMechanism(1.0, math.inf), "clip"),
        (lambda: GaussianMechanism(1.0, 1.0, nonfinite="drop"), "nonfinite"),  # type: ignore[arg-type]
        (lambda: GaussianMechanism(1.0, 1.0).mean([np.zeros(1)], count=0), "count"),
        (lambda: GaussianMechanism(1.0, 1.0).randomize(np.zeros(1), clients=0), "clients"),
        (lambda: GaussianMechanism(1.0, AdaptiveClipper()).randomize(np.zeros(1), clients=2), "got an Adaptive"),
        (lambda: GaussianMechanism.local(1.0, 0.0, 1.0), "delta"),
        (lambda: AdaptiveClipper(0.0), "initial"),
        (lambda: AdaptiveClipper(quantile=1.0), "quantile"),
        (lambda: AdaptiveClipper().update([]), "count"),
        (lambda: AdaptiveClipper().update([[1.0]]), "norms"),  # type: ignore[list-item]
        (lambda: GaussianMechanism(1.0, AdaptiveClipper(count_noise=0.4)).mean([np.zeros(1)]), "count_noise"),
        (lambda: dp_epsilon(1.0, -1, delta=1e-5), "rounds"),
        (lambda: dp_epsilon(1.0, 1, delta=1.0), "delta"),
        (lambda: dp_epsilon(1.0, 1, delta=1e-5, sampling_rate=1.5), "sampling_rate"),
        (lambda: dp_epsilon(1.0, 1, delta=1e-5, accountant="prv"), "accountant"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_every_dtype_and_layout(backend: str) -> None:
    rng = np.random.default_rng(2)
    for dtype in (np.float16, np.float32, np.float64):
        for n in (0, 1, 7, 8, 9, 33, 97):
            x = rng.standard_normal((n, 2)).astype(dtype)[:, 0]
            x.flags.writeable = False
            mean = GaussianMechanism(0.0, 1e3).mean([x, x])
            assert mean.dtype == dtype
            np.testing.assert_allclose(mean, x, rtol=1e-3, atol=1e-9)


# ---- adaptive clipping ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.01, 100.0])
@pytest.mark.parametrize("quantile", [0.25, 0.5, 0.9])
def test_clip_norm_converges_to_the_quantile(start: float, quantile: float) -> None:
    """From below and from above; with the inverted sign it would run away."""
    norms = np.random.default_rng(0).lognormal(0.5, 0.6, 2000)
    clipper = AdaptiveClipper(start, quantile, lr=0.3, count_noise=20.0)
    path = [clipper.update(norms) for _ in range(200)]
    below = np.mean(norms <= np.exp(np.mean(np.log(path[-50:]))))
    # The noise is 0.01 of the clients a round; 0.05 is far beyond what the mean of fifty rounds moves.
    assert abs(below - quantile) < 0.05


def test_the_mechanism_adapts_and_splits_its_noise() -> None:
    rng = np.random.default_rng(1)
    updates = rng.standard_normal((400, 60)) / math.sqrt(60)
    clipper = AdaptiveClipper(10.0, quantile=0.5, lr=0.5)
    mechanism = GaussianMechanism(1.0, clipper)
    sigma = 400 / 20
    split = (1 - (2 * sigma) ** -2) ** -0.5
    assert mechanism.noise_std(400) == pytest.approx(split * 10 / 400)
    for _ in range(40):
        mechanism.mean(updates)
    assert 0.7 < clipper.clip < 1.4  # the norms are about 1
    assert mechanism.rounds == 40
    exact = AdaptiveClipper(1.0, count_noise=0.0, lr=1.0, quantile=0.25)
    assert exact.update([0.5, 1.0, 2.0, math.nan]) == pytest.approx(math.exp(-(0.5 - 0.25)))
    GaussianMechanism(0.0, exact).mean([np.zeros(2)])
    assert "AdaptiveClipper(" in repr(exact)


# ---- accounting ----------------------------------------------------------------------------------------------------


def exact_delta(sigma: float, epsilon: float) -> float:
    """Balle and Wang's theorem 8."""
    left, right = 1 / (2 * sigma) - epsilon * sigma, -1 / (2 * sigma) - epsilon * sigma
    return float(cdf(np.array([left]))[0] - math.exp(epsilon) * cdf(np.array([right]))[0])


@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-6), (1.0, 1e-5), (4.377, 1e-5), (20.0, 1e-9)])
def test_analytic_gaussian(epsilon: float, delta: float) -> None:
    sigma = gaussian_noise_multiplier(epsilon, delta)
    assert exact_delta(sigma, epsilon) <= delta * (1 + 1e-9)
    assert exact_delta(sigma * 0.999, epsilon) > delta
    assert GaussianMechanism.local(epsilon, delta, 3.0).noise_multiplier == 2 * sigma


def test_known_value() -> None:
    # epsilon 4.3775 at delta 1e-5 for sigma 1 is the textbook value of the analytic mechanism.
    assert gaussian_noise_multiplier(4.3775, 1e-5) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(("z", "rounds"), [(1.0, 1), (2.0, 10), (8.0, 100)])
def test_composition_without_sampling_is_one_gaussian(z: float, rounds: int) -> None:
    """T rounds of multiplier z are one of z / sqrt(T), for which delta is known exactly."""
    pytest.importorskip("dp_accounting")
    pld = dp_epsilon(z, rounds, delta=1e-5, accountant="pld")
    assert exact_delta(z / math.sqrt(rounds), pld) == pytest.approx(1e-5, rel=0.01)
    rdp = dp_epsilon(z, rounds, delta=1e-5)
    assert pld < rdp < 1.3 * pld


def test_sampling_against_numerical_integration() -> None:
    """One round at rate q: the hockey-stick divergence of N(0, z^2) and its mixture with N(1, z^2), both ways."""
    pytest.importorskip("dp_accounting")
    z, q, delta = 0.8, 0.1, 1e-4
    epsilon = dp_epsilon(z, 1, delta=delta, sampling_rate=q, accountant="pld")
    x = np.linspace(-12, 13, 2_000_001)
    p = np.exp(-(x**2) / (2 * z * z)) / (z * math.sqrt(2 * math.pi))
    r = (1 - q) * p + q * np.exp(-((x - 1) ** 2) / (2 * z * z)) / (z * math.sqrt(2 * math.pi))
    dx = x[1] - x[0]
    deltas = [float(np.maximum(a - math.exp(epsilon) * b, 0).sum() * dx) for a, b in ((r, p), (p, r))]
    assert max(deltas) == pytest.approx(delta, rel=0.01)


def test_rdp_against_the_formula_of_integer_orders() -> None:
    """Mironov, Talwar and Zhang 2019, and the conversion of Canonne, Kamath and Steinke 2020, proposition 12."""
    pytest.importorskip("dp_accounting")
    z, q, rounds, delta = 1.1, 256 / 60000, 14063, 1e-5
    best = math.inf
    for alpha in range(2, 64):
        terms = [
            math.lgamma(alpha + 1)
            - math.lgamma(k + 1)
            - math.lgamma(alpha - k + 1)
            + k * math.log(q)
            + (alpha - k) * math.log1p(-q)
            + (k * k - k) / (2 * z * z)
            for k in range(alpha + 1)
        ]
        top = max(terms)
        rdp = rounds * (top + math.log(sum(math.exp(t - top) for t in terms))) / (alpha - 1)
        best = min(best, rdp + math.log1p(-1 / alpha) - math.log(delta * alpha) / (alpha - 1))
    got = dp_epsilon(z, rounds, delta=delta, sampling_rate=q)
    assert got == pytest.approx(best, rel=0.01)
    assert dp_epsilon(z, rounds, delta=delta, sampling_rate=q, accountant="pld") < got


def test_epsilon_of_a_mechanism_and_calibration() -> None:
    pytest.importorskip("dp_accounting")
    mechanism = GaussianMechanism(1.3, 1.0)
    assert mechanism.epsilon(1e-5) == 0
    for _ in range(3):
        mechanism.mean([np.zeros(2)])
    assert mechanism.epsilon(1e-5) == pytest.approx(dp_epsilon(1.3, 3, delta=1e-5))
    mechanism.noise_multiplier = 2.0
    mechanism.mean([np.zeros(2)])
    assert dp_epsilon(1.3, 3, delta=1e-5) < mechanism.epsilon(1e-5) < dp_epsilon(1.3, 4, delta=1e-5)
    mechanism.noise_multiplier = 0.0
    mechanism.mean([np.zeros(2)])
    assert mechanism.epsilon(1e-5) == math.inf
    z = dp_noise_multiplier(2.0, 100, delta=1e-5, sampling_rate=0.05)
    assert dp_epsilon(z, 100, delta=1e-5, sampling_rate=0.05) <= 2.0
    assert dp_epsilon(z * 0.998, 100, delta=1e-5, sampling_rate=0.05) > 2.0
    assert dp_epsilon(1.0, 0, delta=1e-5) == 0
    with pytest.raises(ValueError, match="epsilon: expected one a noise multiplier"):
        dp_noise_multiplier(1e-9, 10**6, delta=1e-9)


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [m for m in sys.modules if m.partition(".")[0] in ("dp_accounting", "cryptography")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(
        ImportError, match=r"privacy accounting needs the package 'dp-accounting': pip install 'edgefast\[privacy\]'"
    ):
        dp_epsilon(1.0, 1, delta=1e-5)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ImportError, match=r"secure aggregation needs the package 'cryptography'"):
        _extras.crypto("ciphers")
    assert SecureRandom()._stream is None
