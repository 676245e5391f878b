"""MeanAccumulator: the weighted mean of updates that arrive one by one, in memory for one model."""

from __future__ import annotations

import copy
import json
import struct
import threading
import zlib
from typing import Any, ClassVar, Final, Literal

import numpy as np

from edgefast import backends
from edgefast.aggregate import _policy
from edgefast.aggregate._policy import Ints, Nonfinite
from edgefast.aggregate._template import DTYPES, Template
from edgefast.aggregate.errors import StructureMismatch, ZeroWeightError
from edgefast.aggregate.mean import nonfinite_error
from edgefast.backends.table import Array

__all__ = ["MeanAccumulator"]

_MAGIC: Final = b"EFMA"
_VERSION: Final = 1
# magic, version, length of the JSON part, total weight, count, dropped; then JSON, then the tensors, then the CRC-32.
_HEADER: Final = struct.Struct("<4sHxxIdQQ")
_CHECKSUM: Final = struct.Struct("<I")
_MAX_DEPTH: Final = 64


class MeanAccumulator:
    """Streaming weighted mean: add updates as they arrive, merge with other accumulators, read the result any time.

    Holds 8 bytes per parameter, whatever the number of updates. Adding K updates gives the same bits as
    `weighted_mean` of them in the same order; a merge adds one rounding per parameter. Methods may be called from
    several threads at once; the kernels release the GIL.

    Args:
        template: an update (see weighted_mean) whose containers, keys, shapes and dtypes every other has to have.
            Its values only matter to ints="skip".
        accumulate: "float64".
        ints: what happens to integer and bool tensors, as in weighted_mean; "skip" gives the template's value.
        nonfinite: what an update with NaN or infinity does: "raise" (it is not added), "drop" (it is counted in
            `dropped` and not added) or "propagate".
        num_threads: threads to use; None for the default (see edgefast.using).

    Raises:
        DtypeMismatch: the template holds something that cannot be averaged.
        ValueError: an unknown option.

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
        accumulate: Literal["float64"] = "float64",
        ints: Ints = "round",
        nonfinite: Nonfinite = "raise",
        num_threads: int | None = None,
    ) -> None:
        _policy.check_accumulate(accumulate)
        _policy.check_choice(ints, "ints", _policy.INTS)
        _policy.check_choice(nonfinite, "nonfinite", _policy.NONFINITE)
        if num_threads is not None:
            backends.num_threads(num_threads)
        self._template = Template(template, client="template")
        self._ints: Ints = ints
        self._nonfinite: Nonfinite = nonfinite
        self._num_threads = num_threads
        self._lock = threading.Lock()
        self._averaged = _policy.averaged(self._template.arrays, self._template.keys, ints)
        if ints == "skip":
            # The template's integers are part of the result: keep their values, not a view of the caller's arrays.
            self._template.arrays = [a if a.dtype.kind == "f" else a.copy() for a in self._template.arrays]
        self._clear()

    def _clear(self) -> None:
        chosen = set(self._averaged)
        # One array per tensor: float64 sums, or the running value of an integer tensor under "max" and "first".
        self._sums: list[Array] = [
            np.zeros(a.shape, np.float64 if t in chosen else a.dtype) for t, a in enumerate(self._template.arrays)
        ]
        self._weight = 0.0
        self._count = 0
        self._dropped = 0

    # ---- state -------------------------------------------------------------------------------------------------

    @property
    def weight(self) -> float:
        """Sum of the weights added so far."""
        return self._weight

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
        return sum(s.nbytes for s in self._sums)

    # ---- adding ------------------------------------------------------------------------------------------------

    def add(self, update: Any, weight: float = 1.0, *, client: object = None) -> None:
        """Add one update. On an error nothing has been added.

        Args:
            update: an update of the template's structure; it is read once (twice when non-finite values are looked
                for) and not kept.
            weight: 0, or from 2**-900 to 2**900; an update of weight 0 is not read.
            client: name for error messages; None for the running number.

        Raises:
            StructureMismatch, ShapeMismatch, DtypeMismatch, NonFiniteUpdate, IntegerRange: as weighted_mean.
            ValueError, TypeError: the weight is out of range, or no number.
        """
        w = _policy.one_weight(weight, "weight")
        if w == 0:
            return
        name = self._count if client is None else client
        arrays = self._template.flatten(update, name)
        keys = self._template.keys
        if self._ints == "round":
            _policy.check_integers(arrays, keys, name)
        threads = backends.num_threads(self._num_threads)
        kernels = backends.kernels()
        chosen = self._averaged
        inputs = [arrays[t] for t in chosen]
        if self._nonfinite != "propagate" and not kernels.all_finite(inputs, threads):
            if self._nonfinite == "raise":
                raise nonfinite_error(inputs, [keys[t] for t in chosen], name)
            with self._lock:
                self._dropped += 1
            return
        with self._lock:
            kernels.add_weighted(inputs, w, [self._sums[t] for t in chosen], threads)
            for t in self._kept():
                if self._count == 0:
                    np.copyto(self._sums[t], arrays[t])
                elif self._ints == "max":
                    np.maximum(self._sums[t], arrays[t], out=self._sums[t])
            self._weight += w
            self._count += 1

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
        """
        if not isinstance(other, MeanAccumulator):
            raise TypeError(f"other: expected a MeanAccumulator, got {type(other).__name__}")
        if (mine := self._signature()) != (theirs := other._signature()):
            raise StructureMismatch.of("other", None, mine, theirs)
        snapshot = other.copy()
        with self._lock:
            for t in self._averaged:
                self._sums[t] += snapshot._sums[t]
            for t in self._kept():
                if snapshot._count and (self._count == 0):
                    np.copyto(self._sums[t], snapshot._sums[t])
                elif snapshot._count and self._ints == "max":
                    np.maximum(self._sums[t], snapshot._sums[t], out=self._sums[t])
            self._weight += snapshot._weight
            self._count += snapshot._count
            self._dropped += snapshot._dropped

    def __iadd__(self, other: MeanAccumulator) -> MeanAccumulator:
        self.merge(other)
        return self

    def reset(self) -> None:
        """Forget every update."""
        with self._lock:
            self._clear()

    # ---- result ------------------------------------------------------------------------------------------------

    def result(self, out: Any = None) -> Any:
        """The weighted mean so far, in the template's containers and dtypes; may be called again after more updates.

        Args:
            out: containers of arrays like the template, for the result.

        Raises:
            ZeroWeightError: nothing has been added.
            StructureMismatch, ShapeMismatch, DtypeMismatch, TypeError, ValueError: out does not fit.
        """
        with self._lock:
            if self._weight == 0:
                raise ZeroWeightError("expected at least one update of weight above 0, got none")
            targets, copies = self._template.outputs(out, [])
            chosen = self._averaged
            backends.kernels().finish_mean(
                [self._sums[t] for t in chosen],
                self._weight,
                [targets[t] for t in chosen],
                backends.num_threads(self._num_threads),
            )
            for t in set(range(len(targets))) - set(chosen):
                np.copyto(targets[t], self._template.arrays[t] if self._ints == "skip" else self._sums[t])
        for source, target in copies:
            np.copyto(target, source)
        return self._template.build(targets) if out is None else out

    # ---- value semantics and wire form ---------------------------------------------------------------------------

    def _signature(self) -> dict[str, Any]:
        return {
            "structure": _plain(self._template.structure),
            "tensors": [[a.dtype.str[1:], list(a.shape)] for a in self._template.arrays],
            "ints": self._ints,
            "nonfinite": self._nonfinite,
            "accumulate": "float64",
        }

    def copy(self) -> MeanAccumulator:
        """An independent accumulator in the same state."""
        clone = object.__new__(MeanAccumulator)
        with self._lock:
            clone.__dict__.update(self.__dict__)
            clone._sums = [s.copy() for s in self._sums]
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
        return (
            self._signature() == other._signature()
            and (self._weight, self._count, self._dropped) == (other._weight, other._count, other._dropped)
            and all(a.tobytes() == b.tobytes() for a, b in zip(self._sums, other._sums, strict=True))
        )

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        parameters = sum(a.size for a in self._template.arrays)
        return (
            f"<MeanAccumulator of {len(self._sums)} tensors, {parameters} parameters: "
            f"{self._count} updates, weight {self._weight:g}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return MeanAccumulator.from_bytes, (self.to_bytes(),)

    def to_bytes(self) -> bytes:
        """The whole state, versioned, little-endian, with a checksum; layout in docs/aggregate.md.

        Raises:
            TypeError: a dict key of the template is no string.
        """
        with self._lock:
            meta = json.dumps(self._signature(), separators=(",", ":")).encode()
            parts = [_HEADER.pack(_MAGIC, _VERSION, len(meta), self._weight, self._count, self._dropped), meta]
            for t, total in enumerate(self._sums):
                source = self._template.arrays[t] if self._ints == "skip" and t not in self._averaged else total
                parts.append(source.astype(source.dtype.newbyteorder("<"), copy=False).tobytes())
        body = b"".join(parts)
        return body + _CHECKSUM.pack(zlib.crc32(body))

    @classmethod
    def from_bytes(cls, data: bytes) -> MeanAccumulator:
        """The accumulator of bytes made by `to_bytes`. Nothing is unpickled, and no more is allocated than came.

        Raises:
            TypeError: data is not bytes-like.
            ValueError: the bytes are damaged, truncated, of an unknown version, or contradict themselves.
        """
        try:
            raw = memoryview(data).cast("B")
        except TypeError:
            raise TypeError(f"data: expected a bytes-like object, got {type(data).__name__}") from None
        least = _HEADER.size + _CHECKSUM.size
        if len(raw) < least:
            raise ValueError(f"accumulator: expected at least {least} bytes, got {len(raw)}")
        magic, version, meta_length, weight, count, dropped = _HEADER.unpack_from(raw)
        if magic != _MAGIC:
            raise ValueError(f"accumulator: expected bytes that start with {_MAGIC!r}, got {magic!r}")
        if version != _VERSION:
            raise ValueError(f"accumulator: expected version {_VERSION}, got version {version}")
        body, (checksum,) = raw[: -_CHECKSUM.size], _CHECKSUM.unpack(raw[-_CHECKSUM.size :])
        if zlib.crc32(body) != checksum:
            raise ValueError("accumulator: the checksum does not match; the bytes are damaged or truncated")
        if _HEADER.size + meta_length > len(body):
            raise ValueError(
                f"accumulator: expected {meta_length} bytes of description, got {len(body) - _HEADER.size}"
            )
        payload = body[_HEADER.size + meta_length :]
        try:
            return cls._restore(
                json.loads(bytes(body[_HEADER.size : _HEADER.size + meta_length])), payload, weight, count, dropped
            )
        except (KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError, ValueError) as error:
            raise ValueError(f"accumulator: the description does not hold together ({error})") from None

    @classmethod
    def _restore(cls, meta: Any, payload: memoryview, weight: float, count: int, dropped: int) -> MeanAccumulator:
        if set(meta) != {"structure", "tensors", "ints", "nonfinite", "accumulate"}:
            raise ValueError("unexpected fields")
        ints, nonfinite = meta["ints"], meta["nonfinite"]
        _policy.check_accumulate(meta["accumulate"])
        _policy.check_choice(ints, "ints", _policy.INTS)
        _policy.check_choice(nonfinite, "nonfinite", _policy.NONFINITE)
        if not (0 <= weight < float("inf")) or (count == 0) != (weight == 0):
            raise ValueError(f"weight {weight} of {count} updates")
        known = {d.str[1:]: d for d in DTYPES}
        arrays: list[Array] = []
        offset = 0
        for code, shape in meta["tensors"]:
            dtype = known[code]
            if not all(type(s) is int and s >= 0 for s in shape):
                raise ValueError(f"shape {shape}")
            size = 1
            for s in shape:
                size *= s
            stored = np.dtype("<f8") if dtype.kind == "f" or ints == "round" else dtype.newbyteorder("<")
            if size * stored.itemsize > len(payload) - offset:
                raise ValueError("fewer bytes than the tensors need")
            values = np.frombuffer(payload, stored, size, offset).reshape(shape)
            offset += values.nbytes
            arrays.append(values.astype(stored.newbyteorder("="), copy=True))
        if offset != len(payload):
            raise ValueError(f"{len(payload) - offset} bytes too many")
        # Zero-stride stand-ins: the template's shapes and dtypes without its memory.
        blanks = [
            a if ints == "skip" and known[code].kind != "f" else np.broadcast_to(np.zeros((), known[code]), a.shape)
            for (code, _), a in zip(meta["tensors"], arrays, strict=True)
        ]
        used: list[int] = []
        example = _example(meta["structure"], blanks, used, 0)
        if used != list(range(len(blanks))):
            raise ValueError("structure and tensors differ")
        self = cls(example, ints=ints, nonfinite=nonfinite)
        if ints != "skip":
            self._sums = arrays
        else:
            self._sums = [
                a if t in set(self._averaged) else s for t, (a, s) in enumerate(zip(arrays, self._sums, strict=True))
            ]
        self._weight, self._count, self._dropped = weight, count, dropped
        return self


def _plain(structure: Any) -> Any:
    """The template's structure as JSON: a leaf is its index, a dict is {"dict": [[key, child], ..]}."""
    if isinstance(structure, int):
        return structure
    if structure[0] == "dict":
        for key in structure[1]:
            if not isinstance(key, str):
                raise TypeError(f"dict keys: expected strings, got {type(key).__name__}")
        return {"dict": [[k, _plain(c)] for k, c in zip(structure[1], structure[2], strict=True)]}
    return {structure[0]: [_plain(c) for c in structure[1]]}


def _example(structure: Any, arrays: list[Array], used: list[int], depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError("structure too deep")
    if type(structure) is int:
        if structure != len(used):
            raise ValueError("tensors out of order")
        used.append(structure)
        return arrays[structure]
    ((kind, children),) = structure.items()
    if kind == "dict":
        pairs = [(k, _example(c, arrays, used, depth + 1)) for k, c in children]
        if len({k for k, _ in pairs}) != len(pairs) or not all(isinstance(k, str) for k, _ in pairs):
            raise ValueError("dict keys")
        return dict(pairs)
    found = [_example(c, arrays, used, depth + 1) for c in children]
    if kind == "tuple":
        return tuple(found)
    if kind == "list":
        return found
    raise ValueError(f"container {kind!r}")
