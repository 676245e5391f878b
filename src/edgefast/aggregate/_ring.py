"""Vectors of integers modulo 2**32 or 2**64: updates in fixed point, and masks."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from edgefast import backends
from edgefast.aggregate import _describe, _extras, _policy
from edgefast.aggregate._sketched import size_of
from edgefast.aggregate._template import DTYPES, Template, dtype_name
from edgefast.aggregate.errors import DtypeMismatch, UpdateError
from edgefast.aggregate.mean import nonfinite_error
from edgefast.backends.numpy.elements import round_into, tiles, widen
from edgefast.backends.table import Array

__all__ = ["FixedPoint", "add_masks"]

_TILE_BYTES: Final = 1 << 17  # of keystream: both it and its part of the vector stay in cache
_PARALLEL_BYTES: Final = 1 << 20
_ZEROS: Final = memoryview(bytes(_TILE_BYTES))


class FixedPoint(NamedTuple):
    """Updates as integers: coordinate x is round(x / 2**exponent), a value of -limit to limit.

    The ring vector is all tensors one after the other; with max_weight > 1 every value times the client's weight, and
    the weight itself at the end.
    """

    bits: int
    exponent: int
    limit: float
    clients: int
    max_weight: int
    structure: Any
    tensors: list[tuple[np.dtype[Any], tuple[int, ...]]]

    @classmethod
    def fitting(cls, template: Template, bits: int, limit: float, clients: int, max_weight: int) -> FixedPoint:
        """The finest grid on which the sum of all clients cannot overflow.

        Raises:
            DtypeMismatch: a tensor that is not of floats.
            ValueError: not even one level is left.
        """
        for key, a in zip(template.keys, template.arrays, strict=True):
            if not _policy.is_float(a):
                raise DtypeMismatch.of("template", key or None, "floating-point tensors", dtype_name(a.dtype))
        room = (2 ** (bits - 1) - 1) // (clients * max_weight)
        if room < 1:
            raise ValueError(f"bits: expected room for {clients} clients of weight {max_weight}, got {bits} bits")
        # Levels stay within a float64's integers, whatever the ring.
        exponent = math.frexp(limit)[1] - (min(room, 2**52).bit_length() - 1)
        structure, tensors = _describe.shapes(template)
        found = cls(bits, exponent, limit, clients, max_weight, structure, tensors)
        while found.levels * clients * max_weight > 2 ** (bits - 1) - 1:
            found = found._replace(exponent=found.exponent + 1)
        return found

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"<u{self.bits // 8}")

    @property
    def levels(self) -> int:
        """Largest magnitude of a coordinate."""
        return int(np.rint(math.ldexp(self.limit, -self.exponent)))

    @property
    def length(self) -> int:
        return sum(size_of(shape) for _, shape in self.tensors) + (self.max_weight > 1)

    def describe(self) -> dict[str, Any]:
        return {
            "bits": self.bits,
            "exponent": self.exponent,
            "limit": self.limit.hex(),
            "clients": self.clients,
            "max_weight": self.max_weight,
            "structure": self.structure,
            "tensors": [[_describe.code(dtype), list(shape)] for dtype, shape in self.tensors],
        }

    @classmethod
    def restore(cls, meta: Any) -> FixedPoint:
        """Of what describe() gave.

        Raises:
            ValueError, KeyError, TypeError: it does not hold together, or sums could overflow.
        """
        known = {_describe.code(d): d for d in DTYPES if d.kind in "fV"}
        tensors = []
        for name, dimensions in meta["tensors"]:
            shape = tuple(dimensions)
            if len(shape) > 32 or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
                raise ValueError(f"shape {dimensions}")
            tensors.append((known[name], shape))
        used: list[int] = []
        _describe.example(meta["structure"], tensors, used, 0)
        if used != list(range(len(tensors))):
            raise ValueError("structure and tensors differ")
        numbers = [meta[name] for name in ("bits", "exponent", "clients", "max_weight")]
        if not all(type(n) is int for n in numbers):
            raise ValueError(f"numbers {numbers}")
        bits, exponent, clients, max_weight = numbers
        limit = float.fromhex(meta["limit"])
        if bits not in (32, 64) or not 1 <= clients < 1 << 32 or not 1 <= max_weight < 1 << 62:
            raise ValueError(f"numbers {numbers}")
        if not (0 < limit < math.inf and -1200 <= exponent <= 1023 and math.ldexp(limit, -exponent) < 2.0**53):
            raise ValueError(f"limit {limit}, exponent {exponent}")
        found = cls(bits, exponent, limit, clients, max_weight, meta["structure"], tensors)
        if found.levels * clients * max_weight > 2 ** (bits - 1) - 1 or found.length >= 1 << 48:
            raise ValueError("no room for the sum")
        return found

    def template(self) -> Template:
        """Shapes and dtypes without the memory: what a stranger says is compared before anything is allocated."""
        blanks = [np.zeros(0, dtype) for dtype, _ in self.tensors]
        template = Template(_describe.example(self.structure, blanks, [], 0))
        template.arrays = [np.broadcast_to(np.zeros((), dtype), shape) for dtype, shape in self.tensors]
        return template

    def encode(self, update: Any, weight: int, saturate: bool, client: object) -> Array:
        """The ring vector of an update.

        Raises:
            StructureMismatch, ShapeMismatch, DtypeMismatch: the update is not like the template.
            NonFiniteUpdate: NaN or infinity.
            UpdateError: a value beyond the limit, without `saturate`.
        """
        template = self.template()
        arrays = template.flatten(update, client)
        if not backends.kernels().all_finite(arrays, backends.num_threads(None)):
            raise nonfinite_error(arrays, template.keys, client)
        out = np.empty(self.length, self.dtype)
        signed = out.view(f"<i{self.bits // 8}")
        scale, levels = 2.0**-self.exponent if self.exponent > -1000 else None, self.levels
        begin = 0
        for key, array in zip(template.keys, arrays, strict=True):
            flat = array.reshape(-1)
            for part in tiles(flat.size):
                values = widen(flat[part])
                with np.errstate(over="ignore"):
                    values = values * scale if scale is not None else np.ldexp(values, -self.exponent)
                np.rint(values, out=values)
                if not saturate and (np.abs(values) > levels).any():
                    most = float(np.abs(widen(flat)).max())
                    message = f"magnitudes of at most {self.limit}"
                    raise UpdateError.of(client, key or None, message, most)
                np.clip(values, -levels, levels, out=values)
                if weight == 1:
                    signed[begin + part.start : begin + part.stop] = values
                else:
                    signed[begin + part.start : begin + part.stop] = values.astype(np.int64) * weight
            begin += flat.size
        if self.max_weight > 1:
            out[-1] = weight
        return out

    def decode(self, signed: Array, weight: int, like: Template) -> Any:
        """The mean of updates whose ring vectors add up to the integers `signed`, and their weights to `weight`."""
        arrays, begin = like.new_arrays(), 0
        for target in arrays:
            flat = target.reshape(-1)
            for part in tiles(flat.size):
                values = signed[begin + part.start : begin + part.stop].astype(np.float64) / weight
                round_into(flat[part], np.ldexp(values, self.exponent))
            begin += flat.size
        return like.build(arrays)


def add_masks(vector: Array, keys: Sequence[tuple[bytes, int]], num_threads: int | None = None) -> None:
    """Adds, for every (key, sign), sign times the expansion of the 32-byte key to the vector, in its ring.

    The expansion is the keystream of ChaCha20 (RFC 8439, nonce 0) as little-endian words. The vector is processed in
    pieces of cache size, all keys for each; pieces are shared among threads, which seek in the keystreams.
    """
    if not keys or not vector.size:
        return
    ciphers = _extras.crypto("ciphers")
    chacha, cipher = ciphers.algorithms.ChaCha20, ciphers.Cipher
    width = vector.dtype.itemsize
    step = _TILE_BYTES // width

    def work(first: int, last: int) -> None:
        counter = (first * width // 64).to_bytes(8, "little") + bytes(8)
        streams = [(cipher(chacha(key, counter), None).encryptor(), sign) for key, sign in keys]
        buffer = np.empty(_TILE_BYTES, np.uint8)
        for i in range(first, last, step):
            part = vector[i : min(i + step, last)]
            mask = buffer[: part.nbytes]
            words = mask.view(vector.dtype)
            for stream, sign in streams:
                stream.update_into(_ZEROS[: part.nbytes], mask)
                (np.add if sign > 0 else np.subtract)(part, words, out=part)

    enough = min(vector.nbytes * len(keys) // _PARALLEL_BYTES, -(-vector.size // step))
    threads = min(backends.num_threads(num_threads), enough)
    if threads < 2:
        work(0, vector.size)
        return
    share = -(-vector.size // (threads * step)) * step
    failures: list[BaseException] = []

    def guarded(first: int) -> None:
        try:
            work(first, min(first + share, vector.size))
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=guarded, args=(first,)) for first in range(share, vector.size, share)]
    for worker in workers:
        worker.start()
    guarded(0)
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
