"""Random numbers for privacy: from the operating system, or ChaCha20 keyed by it. Never from a seedable generator."""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgefast.aggregate import _extras

__all__ = ["SecureRandom"]

_TILE: Final = 1 << 15


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
        data = os.urandom(8 * count) if self._stream is None else self._stream.update(bytes(8 * count))
        return np.frombuffer(data, np.uint64)

    def normals(self, count: int) -> NDArray[np.float64]:
        """Standard normal numbers by Box and Muller's transform, up to 9.5 in magnitude.

        64 bits make the radius and 53 the angle, so that far from 0 as well as near it there are many more outcomes
        than multiples of 2**-30: rounded to those, nothing tells how a number was made.
        """
        out = np.empty(count)
        for i in range(0, count, 2 * _TILE):
            part = out[i : i + 2 * _TILE]
            half = (part.size + 1) // 2
            words = self.words(2 * half)
            radius = words[:half].astype(np.float64)
            radius += 0.5
            radius *= 2.0**-64
            np.log(radius, out=radius)
            radius *= -2.0
            np.maximum(radius, 0.0, out=radius)
            np.sqrt(radius, out=radius)
            angle = (words[half:] >> np.uint64(11)).astype(np.float64)
            angle *= 2.0 * np.pi * 2.0**-53
            np.multiply(radius, np.cos(angle), out=part[:half])
            rest = part.size - half
            np.multiply(radius[:rest], np.sin(angle[:rest]), out=part[half:])
        return out

    def on_grid(self, scale: float, count: int) -> NDArray[np.float64]:
        """Normal numbers of standard deviation `scale` >= 0, rounded to integers (below 2**53, so exact)."""
        values = self.normals(count)
        values *= scale
        return np.rint(values, out=values)
