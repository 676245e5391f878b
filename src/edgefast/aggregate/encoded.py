"""Encoded: a compressed update, its wire form, and its way into sums without being expanded."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.aggregate import _describe, _sketched
from edgefast.aggregate._sketched import SketchFormat
from edgefast.aggregate._template import DTYPES, Template, dtype_name
from edgefast.aggregate._wire import Format
from edgefast.aggregate.errors import DtypeMismatch, ShapeMismatch, StructureMismatch
from edgefast.backends.numpy.elements import widen
from edgefast.backends.table import BF16, Array, QuantInput, QuantSpec

__all__ = ["KINDS", "Encoded", "Packed", "add_packed", "code_bytes", "is_rotated", "packed_runs", "scale_count"]

# magic, version, kind, bits, block, flags, length of the JSON part, seed, nonce; then JSON, tensors, CRC-32.
_FORMAT: Final = Format("encoded update", b"EFQU", (1,), struct.Struct("<4sHBBHHIQQ"))
_COUNT: Final = struct.Struct("<Q")
_STOCHASTIC: Final = 1
#: Kinds and their numbers in the wire form.
KINDS: Final = {"int8": 1, "int4": 2, "drive": 3, "eden": 4, "topk": 5, "countsketch": 6}
_MOST_LEVEL: Final = {8: 127.0, 4: 7.0}
_LARGEST_CENTROID: Final = 2.75


def is_rotated(kind: str) -> bool:
    return kind in ("drive", "eden")


def scale_count(block: int, size: int) -> int:
    return -(-size // block)


def code_bytes(rotated: bool, bits: int, block: int, size: int) -> int:
    """Bytes of a tensor's codes: csrc/aggregate/quantize.hpp."""
    whole, rest = divmod(size, block)
    if rest == 0:
        tail = 0
    elif rotated:
        tail = max(8, 1 << (rest - 1).bit_length()) * bits // 8
    else:
        tail = (rest * bits + 7) // 8
    return whole * block * bits // 8 + tail


class Encoded:
    """A compressed update: what Quantizer.encode returns and MeanAccumulator.add and weighted_mean take as an update.

    It describes itself: kind, seed, shapes and dtypes are part of it, and of its bytes. Equal when its bytes are.

    Attributes:
        kind: "int8", "int4", "drive", "eden", "topk" or "countsketch".
        bits, block: of the format; 0 where it has none.
        seed, nonce: of its random numbers.
        stochastic: whether integers were rounded at random.
    """

    __slots__ = (
        "_parts",
        "_sketch",
        "_structure",
        "_table",
        "_tensors",
        "bits",
        "block",
        "kind",
        "nonce",
        "seed",
        "stochastic",
    )

    def __init__(
        self,
        kind: str,
        bits: int,
        block: int,
        stochastic: bool,
        seed: int,
        nonce: int,
        structure: Any,
        tensors: list[tuple[np.dtype[Any], tuple[int, ...]]],
        parts: list[Any],
        sketch: SketchFormat | None = None,
        table: Array | None = None,
    ) -> None:
        self.kind: str = kind
        self.bits: int = bits
        self.block: int = block
        self.stochastic: bool = stochastic
        self.seed: int = seed
        self.nonce: int = nonce
        self._structure = structure
        self._tensors = tensors
        # A float tensor is (codes, scales), (indices, values) of "topk" or () of "countsketch", where all float tensors
        # are in one table; any other its array.
        self._parts = parts
        self._sketch = sketch
        self._table = table

    @property
    def nbytes(self) -> int:
        """Bytes of the compressed tensors; to_bytes adds a description and 36 bytes."""
        tensors = sum(sum(a.nbytes for a in p) if isinstance(p, tuple) else p.nbytes for p in self._parts)
        return tensors if self._table is None else tensors + self._table.nbytes

    @property
    def size(self) -> int:
        """Number of parameters. decode allocates this many: for "topk" and "countsketch" the bytes do not bound it."""
        return sum(_sketched.size_of(shape) for _, shape in self._tensors)

    def __repr__(self) -> str:
        return f"<Encoded {self.kind} of {len(self._parts)} tensors, {self.size} parameters: {self.nbytes} bytes>"

    def __eq__(self, other: object) -> bool:
        return self.to_bytes() == other.to_bytes() if isinstance(other, Encoded) else NotImplemented

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Encoded.from_bytes, (self.to_bytes(),)

    # ---- decoding ----------------------------------------------------------------------------------------------

    def decode(self, like: Any = None, *, num_threads: int | None = None) -> Any:
        """The update: containers, shapes and dtypes of the one that was encoded, as new numpy arrays.

        Args:
            like: an update whose structure, shapes and dtypes this has to have, and whose kinds of leaves (torch
                tensors, Flower's Arrays) the result gets. It is compared before anything is allocated.
            num_threads: threads to use; None for the default (see edgefast.using).

        Raises:
            StructureMismatch, ShapeMismatch, DtypeMismatch: it is not like `like`.
        """
        threads = backends.num_threads(num_threads)
        if like is None:
            arrays = [np.empty(shape, dtype) for dtype, shape in self._tensors]
            self._decode_into(arrays, list(range(len(arrays))), threads)
            return _describe.example(self._structure, arrays, [], 0)
        template = Template(like, client="like")
        order = self._order(template, "like")
        arrays = template.new_arrays()
        self._decode_into(arrays, order, threads)
        return template.build(arrays)

    def _decode_into(self, arrays: list[Array], order: list[int], threads: int) -> None:
        parts = self._parts
        if self._sketch is not None and self._table is not None:
            parts = list(parts)
            for t, (indices, values) in self._sketch.heavy_hitters(self._table, threads).items():
                parts[t] = (indices, _sketched.rounded(values, self._tensors[t][0]))
        for target, t in zip(arrays, order, strict=True):
            part = parts[t]
            if not isinstance(part, tuple):
                np.copyto(target, part)
            elif self.kind in ("topk", "countsketch"):
                target.fill(np.zeros((), target.dtype)[()])
                target.reshape(-1)[part[0]] = part[1]
            elif target.size:
                backends.kernels().quant_decode((*part, self.seed, self.nonce), self._spec(t), target, threads)

    def _spec(self, t: int) -> QuantSpec:
        return is_rotated(self.kind), self.bits, self.block, t

    def _order(self, template: Template, client: object) -> list[int]:
        """The number of each tensor of the template here, where dict keys may come in another order; None for what a
        partial template has and this does not."""
        tensors = list(range(len(self._tensors)))
        order = template._leaves(_describe.example(self._structure, tensors, [], 0), client)
        for key, expected, t in zip(template.keys, template.arrays, order, strict=True):
            if t is None:
                continue
            dtype, shape = self._tensors[t]
            if dtype != expected.dtype:
                raise DtypeMismatch.of(client, key or None, dtype_name(expected.dtype), dtype_name(dtype))
            if shape != expected.shape:
                raise ShapeMismatch.of(client, key or None, f"shape {expected.shape}", shape)
        return order

    def _blank(self) -> Any:
        """Uninitialised arrays in the containers of the update."""
        return _describe.example(self._structure, [np.empty(shape, dtype) for dtype, shape in self._tensors], [], 0)

    def _packed(self, template: Template, client: object) -> Packed:
        """The tensors in the order of a template, for add_packed; a mismatch is an error that names the client."""
        if self._sketch is not None:
            expected = "an update, or an accumulator whose template is an Encoded of kind 'countsketch'"
            raise StructureMismatch.of(client, None, expected, "a sketch")
        return Packed(self, self._order(template, client))

    def _rows(self) -> list[Array]:
        """A sketch as arrays that add up: its table, then the tensors that are not in it."""
        assert self._table is not None
        return [self._table, *(p for p in self._parts if not isinstance(p, tuple))]

    @classmethod
    def _of_rows(cls, sketch: SketchFormat, rows: Sequence[Array]) -> Encoded:
        others = iter(rows[1:])
        parts = [() if dtype.kind in "fV" else next(others) for dtype, _ in sketch.tensors]
        return cls("countsketch", 0, 0, False, sketch.seed, 0, sketch.structure, sketch.tensors, parts, sketch, rows[0])

    # ---- wire form ---------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Versioned, little-endian, with a checksum; layout in docs/compression.md."""
        meta = {
            "structure": self._structure,
            "tensors": [[_describe.code(dtype), list(shape)] for dtype, shape in self._tensors],
        }
        if self._sketch is not None:
            meta["sketch"] = self._sketch.numbers()
        text = json.dumps(meta, separators=(",", ":")).encode()
        flags = _STOCHASTIC if self.stochastic else 0
        fields = KINDS[self.kind], self.bits, self.block, flags, len(text), self.seed, self.nonce
        pieces: list[bytes] = [text]
        if self._table is not None:
            pieces.append(_describe.little(self._table))
        for part in self._parts:
            if not isinstance(part, tuple):
                pieces.append(_describe.little(part))
            elif part and self.kind == "topk":
                pieces += [_COUNT.pack(len(part[0])), _describe.little(part[0]), _describe.little(part[1])]
            elif part:
                pieces += [_describe.little(part[1]), part[0].tobytes()]
        return _FORMAT.seal(1, fields, pieces)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Encoded:
        """The compressed update of bytes made by to_bytes. Nothing is unpickled; the tensors stay in `data`.

        Raises:
            TypeError: data is not bytes-like.
            ValueError: the bytes are damaged, truncated, of an unknown version, or contradict themselves.
        """
        _, (number, bits, block, flags, length, seed, nonce), body = _FORMAT.open(data)
        text, payload = _FORMAT.split(body, length)
        try:
            kind = {n: k for k, n in KINDS.items()}[number]
            _check_format(kind, bits, block, flags)
            return cls._restore(kind, bits, block, flags, seed, nonce, json.loads(text), payload)
        except (KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError, ValueError) as error:
            raise ValueError(f"encoded update: the description does not hold together ({error})") from None

    @classmethod
    def _restore(
        cls, kind: str, bits: int, block: int, flags: int, seed: int, nonce: int, meta: Any, payload: memoryview
    ) -> Encoded:
        if set(meta) != {"structure", "tensors"} | ({"sketch"} if kind == "countsketch" else set()):
            raise ValueError("unexpected fields")
        known = {_describe.code(d): d for d in DTYPES}
        offset = 0

        def take(dtype: np.dtype[Any], size: int) -> Array:
            nonlocal offset
            stored = dtype.newbyteorder("<")
            if size * stored.itemsize > len(payload) - offset:
                raise ValueError("fewer bytes than the tensors need")
            values = np.frombuffer(payload, stored, size, offset)
            offset += values.nbytes
            return values.astype(dtype, copy=False)

        tensors: list[tuple[np.dtype[Any], tuple[int, ...]]] = []
        parts: list[Any] = []
        table: Array | None = None
        if kind == "countsketch":
            width, depth, _ = _sketched.check_numbers(meta["sketch"])
            table = take(np.dtype(np.float32), width * depth).reshape(depth, width)
            _check_finite(table)
        for name, dimensions in meta["tensors"]:
            dtype, shape = known[name], tuple(dimensions)
            if len(shape) > 32 or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
                raise ValueError(f"shape {dimensions}")
            size = _sketched.size_of(shape)
            if size >= 1 << 48:
                raise ValueError(f"shape {dimensions}")
            tensors.append((dtype, shape))
            if dtype.kind not in "fV":
                parts.append(take(dtype, size).reshape(shape))
            elif kind == "countsketch":
                parts.append(())
            elif kind == "topk":
                (count,) = _COUNT.unpack(take(np.dtype(np.uint8), _COUNT.size).tobytes())
                indices, values = take(np.dtype(np.uint32), count), take(dtype, count)
                if count and (indices[-1] >= size or not (indices[1:] > indices[:-1]).all()):
                    raise ValueError("indices")
                _check_finite(values)
                parts.append((indices, values))
            else:
                scales = take(np.dtype(np.float32), scale_count(block, size))
                codes = take(np.dtype(np.uint8), code_bytes(is_rotated(kind), bits, block, size))
                _check_scales(kind, bits, block, size, scales)
                _check_codes(kind, size, codes)
                parts.append((codes, scales))
        if offset != len(payload):
            raise ValueError(f"{len(payload) - offset} bytes too many")
        used: list[int] = []
        _describe.example(meta["structure"], parts, used, 0)
        if used != list(range(len(parts))):
            raise ValueError("structure and tensors differ")
        sketch = None
        if kind == "countsketch":
            sketch = SketchFormat(seed, *_sketched.check_numbers(meta["sketch"]), meta["structure"], tensors)
            sketch.check()
        return cls(kind, bits, block, bool(flags), seed, nonce, meta["structure"], tensors, parts, sketch, table)


def _check_format(kind: str, bits: int, block: int, flags: int) -> None:
    expected = {"int8": (8,), "int4": (4,), "drive": (1,), "eden": (1, 2, 3, 4)}.get(kind, (0,))
    blocks = (0,) if kind in ("topk", "countsketch") else (64, 128, 256, 512, 1024, 2048, 4096)
    if bits not in expected or block not in blocks or flags & ~(_STOCHASTIC if kind in ("int8", "int4") else 0):
        raise ValueError(f"{kind} of {bits} bits in blocks of {block}, flags {flags}")


def _check_finite(values: Array) -> None:
    with np.errstate(invalid="ignore"):
        if not np.isfinite(widen(values) if values.dtype == BF16 else values).all():
            raise ValueError("values that are not finite")


def _check_scales(kind: str, bits: int, block: int, size: int, scales: NDArray[np.float32]) -> None:
    """Scales no encoder writes could overflow, or cost the sums their exact products."""
    if np.signbit(scales).any() or not np.isfinite(scales).all():
        raise ValueError("scales")
    most = scales.astype(np.float64)
    if is_rotated(kind):
        most *= block * _LARGEST_CENTROID
    else:
        number = scales.view(np.uint32)
        if ((number >= 0x10000) & (number & 0xFF != 0)).any():
            raise ValueError("scales of more than 16 digits")
        most *= _MOST_LEVEL[bits]
    if (most > np.finfo(np.float32).max).any():
        raise ValueError("scales")


def _check_codes(kind: str, size: int, codes: NDArray[np.uint8]) -> None:
    if kind == "int8":
        if (codes == 0x80).any():
            raise ValueError("code -128")
    elif kind == "int4" and (((codes & 0x0F) == 0).any() or (codes < 0x10).any() or (size % 2 and codes[-1] >> 4 != 8)):
        raise ValueError("code -8, or padding")


class Packed(list[Any]):
    """An encoded update in the order of a template: a list of its arrays, None in the place of compressed tensors."""

    def __init__(self, encoded: Encoded, order: list[int]) -> None:
        parts = [encoded._parts[t] for t in order]
        super().__init__(None if isinstance(p, tuple) else p for p in parts)
        self.encoded = encoded
        self.order = order

    def format(self) -> tuple[Any, ...]:
        """What has to agree for one call of the kernel."""
        return self.encoded.kind, self.encoded.bits, self.encoded.block, self.order

    def input(self, t: int) -> QuantInput:
        codes, scales = self.encoded._parts[self.order[t]]
        return codes, scales, self.encoded.seed, self.encoded.nonce

    def spec(self, t: int) -> QuantSpec:
        return self.encoded._spec(self.order[t])


def packed_runs(models: Sequence[tuple[Any, float]]) -> list[list[tuple[Any, float]]]:
    """Consecutive updates that one call of the kernels takes, in order."""
    runs: list[list[tuple[Any, float]]] = []
    previous: Any = runs
    for model, weight in models:
        kind = model.format() if isinstance(model, Packed) else None
        if kind != previous:
            runs.append([])
            previous = kind
        runs[-1].append((model, weight))
    return runs


def add_packed(
    rows: list[Packed], weights: list[float], t: int, like: Array, fresh: bool, sums: Array, num_threads: int
) -> None:
    """Tensor t of the rows, which have one format, times the weights into float64 sums: the bits of adding what they
    decode to, arrays of the dtype of `like`."""
    kernels = backends.kernels()
    if rows[0][t] is not None:
        kernels.add_weighted([[row[t]] for row in rows], weights, False, fresh, [sums], num_threads)
    elif rows[0].encoded.kind == "topk":
        if fresh:
            sums.fill(0)
        flat = sums.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for row, weight in zip(rows, weights, strict=True):
                indices, values = row.encoded._parts[row.order[t]]
                flat[indices] += widen(values) * weight
    elif sums.size:
        kernels.quant_add([row.input(t) for row in rows], weights, rows[0].spec(t), like, fresh, sums, num_threads)
