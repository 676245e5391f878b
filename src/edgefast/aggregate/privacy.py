"""Differential privacy: clipping, fixed or adaptive, and Gaussian noise on an integer grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.aggregate import _policy, accounting
from edgefast.aggregate._batch import check_count, check_number
from edgefast.aggregate._noise import NOISE_TILE, SecureRandom
from edgefast.aggregate._template import Template, dtype_name
from edgefast.aggregate.accounting import Accountant
from edgefast.aggregate.errors import DtypeMismatch, NonFiniteUpdate, UnequalWeights
from edgefast.aggregate.mean import nonfinite_error
from edgefast.backends.numpy.elements import round_into, tiles, widen
from edgefast.backends.table import Array

__all__ = ["AdaptiveClipper", "GaussianMechanism"]

#: The grid is this many powers of two finer than the noise, and no finer than that than the clip norm.
_BELOW_NOISE: Final = 30
_BELOW_CLIP: Final = 40
#: Keep the norm of a clipped update within the bound through the roundings of its computation: those of a piece of a
#: tensor, and those of adding the pieces up.
_MARGIN: Final = 1 - 2.0**-40
_PIECE: Final = 1 << 15
_MARGIN_OF_PIECE: Final = 2.0**-53
#: Integers up to twice this are sums of float64 without rounding.
_MOST_SUM: Final = 2.0**52


class AdaptiveClipper:
    """A clip norm that follows a quantile of the updates' norms, itself found under differential privacy.

    After each round: clip <- clip * exp(-lr (b - quantile)), b the fraction of updates whose norm is at most clip, with
    noise. So where more than `quantile` of them fit, the norm shrinks.

    Args:
        initial: first clip norm, above 0.
        quantile: of the norms, between 0 and 1.
        lr: of the logarithm of the norm, a round; above 0.
        count_noise: standard deviation of the noise on the number of updates within the norm; None for a twentieth of
            the number of clients, as in the paper.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    References:
        G. Andrew et al., "Differentially private learning with adaptive clipping", NeurIPS 2021.

    Examples:
        >>> from edgefast.aggregate import AdaptiveClipper
        >>> clipper = AdaptiveClipper(1.0, quantile=0.5, count_noise=0)
        >>> round(clipper.update([2.0, 3.0, 4.0]), 4)  # none fits: it grows
        1.1052
    """

    def __init__(
        self, initial: float = 0.1, quantile: float = 0.5, lr: float = 0.2, *, count_noise: float | None = None
    ) -> None:
        self._clip = check_number(initial, "initial", zero=False)
        self.quantile: float = check_number(quantile, "quantile", zero=False)
        if self.quantile >= 1:
            raise ValueError(f"quantile: expected a number between 0 and 1, got {self.quantile}")
        self.lr: float = check_number(lr, "lr", zero=False)
        self.count_noise: float | None = (
            None if count_noise is None else check_number(count_noise, "count_noise", zero=True)
        )

    @property
    def clip(self) -> float:
        """The clip norm of the next round."""
        return self._clip

    def noise_of(self, count: int) -> float:
        """Standard deviation of the noise on the count, for so many clients."""
        return count / 20 if self.count_noise is None else self.count_noise

    def split(self, noise_multiplier: float, count: int) -> float:
        """The noise multiplier of the values, so that values and count together are as private as the given one:
        (z**-2 - (2 count_noise)**-2)**-0.5, the paper's theorem 1.

        Raises:
            ValueError: the count's noise alone is not enough.
        """
        z, sigma = noise_multiplier, self.noise_of(count)
        if z == 0:
            return 0.0
        if 2 * sigma <= z:
            raise ValueError(f"count_noise: expected more than half the noise multiplier {z}, got {sigma}")
        return (z**-2 - (2 * sigma) ** -2) ** -0.5

    def update(self, norms: Sequence[float] | NDArray[np.floating], *, count: int | None = None) -> float:
        """Move the clip norm.

        Args:
            norms: of the updates before clipping; NaN counts as too large.
            count: number to divide by; None for that of the norms.

        Returns:
            The new clip norm.

        Raises:
            TypeError, ValueError: no vector of numbers, or no updates.
        """
        values = np.asarray(norms, np.float64)
        if values.ndim != 1:
            raise ValueError(f"norms: expected one dimension, got shape {values.shape}")
        number = check_count(values.size if count is None else count, "count", 1)
        return self._move(values, number, self.noise_of(number))

    def _move(self, norms: NDArray[np.float64], count: int, sigma: float) -> float:
        # Counts from -1/2 to 1/2 have half the sensitivity of those from 0 to 1. Twice them are integers, and stay so.
        doubled = int(np.where(norms <= self._clip, 1, -1).sum())
        if sigma:
            step = _grid(sigma, 0.5)
            doubled = doubled * round(1 / (2 * step)) + int(SecureRandom().on_grid(sigma / step, 1)[0])
            doubled *= 2 * step
        below = 0.5 + doubled / (2 * count)
        self._clip *= math.exp(-self.lr * (below - self.quantile))
        return self._clip

    def __repr__(self) -> str:
        return (
            f"AdaptiveClipper({self._clip!r}, quantile={self.quantile!r}, lr={self.lr!r}, "
            f"count_noise={self.count_noise!r})"
        )


class GaussianMechanism:
    """Differentially private mean of updates: clipped, added with equal weights, noise on the sum.

    mean(u) = (sum of u_k min(1, clip / |u_k|) + N(0, (noise_multiplier clip)**2)) / n, so the noise of the mean has
    standard deviation noise_multiplier * clip / n. One client more or less moves the sum by at most clip, whatever the
    client sends; that, and only that, is what `epsilon` accounts for.

    The noise comes from the operating system's generator (through ChaCha20 where `cryptography` is installed) and
    cannot be seeded. Floating-point numbers tell secrets in their last bits (Mironov 2012): here every clipped
    coordinate is cut to a multiple of a power of two about 2**-30 times the noise, sums are exact integers, and the
    noise is rounded to the same grid. On integers, rounded Gaussian noise is a function of the result of the ideal
    mechanism, and so no less private; docs/privacy.md says what remains.

    Args:
        noise_multiplier: standard deviation of the sum's noise over clip, at least 0; 0 is not private.
        clip: largest norm of an update, over all its tensors together, above 0; or an AdaptiveClipper, which is updated
            every round and takes its share of the noise.
        nonfinite: "raise", or "zero": an update with NaN or infinity, or whose norm is beyond float64, counts as zeros.
        num_threads: threads to use; None for the default (see edgefast.using).

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    References:
        H. B. McMahan et al., "Learning differentially private recurrent language models", ICLR 2018; I. Mironov, "On
        significance of the least significant bits for differential privacy", CCS 2012.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import GaussianMechanism
        >>> mechanism = GaussianMechanism(noise_multiplier=1.0, clip=1.0)
        >>> updates = [{"w": np.full(4, 0.1)} for _ in range(1000)]
        >>> mean = mechanism.mean(updates)
        >>> bool(np.abs(mean["w"] - 0.1).max() < 0.01)
        True
        >>> mechanism.rounds
        1
    """

    def __init__(
        self,
        noise_multiplier: float,
        clip: float | AdaptiveClipper,
        *,
        nonfinite: Literal["raise", "zero"] = "raise",
        num_threads: int | None = None,
    ) -> None:
        self.noise_multiplier: float = check_number(noise_multiplier, "noise_multiplier", zero=True)
        self.clipper: AdaptiveClipper | None = clip if isinstance(clip, AdaptiveClipper) else None
        self._clip = 0.0 if isinstance(clip, AdaptiveClipper) else check_number(clip, "clip", zero=False)
        _policy.check_choice(nonfinite, "nonfinite", ("raise", "zero"))
        self.nonfinite: Literal["raise", "zero"] = nonfinite
        if num_threads is not None:
            backends.num_threads(num_threads)
        self.num_threads: int | None = num_threads
        self._spent: list[tuple[float, int]] = []

    @classmethod
    def local(cls, epsilon: float, delta: float, clip: float) -> GaussianMechanism:
        """The mechanism whose randomize(update, clients=1) is (epsilon, delta)-locally private: nobody, the server
        included, learns much from what one client sends once, whatever the others do. Two updates within the clip norm
        differ by up to twice it."""
        return cls(2 * accounting.gaussian_noise_multiplier(epsilon, delta), clip)

    @property
    def clip(self) -> float:
        """Largest norm of an update in the next round."""
        return self._clip if self.clipper is None else self.clipper.clip

    @property
    def rounds(self) -> int:
        """Means taken."""
        return sum(rounds for _, rounds in self._spent)

    def noise_std(self, count: int) -> float:
        """Standard deviation of the noise on a coordinate of the mean of `count` updates."""
        number = check_count(count, "count", 1)
        z = self.noise_multiplier if self.clipper is None else self.clipper.split(self.noise_multiplier, number)
        return z * self.clip / number

    def epsilon(self, delta: float, *, sampling_rate: float = 1.0, accountant: Accountant = "rdp") -> float:
        """What the means taken so far have cost together: dp_epsilon, which describes the arguments."""
        return accounting.compose(self._spent, delta, sampling_rate, accountant)

    def mean(
        self,
        updates: Iterable[Any],
        weights: Sequence[float] | Array | None = None,
        *,
        count: int | None = None,
        base: Any = None,
    ) -> Any:
        """The private mean of a round's updates, which are read one at a time.

        Args:
            updates: of floating-point tensors (see weighted_mean), a sequence or a generator. On an error, no round is
                counted.
            weights: equal ones, or None. The sensitivity is that of equal weights.
            count: n to divide by; None for the number of updates, which the result then reveals. With Poisson sampling
                give the expected number, as the analysis has it.
            base: the model the updates started from: the differences to it are clipped, and their mean is added to it.

        Returns:
            New arrays of the containers, dtypes and kinds of leaves of `base` or of the first update.

        Raises:
            UnequalWeights: weights differ.
            StructureMismatch, ShapeMismatch, DtypeMismatch: as weighted_mean; also for integer and bool tensors.
            NonFiniteUpdate: NaN, infinity or a norm beyond float64, with nonfinite="raise"; or in the base.
            TypeError, ValueError: no updates without `base`, a count or weights out of range, or so many updates that
                the sums would not fit.
        """
        if isinstance(updates, (str, bytes, dict)) or not isinstance(updates, Iterable) or hasattr(updates, "iloc"):
            raise TypeError(f"updates: expected updates one after the other, got {type(updates).__name__}")
        _check_equal(weights)
        fixed = None if count is None else check_count(count, "count", 1)
        stream = iter(updates)
        head = [] if base is not None else list(itertools.islice(stream, 1))
        if base is None and not head:
            raise ValueError("updates: expected at least one update, or a base, got none")
        template = _float_template(base if base is not None else head[0], "base" if base is not None else 0)
        threads = backends.num_threads(self.num_threads)
        center = None
        if base is not None:
            center = template.arrays
            if not backends.kernels().all_finite(center, threads):
                raise nonfinite_error(center, template.keys, "base")
        # The noise multiplier of the values hardly depends on the number of clients; the grid need not know it.
        clip = self.clip
        step = _grid(self.noise_multiplier * clip, clip)
        sums = [np.zeros(a.size) for a in template.arrays]
        norms: list[float] = []
        for k, update in enumerate(itertools.chain(head, stream)):
            if (k + 1) * clip > _MOST_SUM * step:
                raise ValueError(f"updates: expected at most {k} with this noise multiplier, got more")
            norms.append(self._add(template.flatten(update, k), center, template.keys, k, clip, step, sums, threads))
        if weights is not None and len(weights) != len(norms):
            raise ValueError(f"weights: expected {len(norms)} weights, one per update, got {len(weights)}")
        number = len(norms) if fixed is None else fixed
        if number == 0:
            raise ValueError("count: expected the expected number of updates where none came, got None")
        z = self.noise_multiplier if self.clipper is None else self.clipper.split(self.noise_multiplier, number)
        if z * clip * 10 > _MOST_SUM * step:
            raise ValueError(f"noise_multiplier: expected a smaller one for the values, got {z}")
        if z:
            _add_noise(sums, z * clip / step)
        result = _finish(template, sums, step / number, center)
        if self.clipper is not None:
            self.clipper._move(np.array(norms), number, self.clipper.noise_of(number) if z else 0.0)
        if self._spent and self._spent[-1][0] == self.noise_multiplier:
            self._spent[-1] = (self.noise_multiplier, self._spent[-1][1] + 1)
        else:
            self._spent.append((self.noise_multiplier, 1))
        return result

    def randomize(self, update: Any, *, clients: int, base: Any = None) -> Any:
        """One client's part of a mean nobody sees without noise: the update, clipped, with noise of standard deviation
        noise_multiplier * clip / sqrt(clients).

        The sum over at least `clients` of them has the noise `mean` adds, or more: let `clients` be the number that is
        sure to take part honestly (under secure aggregation its threshold less the clients that may collude). It takes
        secure aggregation for the server to see the sum alone; account with dp_epsilon.

        Args:
            update: of floating-point tensors.
            clients: at least 1.
            base: the model the update started from: the difference to it is clipped, and returned.

        Returns:
            New arrays like the update's.

        Raises:
            As `mean`; ValueError also for an adaptive clip norm, which has to be fixed per round.
        """
        number = check_count(clients, "clients", 1)
        if self.clipper is not None:
            raise ValueError("clip: expected a number, got an AdaptiveClipper: give the clients its clip norm")
        template = _float_template(update, "update")
        center = None
        if base is not None:
            center = template.flatten(base, "base")
            if not backends.kernels().all_finite(center, backends.num_threads(self.num_threads)):
                raise nonfinite_error(center, template.keys, "base")
        sigma = self.noise_multiplier * self._clip / math.sqrt(number)
        step = _grid(sigma, self._clip)
        sums = [np.zeros(a.size) for a in template.arrays]
        threads = backends.num_threads(self.num_threads)
        self._add(template.arrays, center, template.keys, "update", self._clip, step, sums, threads)
        if sigma:
            _add_noise(sums, sigma / step)
        return _finish(template, sums, step, None)

    def _add(
        self,
        arrays: list[Array],
        center: list[Array] | None,
        keys: list[str],
        client: object,
        clip: float,
        step: float,
        sums: list[NDArray[np.float64]],
        threads: int,
    ) -> float:
        """Adds a clipped update to the sums, in grid units; its norm before, NaN for one that counts as zeros."""
        kernels = backends.kernels()
        squares = np.zeros(1)
        kernels.square_norms([arrays], center, squares, threads)
        if not np.isfinite(squares[0]):
            if self.nonfinite == "zero":
                return math.nan
            if not kernels.all_finite(arrays, threads):
                raise nonfinite_error(arrays, keys, client)
            raise NonFiniteUpdate.of(client, None, "a norm below 2**511", "a larger one")
        norm = math.sqrt(squares[0])
        # Cutting off towards zero makes no coordinate larger: the bound holds on the grid.
        pieces = sum(1 + a.size // _PIECE for a in arrays)
        bound = clip * (_MARGIN - pieces * _MARGIN_OF_PIECE)
        factor = (1.0 if norm <= bound else bound / norm) / step
        for t, (total, array) in enumerate(zip(sums, arrays, strict=True)):
            flat = array.reshape(-1)
            for part in tiles(flat.size):
                values = widen(flat[part])
                if center is not None:
                    values -= widen(center[t].reshape(-1)[part])
                values *= factor
                total[part] += np.trunc(values, out=values)
        return norm

    def __repr__(self) -> str:
        clip = self._clip if self.clipper is None else self.clipper
        return f"GaussianMechanism({self.noise_multiplier!r}, {clip!r}, nonfinite={self.nonfinite!r})"


def _grid(sigma: float, clip: float) -> float:
    """A power of two, far below the noise."""
    finest = math.frexp(clip)[1] - _BELOW_CLIP
    exponent = finest if sigma == 0 else max(finest, math.frexp(sigma)[1] - 1 - _BELOW_NOISE)
    return 2.0**exponent


def _check_equal(weights: Any) -> None:
    if weights is None:
        return
    values = _policy.weights_of(weights, len(weights))
    for k, value in enumerate(values):
        if value != values[0] or value == 0:
            expected = f"the weight {values[0]} of the others" if value else "a weight above 0"
            raise UnequalWeights.of(k, None, f"{expected}: the noise is that of equal weights", value)


def _float_template(example: Any, client: object) -> Template:
    template = Template(example, client=client)
    for key, a in zip(template.keys, template.arrays, strict=True):
        if not _policy.is_float(a):
            expected = "floating-point tensors (others leave the update, or become floats)"
            raise DtypeMismatch.of(client, key or None, expected, dtype_name(a.dtype))
    return template


def _add_noise(sums: list[NDArray[np.float64]], scale: float) -> None:
    random = SecureRandom()
    for total in sums:
        for part in tiles(total.size, NOISE_TILE):
            total[part] += random.on_grid(scale, part.stop - part.start)


def _finish(template: Template, sums: list[NDArray[np.float64]], factor: float, center: list[Array] | None) -> Any:
    arrays = template.new_arrays()
    for t, (target, total) in enumerate(zip(arrays, sums, strict=True)):
        flat = target.reshape(-1)
        for part in tiles(total.size):
            values = total[part] * factor
            if center is not None:
                values += widen(center[t].reshape(-1)[part])
            round_into(flat[part], values)
    return template.build(arrays)
