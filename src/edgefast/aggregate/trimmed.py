"""TrimmedMeanAccumulator: the trimmed mean of updates that arrive one by one, exactly, in bounded memory."""

from __future__ import annotations

import copy
import json
import logging
import struct
import threading
from collections.abc import Callable
from typing import Any, ClassVar, Final, Literal

import numpy as np

from edgefast import backends
from edgefast.aggregate import _policy
from edgefast.aggregate._batch import MOST_UPDATES, check_count
from edgefast.aggregate._describe import example, plain
from edgefast.aggregate._policy import Ints
from edgefast.aggregate._template import DTYPES, Template
from edgefast.aggregate._whole import Whole
from edgefast.aggregate._wire import Format
from edgefast.aggregate.errors import StructureMismatch, TooFewUpdates
from edgefast.aggregate.mean import nonfinite_error
from edgefast.backends.images import image_dtype, values_of
from edgefast.backends.table import Array

__all__ = ["TrimmedMeanAccumulator"]

_log = logging.getLogger("edgefast")
# magic, version, length of the JSON part, f, count, dropped; then JSON, the tensors, the CRC-32.
_FORMAT: Final = Format("accumulator", b"EFTM", (1,), struct.Struct("<4sHxxIQQQ"))
_NONFINITE = ("raise", "drop", "rank")
_TILE = 1 << 16


def _check_trim(f: Any) -> int:
    number = check_count(f, "f")
    if number > MOST_UPDATES // 2:
        raise ValueError(f"f: expected at most {MOST_UPDATES // 2}, got {number}")
    return number


class TrimmedMeanAccumulator(Whole):
    """Streaming trimmed mean: the f least and f greatest values of every coordinate are kept aside, the rest summed.

    A value joins the sum only once f others are below and f above it, so nothing is ever subtracted: values of 1e300
    pass without a trace, and the values left out are exactly those `trimmed_mean` leaves out. The sum is float64 in
    the order of arrival; against `trimmed_mean` (ascending order) the result may differ by K * 2**-53 of the mean
    size of the values before its last rounding. Holds 2 f + 2 times a float32 model (f + 1 times a float64 one,
    twice). Methods may be called from several threads at once. After a Ctrl-C that came while an update was added they
    raise RuntimeError until reset().

    Args:
        template: an update (see weighted_mean) whose containers, keys, shapes and dtypes every other has to have.
        f: number of values to trim from each end, 0 to 32767.
        ints: what happens to integer and bool tensors, as in trimmed_mean; "skip" gives the template's value.
        nonfinite: what an update with NaN or infinity does: "raise" (it is not added), "drop" (it is counted in
            `dropped`) or "rank" (NaN counts as a value above +inf).
        num_threads: threads to use; None for the default (see edgefast.using).

    Raises:
        DtypeMismatch: the template holds something that cannot be averaged.
        ValueError, TypeError: f or an option out of range.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import TrimmedMeanAccumulator
        >>> acc = TrimmedMeanAccumulator(np.zeros(2), f=1)
        >>> for x in (1.0, -1e300, 3.0, 5.0):
        ...     acc.add(np.array([x, 2 * x]))
        >>> acc.result()
        array([2., 4.])
        >>> TrimmedMeanAccumulator.from_bytes(acc.to_bytes()) == acc
        True
    """

    def __init__(
        self,
        template: Any,
        *,
        f: int,
        ints: Ints = "round",
        nonfinite: Literal["raise", "drop", "rank"] = "raise",
        num_threads: int | None = None,
    ) -> None:
        self._f = _check_trim(f)
        _policy.check_choice(ints, "ints", _policy.INTS)
        _policy.check_choice(nonfinite, "nonfinite", _NONFINITE)
        if num_threads is not None:
            backends.num_threads(num_threads)
        self._template = Template(template, client="template")
        self._ints: Ints = ints
        self._nonfinite = nonfinite
        self._num_threads = num_threads
        self._lock = threading.Lock()
        self._averaged = _policy.averaged(self._template.arrays, self._template.keys, ints)
        if ints == "skip":
            # The template's integers are part of the result: keep their values, not a view of the caller's arrays.
            self._template.arrays = [a if _policy.is_float(a) else a.copy() for a in self._template.arrays]
        self._clear()

    def _clear(self) -> None:
        def rows(t: int, value: Callable[[Any], int]) -> Array:
            a = self._template.arrays[t]
            integer = image_dtype(a.dtype)
            return np.full((self._f, a.size), value(np.iinfo(integer)), integer)

        self._low = [rows(t, lambda info: info.max) for t in self._averaged]
        self._high = [rows(t, lambda info: info.min) for t in self._averaged]
        self._sums = [np.zeros(self._template.arrays[t].size) for t in self._averaged]
        self._kept = {
            t: (a.copy() if self._ints == "skip" else np.zeros_like(a))
            for t, a in enumerate(self._template.arrays)
            if t not in set(self._averaged)
        }
        self._count = 0
        self._dropped = 0
        self._torn = False

    # ---- state -------------------------------------------------------------------------------------------------

    @property
    def f(self) -> int:
        """Values trimmed from each end."""
        return self._f

    @property
    def count(self) -> int:
        """Number of updates added so far, dropped ones not counted."""
        return self._count

    @property
    def dropped(self) -> int:
        """Number of updates left out by nonfinite="drop"."""
        return self._dropped

    @property
    def nbytes(self) -> int:
        """Bytes of the accumulated state."""
        return sum(a.nbytes for a in (*self._low, *self._high, *self._sums, *self._kept.values()))

    # ---- adding ------------------------------------------------------------------------------------------------

    def add(self, update: Any, *, client: object = None) -> None:
        """Add one update. On an error nothing has been added.

        Args:
            update: an update of the template's structure; it is read and not kept.
            client: name for error messages; None for the running number.

        Raises:
            StructureMismatch, ShapeMismatch, DtypeMismatch, NonFiniteUpdate, IntegerRange: as weighted_mean.
        """
        name = self._count if client is None else client
        arrays = self._template.flatten(update, name)
        keys = self._template.keys
        if self._ints == "round":
            _policy.check_integers(arrays, keys, name)
        threads = backends.num_threads(self._num_threads)
        inputs = [arrays[t] for t in self._averaged]
        if self._nonfinite != "rank" and not backends.kernels().all_finite(inputs, threads):
            if self._nonfinite == "raise":
                raise nonfinite_error(inputs, [keys[t] for t in self._averaged], name)
            with self._lock:
                self._dropped += 1
            _log.warning("TrimmedMeanAccumulator: dropped update %s with NaN or infinity", name)
            return
        with self._lock:
            self._check_whole()
            self._torn = True
            self._keep({t: arrays[t] for t in self._kept})
            self._push(inputs, False, threads)
            self._torn = False

    def _push(self, row: list[Array], from_images: bool, threads: int) -> None:
        stage = 0 if self._count < self._f else 1 if self._count < 2 * self._f else 2
        model = [self._template.arrays[t] for t in self._averaged]
        backends.kernels().trim_push(
            row, from_images, model, self._low, self._high, self._sums, self._f, stage, threads
        )
        self._count += 1

    def _keep(self, values: dict[int, Array]) -> None:
        for t, value in values.items():
            if self._ints in ("max", "first") and self._count == 0:
                np.copyto(self._kept[t], value)
            elif self._ints == "max":
                np.maximum(self._kept[t], value, out=self._kept[t])

    def merge(self, other: TrimmedMeanAccumulator) -> None:
        """Add everything another accumulator of the same template, f and options has seen; `other` is not changed.

        The values left out are those of all updates together; only the order of the sums differs.

        Raises:
            TypeError: other is no TrimmedMeanAccumulator.
            StructureMismatch: its template, f or options differ.
        """
        if not isinstance(other, TrimmedMeanAccumulator):
            raise TypeError(f"other: expected a TrimmedMeanAccumulator, got {type(other).__name__}")
        if (mine := self._signature()) != (theirs := other._signature()):
            raise StructureMismatch.of("other", None, mine, theirs)
        seen = other.copy()
        threads = backends.num_threads(self._num_threads)
        with self._lock:
            self._check_whole()
            self._torn = True
            if seen._count:
                self._keep(seen._kept)
            for j in range(min(seen._f, seen._count)):
                self._push([low[j] for low in seen._low], True, threads)
            for j in range(min(seen._f, max(0, seen._count - seen._f))):
                self._push([high[j] for high in seen._high], True, threads)
            for mine_sums, theirs_sums in zip(self._sums, seen._sums, strict=True):
                mine_sums += theirs_sums
            self._count += max(0, seen._count - 2 * seen._f)
            self._dropped += seen._dropped
            self._torn = False

    def __iadd__(self, other: TrimmedMeanAccumulator) -> TrimmedMeanAccumulator:
        self.merge(other)
        return self

    def reset(self) -> None:
        """Forget every update."""
        with self._lock:
            self._clear()

    # ---- result ------------------------------------------------------------------------------------------------

    def result(self, out: Any = None) -> Any:
        """The trimmed mean so far, in the template's containers and dtypes; may be called again after more updates.

        Args:
            out: containers of arrays like the template, for the result.

        Raises:
            TooFewUpdates: not more than 2 f updates have been added.
            StructureMismatch, ShapeMismatch, DtypeMismatch, TypeError, ValueError: out does not fit.
        """
        with self._lock:
            self._check_whole()
            inside = self._count - 2 * self._f
            if inside < 1:
                expected, got = f"at least {2 * self._f + 1} updates (2f < K with f={self._f})", self._count
                raise TooFewUpdates(
                    f"TrimmedMeanAccumulator: expected {expected}, got {got}", expected=expected, got=got
                )
            targets, copies = self._template.outputs(out, [])
            threads = backends.num_threads(self._num_threads)
            for i, t in enumerate(self._averaged):
                self._finish(i, targets[t], inside, threads)
            for t, value in self._kept.items():
                np.copyto(targets[t], value)
        for source, target in copies:
            np.copyto(target, source)
        return self._template.build(targets) if out is None else out

    def _finish(self, i: int, target: Array, inside: int, threads: int) -> None:
        flat, sums, dtype = target.reshape(-1), self._sums[i], target.dtype
        kernels = backends.kernels()
        for start in range(0, flat.size, _TILE):
            part = slice(start, start + _TILE)
            with np.errstate(over="ignore", invalid="ignore"):
                mean = sums[part] / inside
                if self._f:
                    least = values_of(self._low[i][-1, part], dtype)
                    most = values_of(self._high[i][-1, part], dtype)
                    mean = np.where(mean < least, least, mean)
                    mean = np.where(mean > most, most, mean)
            kernels.finish_mean([mean], 1.0, False, [flat[part]], threads)

    # ---- value semantics ---------------------------------------------------------------------------------------

    def _signature(self) -> tuple[Any, ...]:
        arrays = self._template.arrays
        return (
            self._template.structure,
            [(a.dtype.str, a.shape) for a in arrays],
            f"f={self._f}",
            self._ints,
            self._nonfinite,
        )

    def copy(self) -> TrimmedMeanAccumulator:
        """An independent accumulator in the same state."""
        twin = copy.copy(self._template)
        other = TrimmedMeanAccumulator.__new__(TrimmedMeanAccumulator)
        with self._lock:
            self._check_whole()
            other._template = twin
            other._f, other._ints, other._nonfinite = self._f, self._ints, self._nonfinite
            other._num_threads, other._averaged = self._num_threads, self._averaged
            other._lock = threading.Lock()
            other._low = [a.copy() for a in self._low]
            other._high = [a.copy() for a in self._high]
            other._sums = [a.copy() for a in self._sums]
            other._kept = {t: a.copy() for t, a in self._kept.items()}
            other._count, other._dropped = self._count, self._dropped
        return other

    __copy__ = copy

    def __deepcopy__(self, memo: object) -> TrimmedMeanAccumulator:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return TrimmedMeanAccumulator.from_bytes, (self.to_bytes(),)

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TrimmedMeanAccumulator):
            return NotImplemented
        a, b = self.copy(), other.copy()
        return (
            a._signature() == b._signature()
            and (a._count, a._dropped) == (b._count, b._dropped)
            and all(
                x.tobytes() == y.tobytes()
                for x, y in zip(
                    (*a._low, *a._high, *a._sums, *a._kept.values()),
                    (*b._low, *b._high, *b._sums, *b._kept.values()),
                    strict=True,
                )
            )
        )

    def __repr__(self) -> str:
        arrays = self._template.arrays
        return (
            f"<TrimmedMeanAccumulator of {len(arrays)} tensors, {sum(a.size for a in arrays)} parameters: "
            f"f={self._f}, {self._count} updates>"
        )

    # ---- wire form ---------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The whole state, little-endian, with a CRC-32; see docs/robust.md for the layout.

        Raises:
            TypeError: a dict key of the template is no string.
        """
        state = self.copy()
        meta = json.dumps(
            {
                "structure": plain(state._template.structure),
                "tensors": [[a.dtype.str[1:], list(a.shape)] for a in state._template.arrays],
                "ints": state._ints,
                "nonfinite": state._nonfinite,
            },
            separators=(",", ":"),
        ).encode()
        place = {t: i for i, t in enumerate(state._averaged)}
        parts = [meta]
        for t in range(len(state._template.arrays)):
            if t in place:
                arrays = [state._low[place[t]], state._high[place[t]], state._sums[place[t]]]
            else:
                arrays = [state._kept[t]]
            parts += [a.astype(a.dtype.newbyteorder("<"), copy=False).tobytes() for a in arrays]
        return _FORMAT.seal(1, (len(meta), state._f, state._count, state._dropped), parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> TrimmedMeanAccumulator:
        """The accumulator of bytes made by `to_bytes`. Nothing is unpickled, and no more is allocated than came.

        Raises:
            TypeError: data is not bytes-like.
            ValueError: the bytes are damaged, truncated, of an unknown version, or contradict themselves.
        """
        _, (length, f, count, dropped), body = _FORMAT.open(data)
        text, payload = _FORMAT.split(body, length)
        try:
            return cls._restore(json.loads(text), payload, f, count, dropped)
        except (KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError, ValueError) as error:
            raise ValueError(f"accumulator: the description does not hold together ({error})") from None

    @classmethod
    def _restore(cls, meta: Any, payload: memoryview, f: int, count: int, dropped: int) -> TrimmedMeanAccumulator:
        if set(meta) != {"structure", "tensors", "ints", "nonfinite"}:
            raise ValueError("unexpected fields")
        _check_trim(f)
        ints = meta["ints"]
        _policy.check_choice(ints, "ints", _policy.INTS)
        known = {d.str[1:]: d for d in DTYPES}
        offset = 0

        def take(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
            nonlocal offset
            size = 1
            for s in shape:
                size *= s
            if size * dtype.itemsize > len(payload) - offset:
                raise ValueError("fewer bytes than the tensors need")
            values = np.frombuffer(payload, dtype.newbyteorder("<"), size, offset).reshape(shape)
            offset += values.nbytes
            return values.astype(dtype, copy=True)

        low, high, sums = [], [], []
        blanks: list[Array] = []
        kept: dict[int, Array] = {}
        for t, (code, shape) in enumerate(meta["tensors"]):
            dtype = known[code]
            if not all(type(s) is int and s >= 0 for s in shape):
                raise ValueError(f"shape {shape}")
            if dtype.kind in "fV" or ints == "round":
                size = 1
                for s in shape:
                    size *= s
                integer = image_dtype(dtype)
                low.append(take((f, size), integer))
                high.append(take((f, size), integer))
                sums.append(take((size,), np.dtype(np.float64)))
                # A zero-stride stand-in: the template's shape and dtype without its memory.
                blanks.append(np.broadcast_to(np.zeros((), dtype), tuple(shape)))
            else:
                kept[t] = take(tuple(shape), dtype)
                blanks.append(kept[t])
        if offset != len(payload):
            raise ValueError(f"{len(payload) - offset} bytes too many")
        used: list[int] = []
        blank = example(meta["structure"], blanks, used, 0)
        if used != list(range(len(blanks))):
            raise ValueError("structure and tensors differ")
        self = cls.__new__(cls)
        self._template = Template(blank, client="template")
        self._f, self._ints, self._nonfinite, self._num_threads = f, ints, meta["nonfinite"], None
        _policy.check_choice(self._nonfinite, "nonfinite", _NONFINITE)
        self._lock = threading.Lock()
        self._averaged = _policy.averaged(self._template.arrays, self._template.keys, ints)
        if ints == "skip":
            self._template.arrays = [a if _policy.is_float(a) else a.copy() for a in self._template.arrays]
        self._low, self._high, self._sums, self._kept = low, high, sums, kept
        self._count, self._dropped = count, dropped
        return self
