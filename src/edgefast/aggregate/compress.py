"""Quantizer: model updates in 1 to 8 bits a parameter, their largest entries, or a sketch of those; ErrorFeedback sends
the rest later."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from edgefast import backends
from edgefast.aggregate import _describe, _policy
from edgefast.aggregate._sketched import SketchFormat
from edgefast.aggregate._template import Template
from edgefast.aggregate.encoded import KINDS, Encoded, code_bytes, is_rotated, scale_count
from edgefast.aggregate.errors import DtypeMismatch, NonFiniteUpdate, ShapeMismatch, StructureMismatch
from edgefast.aggregate.mean import nonfinite_error
from edgefast.backends.numpy.elements import round_into, widen
from edgefast.backends.table import Array
from edgefast.sketch._checks import integer

__all__ = ["ErrorFeedback", "Kind", "Quantizer", "Rounding"]

Kind = Literal["int8", "int4", "eden", "drive", "topk", "countsketch"]
Rounding = Literal["nearest", "stochastic"]
_BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)


class Quantizer:
    """Compresses model updates; csrc/aggregate/quantize.hpp and docs/compression.md have formats and error bounds.

    Float tensors are compressed one by one, each value read as a float32 (so float64 loses to that precision first);
    integer and bool tensors are kept as they are. Stateless: the same arguments give the same bytes, on every backend.

    Args:
        kind: "int8" or "int4": integers times one scale a block. "eden": 1 to 4 bits a parameter, randomly rotated
            blocks on Lloyd-Max centroids; "drive" is "eden" with 1 bit. "topk": the largest entries, exact.
            "countsketch": all float tensors in depth * width float32 counters, which add up; decoding estimates the
            largest entries (see edgefast.sketch.CountSketch and FetchSGD).
        bits: of "eden", 1 to 4. Others have their own.
        block: coordinates that share a scale, a power of two from 64 to 4096; None for 1024 (integers) or 4096
            (rotated).
        seed: key of the random numbers, 0 to 2**64 - 1.
        rounding: of integers. "nearest", or "stochastic": unbiased, at twice the largest error.
        fraction: of the entries "topk" keeps, and decoding "countsketch" gives (at least one), over all float tensors
            together, 0 < fraction <= 1.
        width, depth: counters in a row, and rows, of "countsketch", which needs a width. Sketches of one seed, width
            and depth add up, whatever the nonce.
        num_threads: threads to use; None for the default (see edgefast.using).

    Raises:
        ValueError, TypeError: an argument out of range, or of another type.

    References:
        Vargaftik et al., "DRIVE: One-bit distributed mean estimation", NeurIPS 2021; "EDEN: Communication-efficient and
        robust distributed mean estimation for federated learning", ICML 2022. Alistarh et al., "QSGD", NeurIPS 2017.
        Rothchild et al., "FetchSGD: communication-efficient federated learning with sketching", ICML 2020.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import MeanAccumulator, Quantizer
        >>> update = {"w": np.array([1.0, -2.0, 0.5], np.float32)}
        >>> packed = Quantizer("int8").encode(update)
        >>> acc = MeanAccumulator(update)
        >>> acc.add(packed)
        >>> np.abs(acc.result()["w"] - update["w"]).max() <= 1 / 127
        np.True_
    """

    def __init__(
        self,
        kind: Kind,
        *,
        bits: int = 4,
        block: int | None = None,
        seed: int = 0,
        rounding: Rounding = "nearest",
        fraction: float = 0.01,
        width: int | None = None,
        depth: int = 5,
        num_threads: int | None = None,
    ) -> None:
        _policy.check_choice(kind, "kind", tuple(KINDS))
        _policy.check_choice(rounding, "rounding", ("nearest", "stochastic"))
        if type(bits) is not int or not 1 <= bits <= 4:
            raise ValueError(f"bits: expected 1 to 4, got {bits!r}")
        if block is not None and (type(block) is not int or block not in _BLOCKS):
            raise ValueError(f"block: expected one of {', '.join(map(str, _BLOCKS))}, got {block!r}")
        if not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
            raise ValueError(f"fraction: expected more than 0 and at most 1, got {fraction!r}")
        if rounding == "stochastic" and kind not in ("int8", "int4"):
            raise ValueError(f"rounding: expected 'nearest' with kind={kind!r}, got 'stochastic'")
        if kind == "countsketch":
            if width is None:
                raise ValueError("width: expected a number of counters with kind='countsketch', got None")
            depth = integer(depth, "depth", 1, 255)
            width = integer(width, "width", 1, (2**31 - 1) // depth)
        elif width is not None:
            raise ValueError(f"width: expected None with kind={kind!r}, got {width!r}")
        if num_threads is not None:
            backends.num_threads(num_threads)
        self.kind: Kind = kind
        self.width: int | None = width
        self.depth: int = depth
        self.seed: int = _word(seed, "seed")
        self.rounding: Rounding = rounding
        self.fraction: float = float(fraction)
        self.bits: int = {"int8": 8, "int4": 4, "drive": 1, "eden": bits}.get(kind, 0)
        blocks = kind not in ("topk", "countsketch")
        self.block: int = (block or (4096 if is_rotated(kind) else 1024)) if blocks else 0
        self._num_threads = num_threads

    def __repr__(self) -> str:
        arguments = "".join(f"{name}={value!r}, " for name, value in self._arguments())
        return f"Quantizer({self.kind!r}, {arguments}seed={self.seed})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Quantizer):
            return NotImplemented
        return repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def _arguments(self) -> list[tuple[str, Any]]:
        """Those that count for the kind."""
        names = {"eden": ("bits", "block"), "drive": ("block",), "topk": ("fraction",)}
        names["countsketch"] = ("width", "depth", "fraction")
        return [(name, getattr(self, name)) for name in names.get(self.kind, ("block", "rounding"))]

    def encode(self, update: Any, *, nonce: int = 0) -> Encoded:
        """The compressed update.

        Args:
            update: an update (see weighted_mean); dict keys have to be strings. It is not changed, and not kept.
            nonce: tells the random numbers of one client and round from those of others, 0 to 2**64 - 1. Rotations and
                rounding are independent, so that errors average out, only where seed or nonce differ.

        Raises:
            NonFiniteUpdate: NaN, infinity, or a magnitude the format does not hold: beyond float32, for rotated kinds
                2**108 and more, for "countsketch" those whose sums exceed float32.
            DtypeMismatch: something that is no array of a supported dtype.
            TypeError: a dict key is no string.
            ValueError: the nonce is out of range; "topk" of a tensor of 2**32 entries and more.
        """
        nonce = _word(nonce, "nonce")
        template = Template(update, client="update")
        structure, tensors = _describe.shapes(template)
        floats = [t for t, a in enumerate(template.arrays) if _policy.is_float(a)]
        parts: list[Any] = [() if _policy.is_float(a) else a.copy() for a in template.arrays]
        if self.width is not None:
            return self._sketched(template, floats, nonce, structure, tensors, parts)
        if self.kind == "topk":
            chosen = self._select([template.arrays[t] for t in floats], [template.keys[t] for t in floats])
        else:
            chosen = [self._quantise(template, t, nonce) for t in floats]
        for t, part in zip(floats, chosen, strict=True):
            parts[t] = part
        stochastic = self.rounding == "stochastic"
        return Encoded(self.kind, self.bits, self.block, stochastic, self.seed, nonce, structure, tensors, parts)

    def decode(self, encoded: Encoded, like: Any = None) -> Any:
        """The update of an Encoded, which may come from any Quantizer: Encoded.decode(like)."""
        if not isinstance(encoded, Encoded):
            raise TypeError(f"encoded: expected an Encoded, got {type(encoded).__name__}")
        return encoded.decode(like, num_threads=self._num_threads)

    def _quantise(self, template: Template, t: int, nonce: int) -> tuple[Array, Array]:
        array = template.arrays[t]
        rotated = is_rotated(self.kind)
        codes = np.empty(code_bytes(rotated, self.bits, self.block, array.size), np.uint8)
        scales = np.empty(scale_count(self.block, array.size), np.float32)
        if array.size == 0:
            return codes, scales
        spec = (rotated, self.bits, self.block, t)
        threads = backends.num_threads(self._num_threads)
        fine = backends.kernels().quant_encode(
            array, spec, self.rounding == "stochastic", self.seed, nonce, codes, scales, threads
        )
        if not fine:
            key = template.keys[t]
            if backends.kernels().all_finite([array], threads):
                bound = "2**108" if rotated else "the largest float32"
                most = np.abs(widen(array)).max()
                raise NonFiniteUpdate.of("update", key or None, f"magnitudes below {bound}", most)
            raise nonfinite_error([array], [key], "update")
        return codes, scales

    def _sketched(
        self, template: Template, floats: list[int], nonce: int, structure: Any, tensors: list[Any], parts: list[Any]
    ) -> Encoded:
        arrays, keys = [template.arrays[t] for t in floats], [template.keys[t] for t in floats]
        if not backends.kernels().all_finite(arrays, backends.num_threads(self._num_threads)):
            raise nonfinite_error(arrays, keys, "update")
        total = sum(a.size for a in arrays)
        count = min(total, max(1, math.ceil(self.fraction * total)))
        assert self.width is not None
        sketch = SketchFormat(self.seed, self.width, self.depth, count, structure, tensors)
        table = sketch.table_of(arrays, self._num_threads)
        if not np.isfinite(table).all():
            most = max(float(np.abs(widen(a)).max(initial=0)) for a in arrays)
            raise NonFiniteUpdate.of("update", None, "magnitudes whose sums a float32 holds", most)
        return Encoded(self.kind, 0, 0, False, self.seed, nonce, structure, tensors, parts, sketch, table)

    def _select(self, arrays: list[Array], keys: list[str]) -> list[tuple[Array, Array]]:
        """Indices and values of the largest entries of all arrays together; of equal ones the first."""
        if not backends.kernels().all_finite(arrays, backends.num_threads(self._num_threads)):
            raise nonfinite_error(arrays, keys, "update")
        for key, a in zip(keys, arrays, strict=True):
            if a.size >= 1 << 32:
                raise ValueError(f"update, key {key!r}: expected fewer than 2**32 entries for 'topk', got {a.size}")
        total = sum(a.size for a in arrays)
        if total == 0:
            return [(np.empty(0, np.uint32), np.empty(0, a.dtype)) for a in arrays]
        wide = np.float64 if any(a.dtype == np.float64 for a in arrays) else np.float32
        sizes = np.concatenate([np.abs(widen(a.reshape(-1), wide)) for a in arrays])
        count = min(total, max(1, math.ceil(self.fraction * total)))
        least = np.partition(sizes, total - count)[total - count]
        above = sizes > least
        ties = np.flatnonzero(sizes == least)[: count - int(above.sum())]
        above[ties] = True
        found = np.flatnonzero(above)
        result, begin = [], 0
        for a in arrays:
            low, high = np.searchsorted(found, (begin, begin + a.size))
            indices = (found[low:high] - begin).astype(np.uint32)
            result.append((indices, a.reshape(-1)[indices]))
            begin += a.size
        return result


class ErrorFeedback:
    """What compression lost, added to the next update: e += u; send C(e); e -= decode. One a client; not thread-safe.

    The residual has the updates' float tensors as float32 (float64 for float64); other tensors go through unchanged.
    Nonces count the calls, from `nonce` on: clients of one seed need starting points far apart, say client * 2**32.

    References:
        Karimireddy et al., "Error feedback fixes SignSGD and other gradient compression schemes", ICML 2019.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import ErrorFeedback, Quantizer
        >>> feedback = ErrorFeedback(Quantizer("topk", fraction=0.5))
        >>> feedback.encode(np.array([3.0, 2.0])).decode()
        array([3., 0.])
        >>> feedback.encode(np.array([3.0, 2.0])).decode()
        array([0., 4.])
    """

    def __init__(self, quantizer: Quantizer, *, nonce: int = 0) -> None:
        if not isinstance(quantizer, Quantizer):
            raise TypeError(f"quantizer: expected a Quantizer, got {type(quantizer).__name__}")
        self.quantizer: Quantizer = quantizer
        self._nonce = _word(nonce, "nonce")
        self._template: Template | None = None
        self._residual: list[Array | None] = []

    def __repr__(self) -> str:
        return f"<ErrorFeedback of {self.quantizer!r}: next nonce {self._nonce}>"

    def encode(self, update: Any) -> Encoded:
        """The compressed sum of this update and the residual. On an error the residual stays as it was.

        Raises:
            StructureMismatch, ShapeMismatch, DtypeMismatch: the update differs from the first one.
            And what Quantizer.encode raises.
        """
        if self._template is None:
            template = Template(update, client="update")
            arrays = template.arrays
            residual: list[Array | None] = [
                np.zeros(a.shape, np.float64 if a.dtype == np.float64 else np.float32) if _policy.is_float(a) else None
                for a in arrays
            ]
        else:
            template, residual = self._template, self._residual
            arrays = template.flatten(update, "update")
        corrected: list[Array] = []
        wanted: list[Array | None] = []
        for a, e in zip(arrays, residual, strict=True):
            if e is None:
                corrected.append(a)
                wanted.append(None)
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                exact = e + widen(a, e.dtype.type)
                rounded = np.empty(a.shape, a.dtype)
                round_into(rounded, exact)
            wanted.append(exact)
            corrected.append(rounded)
        example = _describe.example(_describe.plain(template.structure), corrected, [], 0)
        encoded = self.quantizer.encode(example, nonce=self._nonce)
        decoded = Template(encoded.decode()).arrays
        self._residual = [
            None if w is None else w - widen(d, w.dtype.type) for w, d in zip(wanted, decoded, strict=True)
        ]
        self._nonce = (self._nonce + 1) % (1 << 64)
        if self._template is None:
            self._template = _shapes_only(template)
        return encoded

    def residual(self) -> dict[str, Array]:
        """What is owed, by key of the flat template ("encoder.weight", "[3]"), as arrays that are not to be changed;
        empty before the first call."""
        if self._template is None:
            return {}
        pairs = zip(self._template.keys, self._residual, strict=True)
        return {key: e for key, e in pairs if e is not None}

    def load_residual(self, residual: Mapping[str, Array], update: Any) -> None:
        """Go on where residual() was taken, in another process perhaps. On an error nothing has changed.

        Args:
            residual: as residual() gave it.
            update: an update of the structure it belongs to.

        Raises:
            StructureMismatch, ShapeMismatch, DtypeMismatch: it belongs to an update of another structure.
        """
        template = Template(update, client="update")
        found: list[Array | None] = []
        for key, a in zip(template.keys, template.arrays, strict=True):
            if not _policy.is_float(a):
                found.append(None)
                continue
            if key not in residual:
                raise StructureMismatch.of("residual", key or None, "an array", "none")
            e = np.asarray(residual[key])
            wide = np.dtype(np.float64 if a.dtype == np.float64 else np.float32)
            if e.dtype != wide:
                raise DtypeMismatch.of("residual", key or None, wide, e.dtype)
            if e.shape != a.shape:
                raise ShapeMismatch.of("residual", key or None, f"shape {a.shape}", e.shape)
            found.append(e.copy())
        floats = {k for k, e in zip(template.keys, found, strict=True) if e is not None}
        if extra := set(residual) - floats:
            raise StructureMismatch.of("residual", None, "the update's float tensors", f"also {sorted(extra)[:5]}")
        self._residual = found
        self._template = _shapes_only(template)

    def reset(self) -> None:
        """Forget the residual: the next update starts anew, and may have another structure."""
        self._template = None
        self._residual = []


def _shapes_only(template: Template) -> Template:
    """A template of the same structure that keeps nobody's arrays alive."""
    blanks = [np.empty(a.shape, a.dtype) for a in template.arrays]
    return Template(_describe.example(_describe.plain(template.structure), blanks, [], 0))


def _word(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if not 0 <= int(value) < 1 << 64:
        raise ValueError(f"{name}: expected 0 to 2**64 - 1, got {value}")
    return int(value)
