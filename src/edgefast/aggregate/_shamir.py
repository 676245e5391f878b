"""Shamir's secret sharing of 32-byte secrets over the integers modulo 2**256 + 297.

Python's integers do not take constant time: docs/privacy.md names that among the side channels.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

__all__ = ["SHARE_BYTES", "coefficients", "combine", "split"]

#: The smallest prime that exceeds every 32-byte number.
PRIME: Final = 2**256 + 297
SHARE_BYTES: Final = 33


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Shares for the points 1 to count; any `threshold` of them give the secret, fewer tell nothing about it."""
    coefficients = [int.from_bytes(secret, "little"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    shares = []
    for x in range(1, count + 1):
        y = 0
        for c in reversed(coefficients):
            y = (y * x + c) % PRIME
        shares.append(y.to_bytes(SHARE_BYTES, "little"))
    return shares


def coefficients(points: Sequence[int]) -> list[int]:
    """Lagrange's, at 0, of distinct points."""
    found = []
    for i in points:
        top = bottom = 1
        for j in points:
            if j != i:
                top = top * j % PRIME
                bottom = bottom * (j - i) % PRIME
        found.append(top * pow(bottom, -1, PRIME) % PRIME)
    return found


def combine(shares: Sequence[bytes], factors: Sequence[int]) -> bytes:
    """The secret of as many shares as the threshold, with the coefficients of their points.

    Raises:
        ValueError: a share is no number modulo the prime, or together they give no 32-byte secret.
    """
    total = 0
    for share, factor in zip(shares, factors, strict=True):
        y = int.from_bytes(share, "little")
        if len(share) != SHARE_BYTES or y >= PRIME:
            raise ValueError("share: expected a number modulo 2**256 + 297")
        total += y * factor
    total %= PRIME
    if total >= 1 << 256:
        raise ValueError("shares: they do not belong together")
    return total.to_bytes(32, "little")
