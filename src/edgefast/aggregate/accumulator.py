"""MeanAccumulator: the weighted mean of updates that arrive one by one, in memory for one model."""

from __future__ import annotations

import contextlib
import copy
import json
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final

import numpy as np

from edgefast import backends
from edgefast.aggregate import _describe, _policy
from edgefast.aggregate._policy import Accumulate, Ints, Nonfinite
from edgefast.aggregate._sketched import SketchFormat
from edgefast.aggregate._template import DTYPES, Template
from edgefast.aggregate._whole import Whole
from edgefast.aggregate._wire import Format
from edgefast.aggregate.encoded import Encoded, Packed, add_packed, packed_runs
from edgefast.aggregate.errors import StructureMismatch, ZeroWeightError
from edgefast.aggregate.mean import nonfinite_error
from edgefast.backends.table import BF16, Array, binned_folds, holds_single

__all__ = ["MeanAccumulator"]

# magic, version, length of the JSON part, total weight, count, dropped; then JSON, then the tensors, then the CRC-32.
_FORMAT: Final = Format("accumulator", b"EFMA", (1, 2, 3), struct.Struct("<4sHxxIdQQ"))
#: Indices of csrc/aggregate/binned.hpp: the highest bin, and the flags of non-finite coordinates.
_TOP_BIN: Final = 46
_FLAGS: Final = 253
#: From so many first updates on it is their sums that are searched for NaN.
_LATE: Final = 4


class MeanAccumulator(Whole):
    """Streaming weighted mean: add updates as they arrive, merge with other accumulators, read the result any time.

    Holds 8 bytes per parameter ("float32": 4; "reproducible": 17, or 25 for float64 and 32- and 64-bit integers),
    whatever the number of updates. Adding K updates gives the same bits as `weighted_mean` of them in the same order;
    with accumulate="reproducible" in any order, and through any tree of merges; otherwise a merge adds one rounding per
    parameter. Methods may be called from several threads at once; the kernels release the GIL.

    Args:
        template: an update (see weighted_mean) whose containers, keys, shapes and dtypes every other has to have.
            Its values only matter to ints="skip". The result's leaves are of the kind of the template's. Or an Encoded
            of kind "countsketch": then updates and result are such sketches, and the state is that of one.
        accumulate: "float64", "float32" or "reproducible", as in weighted_mean.
        ints: what happens to integer and bool tensors, as in weighted_mean; "skip" gives the template's value.
        nonfinite: what an update with NaN or infinity does: "raise" (it is not added), "drop" (it is counted in
            `dropped` and not added) or "propagate".
        partial: updates may lack dict keys; each tensor is divided by the weight of the updates that have it.
        num_threads: threads to use; None for the default (see edgefast.using).

    After an exception out of a signal handler, such as Ctrl-C, the update was added or it was not. Where it was half
    added the methods raise RuntimeError from then on, until reset().

    Raises:
        DtypeMismatch: the template holds something that cannot be averaged.
        ValueError: an unknown option, ints="first" with accumulate="reproducible", or partial sketches.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import MeanAccumulator
        >>> acc = MeanAccumulator({"w": np.zeros(2)})
        >>> acc.add({"w": np.array([1.0, 2.0])}, weight=3)
        >>> acc.add({"w": np.array([3.0, 6.0])}, weight=1)
        >>> acc.result()
        {'w': array([1.5, 3. ])}
        >>> MeanAccumulator.from_bytes(acc.to_bytes()) == acc
        True
    """

    def __init__(
        self,
        template: Any,
        *,
        accumulate: Accumulate = "float64",
        ints: Ints = "round",
        nonfinite: Nonfinite = "raise",
        partial: bool = False,
        num_threads: int | None = None,
    ) -> None:
        _policy.check_options(accumulate, ints, nonfinite)
        if num_threads is not None:
            backends.num_threads(num_threads)
        self._sketch: SketchFormat | None = None
        if isinstance(template, Encoded) and template._sketch is not None:
            if partial:
                raise ValueError("partial: expected False with sketches, got True")
            self._sketch = template._sketch
            template = template._rows()
        self._template = Template(template, client="template", partial=bool(partial))
        self._accumulate: Accumulate = accumulate
        self._ints: Ints = ints
        self._nonfinite: Nonfinite = nonfinite
        self._num_threads = num_threads
        self._lock = threading.Lock()
        self._averaged = _policy.averaged(self._template.arrays, self._template.keys, ints)
        if ints == "skip":
            # The template's integers are part of the result: keep their values, not a view of the caller's arrays.
            self._template.arrays = [a if _policy.is_float(a) else a.copy() for a in self._template.arrays]
        self._allocate()
        self._forget()

    def _allocate(self) -> None:
        chosen = set(self._averaged)
        # One array per tensor: sums, or the running value of an integer tensor under "max" and "first".
        # Reproducible sums are int64 bins (folds, ...) with a uint8 index each.
        self._sums: list[Array] = []
        self._index: list[Array | None] = []
        for t, a in enumerate(self._template.arrays):
            index = None
            if t not in chosen:
                sums = np.zeros(a.shape, a.dtype)
            elif self._accumulate == "reproducible":
                folds = binned_folds(a.dtype)
                sums, index = np.zeros((folds, *a.shape), np.int64), np.full(a.shape, folds - 1, np.uint8)
            else:
                sums = np.zeros(a.shape, _sum_dtype(a.dtype, self._accumulate))
            self._sums.append(sums)
            self._index.append(index)

    def _forget(self) -> None:
        # Sums of weights: floats, or for "reproducible" exact integers (units of 2**-952). With `partial` also per
        # tensor, with the number of updates that had it.
        self._total: float | int = 0
        self._count = 0
        self._dropped = 0
        tensors = len(self._sums) if self._template.partial else 0
        self._totals: list[float | int] = [0] * tensors
        self._counts: list[int] = [0] * tensors
        # Whether the sums hold rubbish: the first update overwrites them without reading, others clear them first.
        self._stale = False
        self._torn = False

    def _settle(self) -> None:
        """For who reads or changes the sums: they are whole, and cleared where a reset left that to the next."""
        self._check_whole()
        self._clear()

    def _clear(self) -> None:
        if self._stale:
            for sums, index in zip(self._sums, self._index, strict=True):
                sums.fill(0)
                if index is not None:
                    index.fill(len(sums) - 1)
            self._stale = False

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """The sums change: if that is interrupted nobody takes them for whole."""
        self._check_whole()
        try:
            yield
            self._torn = False
        finally:
            if self._torn and self._count == 0:  # the first update overwrites them
                self._stale, self._torn = True, False

    # ---- state -------------------------------------------------------------------------------------------------

    @property
    def weight(self) -> float:
        """Sum of the weights added so far."""
        return self._as_float(self._total)

    @property
    def count(self) -> int:
        """Number of updates added so far, dropped ones and ones of weight 0 not counted."""
        return self._count

    @property
    def dropped(self) -> int:
        """Number of updates left out by nonfinite="drop"."""
        return self._dropped

    @property
    def nbytes(self) -> int:
        """Bytes of the accumulated state."""
        return sum(s.nbytes for s in self._sums) + sum(i.nbytes for i in self._index if i is not None)

    def _is_finite(self) -> bool:
        """Whether no coordinate has become NaN or infinite."""
        with self._lock:
            self._settle()
            return self._sums_are_finite()

    def _sums_are_finite(self) -> bool:
        if self._accumulate == "reproducible":
            return all(index is None or not index.size or index.max() < _FLAGS for index in self._index)
        sums = [self._sums[t] for t in self._averaged]
        return backends.kernels().all_finite(sums, backends.num_threads(self._num_threads))

    def _as_float(self, total: float | int) -> float:
        return _policy.exact_float(int(total)) if self._accumulate == "reproducible" else float(total)

    # ---- adding ------------------------------------------------------------------------------------------------

    def add(self, update: Any, weight: float = 1.0, *, client: object = None) -> None:
        """Add one update. On an error nothing has been added.

        Args:
            update: an update of the template's structure; it is read once (twice when non-finite values are looked
                for) and not kept. Or an Encoded: float64 sums take it as it is, others its decoded form, one at a time.
            weight: 0, or within the bounds of weighted_mean; an update of weight 0 is not read.
            client: name for error messages; None for the running number.

        Raises:
            StructureMismatch, ShapeMismatch, DtypeMismatch, NonFiniteUpdate, IntegerRange: as weighted_mean.
            ValueError, TypeError: the weight is out of range, or no number; or a reproducible accumulator is full
                (2**20 - 1 updates).
        """
        w = _policy.one_weight(weight, "weight", self._accumulate)
        if w == 0:
            return
        self._add([self._read(update, self._count if client is None else client)], [w])

    def add_many(
        self,
        updates: Sequence[Any],
        weights: Sequence[float] | Array | None = None,
        *,
        clients: Sequence[object] | None = None,
    ) -> None:
        """Add several updates at once: the bits of adding them one by one in this order, for less memory traffic.

        On an error nothing has been added.

        Args:
            updates: updates of the template's structure.
            weights: one weight each; None for equal ones.
            clients: names for error messages; None for running numbers.

        Raises:
            TypeError: updates is no sequence (a generator, a DataFrame).
            ValueError: a wrong number of weights or clients, and what `add` raises.
        """
        _policy.check_sequence(updates)
        found = _policy.weights_of(weights, len(updates), self._accumulate)
        if clients is not None and len(clients) != len(updates):
            raise ValueError(f"clients: expected {len(updates)} names, one per update, got {len(clients)}")
        first = self._count
        names = range(first, first + len(updates)) if clients is None else clients
        chosen = [(u, w, n) for u, w, n in zip(updates, found, names, strict=True) if w > 0]
        # The first updates are overwritten, not added to: looking at their sums finds a NaN with fewer bytes read.
        late = first == 0 and len(chosen) >= _LATE and self._accumulate != "reproducible"
        late = late and not self._template.partial and self._nonfinite != "propagate"
        models = [self._read(u, name, screen=not late) for u, _, name in chosen]
        self._add(models, [w for _, w, _ in chosen], [name for *_, name in chosen] if late else None)

    def _read(self, update: Any, name: object, *, screen: bool = True) -> list[Any] | None:
        """The update's arrays after every check (without `screen` but the one for NaN); None when it is dropped."""
        if self._sketch is not None:
            update = _sketch_rows(update, self._sketch, name)
        elif isinstance(update, Encoded):
            if self._accumulate == "float64" and not self._template.partial:
                packed = update._packed(self._template, name)
                if self._ints == "round":
                    _policy.check_integers(packed, self._template.keys, name)
                return packed
            update._order(self._template, name)  # before what it says it is has been allocated
            update = update.decode(num_threads=self._num_threads)
        arrays = self._template.flatten(update, name)
        keys = self._template.keys
        if self._ints == "round":
            _policy.check_integers(arrays, keys, name)
        if self._nonfinite == "propagate" or not screen:
            return arrays
        return self._screened(arrays, name)

    def _screened(self, arrays: list[Any], name: object) -> list[Any] | None:
        """The arrays when they are finite; None when they are dropped."""
        keys = self._template.keys
        here = [t for t in self._averaged if arrays[t] is not None]
        inputs = [arrays[t] for t in here]
        if backends.kernels().all_finite(inputs, backends.num_threads(self._num_threads)):
            return arrays
        if self._nonfinite == "raise":
            raise nonfinite_error(inputs, [keys[t] for t in here], name)
        return None

    def _add(
        self, models: list[list[Any] | None], weights: list[float], unscreened: list[object] | None = None
    ) -> None:
        """Adds models; `unscreened` are their names where nobody has looked for NaN yet."""
        with self._lock, self._change():
            used = [(m, w) for m, w in zip(models, weights, strict=True) if m is not None]
            added = False
            if unscreened is not None:
                if self._count == 0:
                    self._torn = True
                    self._add_up(used)
                    added = self._sums_are_finite()
                    self._stale = not added
                if not added:
                    found = [
                        m if isinstance(m, Packed) else self._screened(m, name)
                        for (m, _), name in zip(used, unscreened, strict=True)
                    ]
                    kept = [(m, w) for m, (_, w) in zip(found, used, strict=True) if m is not None]
                    # With nobody to blame finite numbers have overflowed: adding them up again tells nothing new.
                    added = self._stale and len(kept) == len(used)
                    self._stale = self._stale and not added
                    used = kept
            self._dropped += len(models) - len(used)
            if not used:
                return
            if self._accumulate == "reproducible" and self._count + len(used) > _policy.MOST_UPDATES:
                raise ValueError(f"accumulator: expected at most {_policy.MOST_UPDATES} updates in reproducible sums")
            self._torn = True
            if not added:
                self._add_up(used)
            for m, w in used:
                for t in self._kept():
                    if m[t] is None:
                        continue
                    if self._count_of(t) == 0:
                        np.copyto(self._sums[t], m[t])
                    elif self._ints == "max":
                        np.maximum(self._sums[t], m[t], out=self._sums[t])
                units = _policy.exact_weight(w) if self._accumulate == "reproducible" else w
                self._total += units
                self._count += 1
                for t in range(len(self._totals)):
                    if m[t] is not None:
                        self._totals[t] += units
                        self._counts[t] += 1

    def _add_up(self, used: list[tuple[list[Any], float]]) -> None:
        """Add to the sums."""
        if self._template.partial:
            for m, w in used:
                here = [t for t in self._averaged if m[t] is not None]
                self._accumulate_rows([[m[t] for t in here]], [w], here, False)
            return
        everything = len(self._averaged) == len(self._sums)
        fresh = self._count == 0
        for run in packed_runs(used):
            weights = [w for _, w in run]
            if isinstance(run[0][0], Packed):
                self._accumulate_packed([m for m, _ in run], weights, fresh)
            else:
                rows = [m if everything else [m[t] for t in self._averaged] for m, _ in run]
                self._accumulate_rows(rows, weights, self._averaged, fresh)
            fresh = False

    def _accumulate_packed(self, rows: list[Any], weights: list[float], fresh: bool) -> None:
        """Compressed updates of one format, dequantised on the way into the sums."""
        if not fresh:
            self._clear()
        threads = backends.num_threads(self._num_threads)
        for t in self._averaged:
            add_packed(rows, weights, t, self._template.arrays[t], fresh, self._sums[t], threads)
        self._stale = False

    def _accumulate_rows(self, rows: list[list[Array]], weights: list[float], tensors: list[int], fresh: bool) -> None:
        threads = backends.num_threads(self._num_threads)
        kernels = backends.kernels()
        sums = [self._sums[t] for t in tensors]
        if self._accumulate == "reproducible":
            self._clear()
            index = self._indices(tensors)
            for row, w in zip(rows, weights, strict=True):
                kernels.binned_add(row, w, sums, index, threads)
            return
        if not fresh:
            self._clear()
        kernels.add_weighted(rows, weights, self._accumulate == "float32", fresh, sums, threads)
        self._stale = False

    def _indices(self, tensors: list[int]) -> list[Array]:
        return [index for t in tensors if (index := self._index[t]) is not None]

    def _count_of(self, t: int) -> int:
        return self._counts[t] if self._counts else self._count

    def _kept(self) -> list[int]:
        """Integer tensors that carry a value of their own: those of "max" and "first"."""
        if self._ints not in ("max", "first"):
            return []
        return [t for t in range(len(self._sums)) if t not in set(self._averaged)]

    def merge(self, other: MeanAccumulator) -> None:
        """Add everything another accumulator of the same template and options has seen; `other` is not changed.

        Raises:
            TypeError: other is no MeanAccumulator.
            StructureMismatch: its template or options differ.
            ValueError: a reproducible accumulator would hold more than 2**20 - 1 updates.
        """
        if not isinstance(other, MeanAccumulator):
            raise TypeError(f"other: expected a MeanAccumulator, got {type(other).__name__}")
        if (mine := self._signature()) != (theirs := other._signature()):
            raise StructureMismatch.of("other", None, mine, theirs)
        snapshot = other.copy()
        with self._lock, self._change():
            self._clear()
            if self._accumulate == "reproducible":
                if self._count + snapshot._count > _policy.MOST_UPDATES:
                    raise ValueError(
                        f"accumulator: expected at most {_policy.MOST_UPDATES} updates in reproducible sums"
                    )
                self._torn = True
                backends.kernels().binned_merge(
                    [snapshot._sums[t] for t in self._averaged],
                    snapshot._indices(self._averaged),
                    [self._sums[t] for t in self._averaged],
                    self._indices(self._averaged),
                    [self._template.arrays[t] for t in self._averaged],
                    backends.num_threads(self._num_threads),
                )
            else:
                self._torn = True
                with np.errstate(all="ignore"):
                    for t in self._averaged:
                        self._sums[t] += snapshot._sums[t]
            for t in self._kept():
                if snapshot._count_of(t) and self._count_of(t) == 0:
                    np.copyto(self._sums[t], snapshot._sums[t])
                elif snapshot._count_of(t) and self._ints == "max":
                    np.maximum(self._sums[t], snapshot._sums[t], out=self._sums[t])
            self._total += snapshot._total
            self._count += snapshot._count
            self._dropped += snapshot._dropped
            self._totals = [a + b for a, b in zip(self._totals, snapshot._totals, strict=True)]
            self._counts = [a + b for a, b in zip(self._counts, snapshot._counts, strict=True)]

    def __iadd__(self, other: MeanAccumulator) -> MeanAccumulator:
        self.merge(other)
        return self

    def reset(self) -> None:
        """Forget every update; the memory is kept."""
        with self._lock:
            self._forget()
            self._stale = True

    # ---- result ------------------------------------------------------------------------------------------------

    def result(self, out: Any = None) -> Any:
        """The weighted mean so far, in the template's containers and dtypes; may be called again after more updates.

        Args:
            out: containers of arrays like the template, for the result; None for a sketch.

        Raises:
            ZeroWeightError: nothing has been added; with `partial`, no update had some key.
            StructureMismatch, ShapeMismatch, DtypeMismatch, TypeError, ValueError: out does not fit.
        """
        if self._sketch is not None and out is not None:
            raise TypeError("out: expected None, the result being a sketch")
        with self._lock:
            self._check_whole()
            if self._total == 0:
                raise ZeroWeightError("expected at least one update of weight above 0, got none")
            groups: dict[float | int, list[int]] = {}
            if self._template.partial:
                for t, total in enumerate(self._totals):
                    if total == 0 and not (self._ints == "skip" and t not in set(self._averaged)):
                        raise ZeroWeightError.of(
                            "any", self._template.keys[t], "at least one update of weight above 0 that has it", "none"
                        )
                for t in self._averaged:
                    groups.setdefault(self._totals[t], []).append(t)
            else:
                groups[self._total] = self._averaged
            targets, copies = self._template.outputs(out, [])
            for total, tensors in groups.items():
                self._finish(self._as_float(total), tensors, [targets[t] for t in tensors])
            for t in set(range(len(targets))) - set(self._averaged):
                np.copyto(targets[t], self._template.arrays[t] if self._ints == "skip" else self._sums[t])
        for source, target in copies:
            np.copyto(target, source)
        if self._sketch is not None:
            return Encoded._of_rows(self._sketch, targets)
        return self._template.build(targets) if out is None else out

    def _finish(self, total: float, tensors: list[int], targets: list[Array]) -> None:
        threads = backends.num_threads(self._num_threads)
        sums = [self._sums[t] for t in tensors]
        if self._accumulate == "reproducible":
            backends.kernels().binned_finish(sums, self._indices(tensors), total, targets, threads)
        else:
            backends.kernels().finish_mean(sums, total, self._accumulate == "float32", targets, threads)

    @contextlib.contextmanager
    def _unfinished(self, template: Template) -> Iterator[tuple[list[Array], float, list[Array]]]:
        """Sums, what to divide them by, and the values of integer tensors, for the server optimizers, which finish
        the mean themselves; means and 0 where the sums are not float64. Nothing is added meanwhile."""
        if (mine := _describe.shapes(self._template)) != (theirs := _describe.shapes(template)):
            raise StructureMismatch.of("update", None, theirs, mine)
        integers = [t for t, a in enumerate(self._template.arrays) if not _policy.is_float(a)]
        values = self._template.arrays
        finished = self._accumulate != "float64" or self._template.partial
        if integers or finished:
            values = self._template.flatten(self.result(), "update")
        if finished:
            yield values, 0.0, values
            return
        with self._lock:
            if self._total == 0:
                raise ZeroWeightError("expected at least one update of weight above 0, got none")
            self._settle()
            yield list(self._sums), self._as_float(self._total), values

    # ---- value semantics and wire form ---------------------------------------------------------------------------

    def _signature(self) -> dict[str, Any]:
        signature = {
            "structure": _describe.plain(self._template.structure),
            "tensors": [[_describe.code(a.dtype), list(a.shape)] for a in self._template.arrays],
            "ints": self._ints,
            "nonfinite": self._nonfinite,
            "accumulate": self._accumulate,
        }
        if self._sketch is not None:
            signature["sketch"] = self._sketch.describe()
        return {**signature, "partial": True} if self._template.partial else signature

    def copy(self) -> MeanAccumulator:
        """An independent accumulator in the same state."""
        clone = object.__new__(MeanAccumulator)
        with self._lock:
            self._settle()
            clone.__dict__.update(self.__dict__)
            clone._sums = [s.copy() for s in self._sums]
            clone._index = [None if i is None else i.copy() for i in self._index]
            clone._totals, clone._counts = list(self._totals), list(self._counts)
        clone._lock = threading.Lock()
        return clone

    def __copy__(self) -> MeanAccumulator:
        return self.copy()

    def __deepcopy__(self, memo: object) -> MeanAccumulator:
        clone = self.copy()
        clone._template = copy.copy(self._template)
        return clone

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MeanAccumulator):
            return NotImplemented
        for one in (self, other):
            with one._lock:
                one._settle()
        return (
            self._signature() == other._signature()
            and (self._total, self._count, self._dropped) == (other._total, other._count, other._dropped)
            and (self._totals, self._counts) == (other._totals, other._counts)
            and all(a.tobytes() == b.tobytes() for a, b in zip(self._sums, other._sums, strict=True))
            and all(
                a is None or b is None or a.tobytes() == b.tobytes()
                for a, b in zip(self._index, other._index, strict=True)
            )
        )

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        parameters = sum(a.size for a in self._template.arrays)
        kind = "" if self._accumulate == "float64" else f" ({self._accumulate})"
        return (
            f"<MeanAccumulator{kind} of {len(self._sums)} tensors, {parameters} parameters: "
            f"{self._count} updates, weight {self.weight:g}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return MeanAccumulator.from_bytes, (self.to_bytes(),)

    def to_bytes(self) -> bytes:
        """The whole state, versioned, little-endian, with a checksum; layout in docs/aggregate.md.

        Kinds of leaves (torch, Flower) are not part of it: from_bytes gives numpy arrays.

        Raises:
            TypeError: a dict key of the template is no string.
        """
        with self._lock:
            self._settle()
            meta = self._signature()
            # Version 1 where it can say everything: what reads it goes on reading it.
            plain = self._accumulate == "float64" and not self._template.partial
            version = 1 if plain and not any(a.dtype == BF16 for a in self._template.arrays) else 2
            if self._sketch is not None:
                version = 3
            if version >= 2:
                meta["total"] = _number(self._total)
                if self._template.partial:
                    meta["totals"], meta["counts"] = [_number(w) for w in self._totals], self._counts
            text = json.dumps(meta, separators=(",", ":")).encode()
            fields = len(text), self.weight, self._count, self._dropped
            parts: list[bytes] = [text]
            for t, total in enumerate(self._sums):
                source = self._template.arrays[t] if self._ints == "skip" and t not in self._averaged else total
                parts.append(_describe.little(source))
                if (index := self._index[t]) is not None:
                    parts.append(index.tobytes())
        return _FORMAT.seal(version, fields, parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> MeanAccumulator:
        """The accumulator of bytes made by `to_bytes`. Nothing is unpickled, and no more is allocated than came.

        Raises:
            TypeError: data is not bytes-like.
            ValueError: the bytes are damaged, truncated, of an unknown version, or contradict themselves.
        """
        version, (length, weight, count, dropped), body = _FORMAT.open(data)
        text, payload = _FORMAT.split(body, length)
        try:
            meta = json.loads(text)
            return cls._restore(version, meta, payload, weight, count, dropped)
        except (KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError, ValueError) as error:
            raise ValueError(f"accumulator: the description does not hold together ({error})") from None

    @classmethod
    def _restore(
        cls, version: int, meta: Any, payload: memoryview, weight: float, count: int, dropped: int
    ) -> MeanAccumulator:
        partial = version == 2 and "partial" in meta
        expected = {"structure", "tensors", "ints", "nonfinite", "accumulate"}
        expected |= {2: {"total"}, 3: {"total", "sketch"}}.get(version, set())
        if set(meta) != expected | ({"partial", "totals", "counts"} if partial else set()):
            raise ValueError("unexpected fields")
        if partial and meta["partial"] is not True:
            raise ValueError(f"partial {meta['partial']}")
        ints, accumulate = meta["ints"], meta["accumulate"]
        _policy.check_options(accumulate, ints, meta["nonfinite"])
        if version == 1 and accumulate != "float64":
            raise ValueError(f"accumulate {accumulate!r} in version 1")
        total: float | int = weight
        if version >= 2:
            total = _from_number(meta["total"], accumulate)
        as_float = _policy.exact_float(int(total)) if accumulate == "reproducible" else float(total)
        # Twice the bounds of a weight: sums are rounded.
        most = count * 2.0 ** (_policy.RANGE[accumulate] + 1)
        least = count * 2.0 ** -(_policy.RANGE[accumulate] + 1)
        if not 0 <= least <= weight <= most or (count == 0) != (total == 0) or as_float != weight:
            raise ValueError(f"weight {weight} of {count} updates")
        known = {_describe.code(d): d for d in DTYPES}
        arrays: list[Array] = []
        index: list[Array | None] = []
        offset = 0

        def take(dtype: np.dtype[Any], shape: tuple[int, ...], size: int) -> Array:
            nonlocal offset
            stored = dtype.newbyteorder("<")
            if size * stored.itemsize > len(payload) - offset:
                raise ValueError("fewer bytes than the tensors need")
            values = np.frombuffer(payload, stored, size, offset).reshape(shape)
            offset += values.nbytes
            return values.astype(stored.newbyteorder("="), copy=True)

        for code, shape in meta["tensors"]:
            dtype = known[code]
            if version == 1 and dtype == BF16:
                raise ValueError("bfloat16 in version 1")
            if not all(type(s) is int and s >= 0 for s in shape):
                raise ValueError(f"shape {shape}")
            size = 1
            for s in shape:
                size *= s
            tops = None
            if dtype.kind not in "fV" and ints != "round":
                arrays.append(take(dtype, shape, size))
            elif accumulate == "reproducible":
                folds = binned_folds(dtype)
                arrays.append(take(np.dtype(np.int64), (folds, *shape), folds * size))
                tops = take(np.dtype(np.uint8), shape, size)
                _check_bins(arrays[-1], tops, count)
            else:
                arrays.append(take(np.dtype(_sum_dtype(dtype, accumulate)), shape, size))
            index.append(tops)
        if offset != len(payload):
            raise ValueError(f"{len(payload) - offset} bytes too many")
        # Zero-stride stand-ins: the template's shapes and dtypes without its memory.
        blanks = [
            a if ints == "skip" and known[code].kind not in "fV" else np.broadcast_to(np.zeros((), known[code]), shape)
            for (code, shape), a in zip(meta["tensors"], arrays, strict=True)
        ]
        used: list[int] = []
        example = _describe.example(meta["structure"], blanks, used, 0)
        if used != list(range(len(blanks))):
            raise ValueError("structure and tensors differ")
        if version == 3:
            sketch = SketchFormat.restore(meta["sketch"])
            if [(a.dtype, a.shape) for a in blanks] != sketch.rows() or meta["structure"] != sketch.row_structure():
                raise ValueError("sketch and tensors differ")
            example = Encoded._of_rows(sketch, blanks)
        self = cls(example, accumulate=accumulate, ints=ints, nonfinite=meta["nonfinite"], partial=partial)
        chosen = set(self._averaged)
        if ints != "skip":
            self._sums = arrays
        else:
            self._sums = [a if t in chosen else s for t, (a, s) in enumerate(zip(arrays, self._sums, strict=True))]
        self._index = index
        self._total, self._count, self._dropped = total, count, dropped
        if partial:
            self._totals = [_from_number(w, accumulate) for w in meta["totals"]]
            self._counts = list(meta["counts"])
            if not len(self._totals) == len(self._counts) == len(arrays) or not all(
                type(c) is int and 0 <= c <= count and (c == 0) == (w == 0) and w <= total
                for c, w in zip(self._counts, self._totals, strict=True)
            ):
                raise ValueError("weights per tensor")
        return self


def _sketch_rows(update: Any, expected: SketchFormat, name: object) -> list[Array]:
    """Table and integer tensors of a sketch that adds up with others of the format."""
    if not isinstance(update, Encoded) or update._sketch is None:
        got = f"an Encoded of kind {update.kind!r}" if isinstance(update, Encoded) else f"a {type(update).__name__}"
        raise StructureMismatch.of(name, None, "an Encoded of kind 'countsketch'", got)
    got = update._sketch
    for field in ("seed", "width", "depth"):
        if getattr(got, field) != getattr(expected, field):
            message = f"{field} {getattr(expected, field)}", f"{field} {getattr(got, field)}"
            raise StructureMismatch.of(name, None, *message)
    if not got.adds_to(expected):
        mine, theirs = expected.describe(), got.describe()
        raise StructureMismatch.of(
            name, None, f"{mine['structure']} of {mine['tensors']}", f"{theirs['structure']} of {theirs['tensors']}"
        )
    return update._rows()


def _sum_dtype(dtype: np.dtype[Any], accumulate: str) -> type[np.floating]:
    return np.float32 if accumulate == "float32" and holds_single(dtype) else np.float64


def _number(total: float | int) -> str:
    """A sum of weights as text: hexadecimal, exact."""
    return hex(total) if isinstance(total, int) else total.hex()


def _from_number(text: Any, accumulate: str) -> float | int:
    if accumulate != "reproducible":
        total = float.fromhex(text)
        if not 0 <= total < float("inf"):
            raise ValueError(f"weight {total}")
        return total
    # The largest exact sum: 2**20 weights of 2**900 in units of 2**-952 have 1873 binary digits.
    if len(text) > 480 or not text.startswith("0x"):
        raise ValueError("weight")
    return int(text, 16)


def _check_bins(bins: Array, index: Array, count: int) -> None:
    """Refuses what no additions leave behind: later sums could overflow, or read bins that do not exist."""
    if count > _policy.MOST_UPDATES:
        raise ValueError(f"{count} updates")
    flagged = index >= _FLAGS
    if not (flagged | ((index >= len(bins) - 1) & (index <= _TOP_BIN))).all():
        raise ValueError("bin index")
    most = count << 43
    if ((bins > most) | (bins < -most)).any() or bins[:, flagged].any():
        raise ValueError("bins")
