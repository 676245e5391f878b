"""Random numbers for privacy: from the operating system, or ChaCha20 keyed by it. Never from a seedable generator."""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgefast.aggregate import _extras

__all__ = ["NOISE_TILE", "SecureRandom"]

_TILE: Final = 1 << 13  # pairs of numbers at a time: the temporaries stay in cache
NOISE_TILE: Final = 2 * _TILE
_ZEROS: Final = memoryview(bytes(1 << 16))


class SecureRandom:
    """A stream of unpredictable numbers; one a use, not shared between threads.

    ChaCha20 (RFC 8439) under a fresh 256-bit key of os.urandom where the `cryptography` package is installed, else
    os.urandom itself, which is several times slower and no less secure.
    """

    def __init__(self) -> None:
        self._stream: Any = None
        try:
            ciphers = _extras.crypto("ciphers")
        except ImportError:
            return
        algorithm = ciphers.algorithms.ChaCha20(os.urandom(32), bytes(16))
        self._stream = ciphers.Cipher(algorithm, None).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """Uniform 64-bit words."""
        return self._fill(np.empty(count, np.uint64))

    def _fill(self, out: NDArray[np.uint64]) -> NDArray[np.uint64]:
        if self._stream is None:
            out[...] = np.frombuffer(os.urandom(out.nbytes), np.uint64)
            return out
        data = out.view(np.uint8)
        for i in range(0, data.size, len(_ZEROS)):
            part = data[i : i + len(_ZEROS)]
            self._stream.update_into(_ZEROS[: part.size], part)
        return out

    def normals(self, count: int) -> NDArray[np.float64]:
        """Standard normal numbers by Box and Muller's transform, up to 9.5 in magnitude.

        64 bits make the radius and 53 the angle, so that far from 0 as well as near it there are many more outcomes
        than multiples of 2**-30: rounded to those, nothing tells how a number was made.
        """
        out = np.empty(count)
        buffer = np.empty(2 * _TILE, np.uint64)
        floats = np.empty((3, _TILE))
        for i in range(0, count, 2 * _TILE):
            part = out[i : i + 2 * _TILE]
            half = (part.size + 1) // 2
            radius, t, square = floats[:, :half]
            words = self._fill(buffer[: 2 * half])
            np.copyto(radius, words[:half], casting="unsafe")
            radius += 0.5
            radius *= 2.0**-64
            np.log(radius, out=radius)
            radius *= -2.0
            np.maximum(radius, 0.0, out=radius)
            np.sqrt(radius, out=radius)
            # cos a = (1 - t t) / (1 + t t) and sin a = 2 t / (1 + t t), t = tan(a / 2): numpy's tan is vectorised.
            np.right_shift(words[half:], np.uint64(11), out=words[half:])
            np.copyto(t, words[half:], casting="unsafe")
            t *= np.pi * 2.0**-53
            np.tan(t, out=t)
            np.multiply(t, t, out=square)
            square += 1.0
            radius /= square
            np.subtract(2.0, square, out=square)
            np.multiply(radius, square, out=part[:half])
            t *= 2.0
            rest = part.size - half
            np.multiply(radius[:rest], t[:rest], out=part[half:])
        return out

    def on_grid(self, scale: float, count: int) -> NDArray[np.float64]:
        """Normal numbers of standard deviation `scale` >= 0, rounded to integers (below 2**53, so exact)."""
        values = self.normals(count)
        values *= scale
        return np.rint(values, out=values)
