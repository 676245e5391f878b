"""Server optimizers against the written-out rules, bit for bit on every backend, and against Flower's formulas."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgefast as ef
from edgefast.aggregate import (
    DtypeMismatch,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    MeanAccumulator,
    ShapeMismatch,
    StructureMismatch,
    ZeroWeightError,
)

SIZES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 5000)
DTYPES = (np.float16, np.float32, np.float64)
OPTIMIZERS = {
    "avg": lambda: FedAvg(0.7),
    "avgm": lambda: FedAvgM(0.5, 0.9),
    "nesterov": lambda: FedAvgM(0.5, 0.9, nesterov=True),
    **{
        f"{rule.__name__}-{preset}": lambda rule=rule, preset=preset: rule(preset=preset)
        for rule in (FedAdagrad, FedAdam, FedYogi)
        for preset in ("paper", "flower", "tff")
    },
}


def reference(opt: Any, x: np.ndarray, means: list[np.ndarray]) -> np.ndarray:
    """The rules of csrc/aggregate/server.hpp, one coordinate at a time in Python floats."""
    kind = np.float64 if x.dtype == np.float64 else np.float32
    out = x.copy()
    for i in range(x.size):
        value = x.dtype.type(x[i])
        m, v = 0.0, float(kind(getattr(opt, "initial_v", 0.0)))
        for t, mean in enumerate(means, 1):
            old, a = float(value), float(mean[i])
            if isinstance(opt, FedAvg):
                new = old + (a - old) * opt.lr
            elif isinstance(opt, FedAvgM):
                g = old - a
                v = float(kind(v * opt.momentum + g))
                new = old - (g + v * opt.momentum if opt.nesterov else v) * opt.lr
            else:
                d = a - old
                m = float(kind(m * opt.beta_1 + d * (1 - opt.beta_1)))
                if isinstance(opt, FedAdagrad):
                    v = float(kind(v + d * d))
                elif isinstance(opt, FedAdam):
                    v = float(kind(v * opt.beta_2 + d * d * (1 - opt.beta_2)))
                else:
                    v = float(kind(v - d * d * (1 - opt.beta_2) * np.sign(v - d * d)))
                lr = opt.lr
                if opt.preset != "paper" and not (
                    isinstance(opt, FedAdagrad) or (isinstance(opt, FedYogi) and opt.preset == "flower")
                ):
                    n = t + (opt.preset == "flower")
                    lr = lr * (1 - opt.beta_2**n) ** 0.5 / (1 - opt.beta_1**n)
                inside = isinstance(opt, FedAdagrad) and opt.preset == "tff"
                new = old + m * lr / (np.sqrt(v + opt.tau) if inside else np.sqrt(v) + opt.tau)
            value = x.dtype.type(new)
        out[i] = value
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bits(backend: str, name: str, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    for size in (0, 1, 7, 17, 33, 97) if backend == "numpy" else SIZES[:-1]:
        x = rng.standard_normal(size).astype(dtype)
        means = [(x + 0.1 * rng.standard_normal(size)).astype(dtype) for _ in range(3)]
        opt = OPTIMIZERS[name]()
        model = x
        for mean in means:
            model = opt.step(model, mean)
        np.testing.assert_array_equal(model, reference(opt, x, means))
        assert model.dtype == dtype
        assert opt.round == 3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_threads_and_sizes_do_not_matter(backend: str, name: str) -> None:
    rng = np.random.default_rng(2)
    x = {"w": rng.standard_normal((300, 700), np.float32), "b": rng.standard_normal(5)}
    mean = {k: (a + 0.01 * rng.standard_normal(a.shape)).astype(a.dtype) for k, a in x.items()}
    results = []
    for threads in (1, 2):
        with ef.using(num_threads=threads):
            opt = OPTIMIZERS[name]()
            results.append(opt.step(opt.step(x, mean), mean))
    with ef.using("numpy"):
        opt = OPTIMIZERS[name]()
        results.append(opt.step(opt.step(x, mean), mean))
    for other in results[1:]:
        for key in x:
            np.testing.assert_array_equal(other[key], results[0][key])


@pytest.mark.parametrize("accumulate", ["float64", "float32", "reproducible"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_accumulator_gives_the_bits_of_its_result(backend: str, name: str, accumulate: Any) -> None:
    rng = np.random.default_rng(3)

    def update() -> dict[str, Any]:
        return {
            "w": rng.standard_normal((9, 7), np.float32),
            "h": rng.standard_normal(13).astype(np.float16),
            "steps": rng.integers(100, size=3),
            "d": rng.standard_normal(4),
        }

    x = update()
    acc = MeanAccumulator(x, accumulate=accumulate)
    fused, plain = OPTIMIZERS[name](), OPTIMIZERS[name]()
    one = two = x
    for _ in range(2):
        for _ in range(4):
            acc.add(update(), float(rng.integers(1, 50)))
        one, two = fused.step(one, acc), plain.step(two, acc.result())
        for key in x:
            np.testing.assert_array_equal(one[key], two[key])
            assert one[key].dtype == x[key].dtype
        np.testing.assert_array_equal(one["steps"], acc.result()["steps"])
        acc.reset()


def test_lr_1_is_the_mean() -> None:
    rng = np.random.default_rng(0)
    x, mean = rng.standard_normal(50), rng.standard_normal(50)
    np.testing.assert_allclose(FedAvg().step(x, mean), mean, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(FedAvgM(1.0, 0.0).step(x, mean), FedAvg().step(x, mean))


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 2))
def test_a_model_at_the_mean_stays(seed: int, lr: float) -> None:
    x = np.random.default_rng(seed).standard_normal(20)
    for opt in (FedAvg(lr), FedAvgM(lr), FedAdagrad(lr), FedAdam(lr), FedYogi(lr)):
        np.testing.assert_array_equal(opt.step(x, x), x)


def flower(rule: str, x: np.ndarray, means: list[np.ndarray]) -> np.ndarray:
    """What flwr's FedAdagrad, FedAdam and FedYogi compute, in the model's own float32."""
    eta = {"adagrad": 0.1, "adam": 0.1, "yogi": 0.01}[rule]
    b1, b2 = {"adagrad": (0.0, 0.0), "adam": (0.9, 0.99), "yogi": (0.9, 0.99)}[rule]
    m, v = np.zeros_like(x), np.zeros_like(x)
    for r, mean in enumerate(means, 1):
        d = mean - x
        m = b1 * m + (1 - b1) * d
        if rule == "adagrad":
            v = v + d * d
        elif rule == "adam":
            v = b2 * v + (1 - b2) * d * d
        else:
            v = v - (1 - b2) * d * d * np.sign(v - d * d)
        rate = eta * np.sqrt(1 - b2 ** (r + 1.0)) / (1 - b1 ** (r + 1.0)) if rule == "adam" else eta
        x = x + rate * m / (np.sqrt(v) + 1e-3)
    return x


@pytest.mark.parametrize(("rule", "cls"), [("adagrad", FedAdagrad), ("adam", FedAdam), ("yogi", FedYogi)])
def test_flower_preset(rule: str, cls: Any) -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal(500)
    means = [x + 0.1 * rng.standard_normal(500) for _ in range(5)]
    opt, model = cls(preset="flower"), x
    for mean in means:
        model = opt.step(model, mean)
    np.testing.assert_allclose(model, flower(rule, x, means), rtol=0, atol=1e-13)


def test_state_restores_exactly() -> None:
    rng = np.random.default_rng(5)
    x = {"w": rng.standard_normal(40).astype(np.float32), "n": np.arange(3)}
    means = [{"w": rng.standard_normal(40).astype(np.float32), "n": np.arange(3)} for _ in range(4)]
    for name, make in OPTIMIZERS.items():
        one = make()
        model = one.step(one.step(x, means[0]), means[1])
        state = copy.deepcopy(one.state_dict())
        two = make()
        two.load_state_dict(state, model)
        three = pickle.loads(pickle.dumps(one))
        expected = one.step(one.step(model, means[2]), means[3])
        for other in (two, three):
            got = other.step(other.step(model, means[2]), means[3])
            np.testing.assert_array_equal(got["w"], expected["w"], err_msg=name)
        one.reset()
        np.testing.assert_array_equal(one.step(x, means[0])["w"], make().step(x, means[0])["w"])
    with pytest.raises(ValueError, match="expected rule 'FedAvg'"):
        FedAvg().load_state_dict(FedAdam().state_dict())
    with pytest.raises(ValueError, match="expected lr"):
        FedAvg(0.5).load_state_dict(FedAvg().state_dict())
    with pytest.raises(TypeError, match="a mapping"):
        FedAvg().load_state_dict([])  # type: ignore[arg-type]
    opt = FedAdam()
    opt.step(x, means[0])
    state = opt.state_dict()
    with pytest.raises(ValueError, match="expected the model"):
        FedAdam().load_state_dict(state)
    state["v"] = state["v"][:-1]
    with pytest.raises(ValueError, match="1 arrays in 'v', got 0"):
        FedAdam().load_state_dict(state, x)
    state["v"] = [np.zeros(3, np.float32)]
    fresh = FedAdam()
    with pytest.raises(ValueError, match=r"v\[0\] of float32"):
        fresh.load_state_dict(state, x)
    assert fresh.round == 0


def test_out_and_inputs(backend: str) -> None:
    rng = np.random.default_rng(6)
    x = [rng.standard_normal(20), rng.standard_normal((4, 4))]
    mean = [a + 1 for a in x]
    keep = [a.copy() for a in x]
    expected = FedAdam().step(x, mean)
    for a, b in zip(x, keep, strict=True):
        np.testing.assert_array_equal(a, b)
    same = [a.copy() for a in x]
    assert FedAdam().step(same, mean, out=same) is same
    strided = [np.zeros(40)[::2], np.zeros((4, 8))[:, ::2]]
    FedAdam().step(x, mean, out=strided)
    for a, b, c in zip(expected, same, strided, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_non_finite_values_go_through(backend: str) -> None:
    x = np.zeros(9, np.float32)
    mean = np.array([np.nan, np.inf, -np.inf, 1, 0, 1e38, -1e38, 1e-45, 2], np.float32)
    for name, make in OPTIMIZERS.items():
        with ef.using("numpy"):
            expected = make().step(x, mean)
        np.testing.assert_array_equal(make().step(x, mean), expected, err_msg=name)
        assert np.isnan(expected[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedAvg(0), "lr: expected 0 < lr"),
        (lambda: FedAvg(-1), "lr"),
        (lambda: FedAvg(float("nan")), "lr"),
        (lambda: FedAvgM(momentum=1.5), "momentum: expected 0 <= momentum <= 1, got 1.5"),
        (lambda: FedAdam(beta_1=-0.1), "beta_1"),
        (lambda: FedAdam(tau=-1), "tau"),
        (lambda: FedAvg(float("inf")), "lr: expected 0 < lr < inf, got inf"),
        (lambda: FedAvg(10**400), "lr: expected 0 < lr < inf, got inf"),
        (lambda: FedAdam(tau=1e200), "initial_v: expected 0 <= initial_v < inf, got inf"),  # tau * tau
        (lambda: FedYogi(initial_v=-1), "initial_v"),
        (lambda: FedYogi(preset="keras"), "preset: expected one of paper, flower, tff, got 'keras'"),  # type: ignore[arg-type]
    ],
)
def test_bad_options(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(TypeError, match="lr: expected a number, got str"):
        FedAvg("1")  # type: ignore[arg-type]


def test_what_does_not_fit(backend: str) -> None:
    x = {"w": np.ones(3), "b": np.ones(2)}
    opt = FedAdam()
    with pytest.raises(StructureMismatch):
        opt.step(x, {"w": np.ones(3)})
    with pytest.raises(ShapeMismatch, match=r"client update, key 'w'"):
        opt.step(x, {"w": np.ones(4), "b": np.ones(2)})
    with pytest.raises(DtypeMismatch):
        opt.step(x, {"w": np.ones(3, np.float32), "b": np.ones(2)})
    with pytest.raises(ZeroWeightError):
        opt.step(x, MeanAccumulator(x))
    with pytest.raises(StructureMismatch):
        opt.step(x, MeanAccumulator({"w": np.ones(3)}))
    assert opt.round == 0
    opt.step(x, x)
    with pytest.raises(StructureMismatch):
        opt.step({"w": np.ones(3)}, {"w": np.ones(3)})
    assert opt.round == 1
    assert "FedAdam(lr=0.1" in repr(opt)
