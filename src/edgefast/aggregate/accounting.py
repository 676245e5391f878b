"""What rounds of noise cost: epsilon at a delta, by the dp-accounting library (extra `privacy`)."""

from __future__ import annotations

import math
from typing import Any, Literal

from edgefast.aggregate import _extras, _policy
from edgefast.aggregate._batch import check_count, check_number

__all__ = ["Accountant", "compose", "dp_epsilon", "dp_noise_multiplier", "gaussian_noise_multiplier"]

Accountant = Literal["rdp", "pld"]


def check_delta(delta: Any) -> float:
    value = check_number(delta, "delta", zero=False)
    if value >= 1:
        raise ValueError(f"delta: expected a number between 0 and 1, got {value}")
    return value


def compose(spent: list[tuple[float, int]], delta: Any, sampling_rate: Any, accountant: Any) -> float:
    """Epsilon of (noise multiplier, rounds) one after the other."""
    _policy.check_choice(accountant, "accountant", ("rdp", "pld"))
    delta = check_delta(delta)
    rate = check_number(sampling_rate, "sampling_rate", zero=False)
    if rate > 1:
        raise ValueError(f"sampling_rate: expected more than 0 and at most 1, got {rate}")
    spent = [(z, rounds) for z, rounds in spent if rounds]
    if not spent:
        return 0.0
    if any(z == 0 for z, _ in spent):
        return math.inf
    dp = _extras.accounting()
    relation = dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    made = dp.rdp.RdpAccountant if accountant == "rdp" else dp.pld.PLDAccountant
    found = made(neighboring_relation=relation)
    for z, rounds in spent:
        event = dp.GaussianDpEvent(z)
        found.compose(event if rate == 1 else dp.PoissonSampledDpEvent(rate, event), rounds)
    return float(found.get_epsilon(delta))


def dp_epsilon(
    noise_multiplier: float,
    rounds: int,
    *,
    delta: float,
    sampling_rate: float = 1.0,
    accountant: Accountant = "rdp",
) -> float:
    """Epsilon of `rounds` Gaussian mechanisms, for neighbouring sets of clients that differ by one client.

    Args:
        noise_multiplier: standard deviation of the sum's noise over the clip norm; 0 gives infinity.
        rounds: how many.
        delta: more than 0, less than 1; well below one over the number of clients.
        sampling_rate: probability with which each client takes part in a round, independently of all others (Poisson
            sampling). Anything else, such as a fixed number of clients a round, or whoever is online, is no such
            sampling: use 1, which assumes that every client takes part in every round.
        accountant: "rdp", Renyi (Mironov 2017), or "pld", privacy loss distributions (Koskela et al. 2020), which is
            tighter and slower.

    Raises:
        ImportError: dp-accounting is not installed (extra `privacy`).
        TypeError, ValueError: an argument of the wrong type or out of range.
    """
    z = check_number(noise_multiplier, "noise_multiplier", zero=True)
    return compose([(z, check_count(rounds, "rounds"))], delta, sampling_rate, accountant)


def dp_noise_multiplier(
    epsilon: float,
    rounds: int,
    *,
    delta: float,
    sampling_rate: float = 1.0,
    accountant: Accountant = "rdp",
) -> float:
    """The smallest noise multiplier (to 0.1 %, rounded up) for which dp_epsilon is at most epsilon.

    Args:
        epsilon: what all rounds together may spend, above 0.
        rounds, delta, sampling_rate, accountant: as in `dp_epsilon`.

    Raises:
        ImportError: dp-accounting is not installed (extra `privacy`).
        TypeError, ValueError: an argument of the wrong type or out of range, or no multiplier up to 2**20 is enough.
    """
    target = check_number(epsilon, "epsilon", zero=False)
    count = check_count(rounds, "rounds", 1)

    def spent(z: float) -> float:
        return compose([(z, count)], delta, sampling_rate, accountant)

    high = 1.0
    while spent(high) > target:
        high *= 2
        if high > 1 << 20:
            raise ValueError(f"epsilon: expected one a noise multiplier up to 2**20 reaches, got {target}")
    # Below 1/16 the accountants take long and nothing is private.
    low = high / 2 if high > 1 else 1 / 16
    if low < 1 and spent(low) <= target:
        return low
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        if spent(middle) > target:
            low = middle
        else:
            high = middle
    return high


def gaussian_noise_multiplier(epsilon: float, delta: float) -> float:
    """Standard deviation over sensitivity with which one Gaussian mechanism is (epsilon, delta)-private.

    Exact ("analytic Gaussian mechanism"), to a relative 1e-12, rounded up; needs no extra.

    Args:
        epsilon: above 0.
        delta: above 0 and below 1.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    References:
        B. Balle and Y.-X. Wang, "Improving the Gaussian mechanism for differential privacy", ICML 2018.
    """
    eps = check_number(epsilon, "epsilon", zero=False)
    wanted = check_delta(delta)

    def cdf(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    def reached(sigma: float) -> float:
        left, right = 1 / (2 * sigma) - eps * sigma, -1 / (2 * sigma) - eps * sigma
        tail = cdf(right)
        return cdf(left) - (math.exp(min(eps + math.log(tail), 700.0)) if tail > 0 else 0.0)

    low = high = 1.0
    while reached(high) > wanted:
        high *= 2
    while reached(low) <= wanted:
        low /= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if reached(middle) > wanted:
            low = middle
        else:
            high = middle
    return high
