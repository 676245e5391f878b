"""Wire forms: golden files of every version, and what damaged or hostile bytes do."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefast.sketch import CountSketch, DedupFilter, FrequentDirections, RowSketch, _wire

GOLDEN = Path(__file__).parent / "golden"
HEADER = struct.Struct("<4sBBBB24s6QQ")


def integers(n: int, d: int) -> np.ndarray:
    """An input made of integers: the same everywhere, and every sum of it exact."""
    return (np.arange(n * d) * 7919 % 257).reshape(n, d) - 128.0


def row_sketch(kind: str, accumulate: Any) -> RowSketch:
    s = RowSketch(3, 8, kind=kind, nnz=4, seed=2**63 + 5, stream=77, accumulate=accumulate, fraction_bits=10)
    return s.update(integers(20, 3).astype(np.int16), row_start=2**33)


def count_sketch(dtype: Any) -> CountSketch:
    return CountSketch(2**40, 6, 3, seed=9, dtype=dtype).update(integers(1, 50)[0].astype(np.int16), start=2**39)


def frequent_directions(dtype: Any) -> FrequentDirections:
    # Fewer rows than the buffer holds: no decomposition, so no rounding.
    return FrequentDirections(4, buffer=3, dtype=dtype).partial_fit(integers(9, 5).astype(np.int16))


def dedup_filter(n_bits: int) -> DedupFilter:
    f = DedupFilter(n_bits, 2, 5, seed=3)
    f.add(integers(12, 16))
    return f


MAKE: dict[str, Callable[[], Any]] = {
    "row_sketch-v1-float32": lambda: row_sketch("sparse_stack", "float32"),
    "row_sketch-v1-float64": lambda: row_sketch("countsketch", "float64"),
    "row_sketch-v1-int64": lambda: row_sketch("rademacher", "int64"),
    "row_sketch-v1-empty": lambda: RowSketch(1, 1, accumulate="int64"),
    "count_sketch-v1-float32": lambda: count_sketch("float32"),
    "count_sketch-v1-float64": lambda: count_sketch("float64"),
    "count_sketch-v1-int64": lambda: count_sketch("int64"),
    "frequent_directions-v1-float32": lambda: frequent_directions(np.float32),
    "frequent_directions-v1-float64": lambda: frequent_directions(np.float64),
    "frequent_directions-v1-empty": lambda: FrequentDirections(7),
    "dedup_filter-v1": lambda: dedup_filter(256),
    "dedup_filter-v1-odd": lambda: dedup_filter(21),
    "dedup_filter-v1-empty": lambda: DedupFilter(),
}


@pytest.mark.parametrize("name", MAKE)
def test_golden_files_are_read_and_written_for_ever(name: str) -> None:
    made = MAKE[name]()
    golden = (GOLDEN / f"{name}.bin").read_bytes()
    assert made.to_bytes() == golden
    read = type(made).from_bytes(golden)
    assert read == made
    assert read.to_bytes() == golden
    assert repr(read) == repr(made)


def test_the_layout_is_the_documented_one() -> None:
    s = row_sketch("rademacher", "int64")
    magic, version, family, dtype, flags, operator, *rest = HEADER.unpack_from(s.to_bytes())
    assert (magic, version, family, dtype, flags) == (b"EFSK", 1, 1, 3, 10)
    assert operator == s.operator.to_bytes()
    assert rest[:5] == [3, 77, 2**33, 2**33 + 20, 20]
    assert rest[6] == 8 * 3 * 8
    assert len(s.to_bytes()) == HEADER.size + rest[6] + 4
    assert struct.unpack("<I", s.to_bytes()[-4:])[0] == zlib.crc32(s.to_bytes()[:-4])
    s *= -1
    t = RowSketch(3, 8, kind="rademacher", seed=2**63 + 5, accumulate="int64", fraction_bits=10)
    t -= s
    assert RowSketch.from_bytes(t.to_bytes()).n_seen == -20


def survives(cls: type[Any], raw: bytes) -> None:
    """Bytes are an object that writes them again, or a ValueError; memory follows what came."""
    tracemalloc.start()
    try:
        made = cls.from_bytes(raw)
    except ValueError:
        pass
    else:
        assert made.to_bytes() == raw
        # Whatever passed can be used.
        made.merge(made.copy(), same_rows=True) if cls is RowSketch and made.accumulate != "int64" else repr(made)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 40 * len(raw) + (1 << 17)


def with_checksum(raw: bytes) -> bytes:
    return raw[:-4] + struct.pack("<I", zlib.crc32(raw[:-4]))


@pytest.mark.parametrize("name", MAKE)
def test_truncated_and_padded_bytes(name: str) -> None:
    made = MAKE[name]()
    raw = made.to_bytes()
    for size in range(len(raw)):
        with pytest.raises(ValueError, match="data: "):
            type(made).from_bytes(raw[:size])
    with pytest.raises(ValueError, match="bytes of payload"):
        type(made).from_bytes(raw + b"\0")
    for kind in (bytearray, memoryview):
        assert type(made).from_bytes(kind(raw)) == made
    with pytest.raises(TypeError, match="data: expected a bytes-like object, got str"):
        type(made).from_bytes(raw.hex())


@pytest.mark.parametrize("name", MAKE)
def test_every_flipped_bit_is_noticed(name: str) -> None:
    made = MAKE[name]()
    raw = made.to_bytes()
    for byte in range(len(raw)):
        for bit in (0, 3, 7):
            damaged = bytearray(raw)
            damaged[byte] ^= 1 << bit
            with pytest.raises(ValueError, match="data: "):
                type(made).from_bytes(bytes(damaged))


_HOSTILE = st.sampled_from([0, 1, 2, 7, 8, 255, 2**24, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1])


@given(name=st.sampled_from(sorted(MAKE)), field=st.integers(0, 6), value=_HOSTILE | st.integers(0, 2**64 - 1))
@settings(max_examples=300)
def test_hostile_counts_with_a_good_checksum(name: str, field: int, value: int) -> None:
    made = MAKE[name]()
    raw = bytearray(made.to_bytes())
    struct.pack_into("<Q", raw, 32 + 8 * field, value)
    survives(type(made), with_checksum(bytes(raw)))


@given(
    name=st.sampled_from(sorted(MAKE)),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8),
)
@settings(max_examples=400)
def test_hostile_bytes_with_a_good_checksum(name: str, changes: list[tuple[int, int]]) -> None:
    made = MAKE[name]()
    raw = bytearray(made.to_bytes())
    for position, value in changes:
        raw[position % (len(raw) - 4)] = value
    survives(type(made), with_checksum(bytes(raw)))


@given(data=st.binary(max_size=300))
def test_noise(data: bytes) -> None:
    for cls in (RowSketch, CountSketch, FrequentDirections, DedupFilter):
        survives(cls, data)
        survives(cls, b"EFSK\x01" + data)


def test_one_family_is_not_another() -> None:
    raw = count_sketch("float32").to_bytes()
    with pytest.raises(ValueError, match="data: expected a RowSketch, got CountSketch"):
        RowSketch.from_bytes(raw)
    damaged = bytearray(raw)
    damaged[5] = 9
    with pytest.raises(ValueError, match="data: expected a CountSketch, got family 9"):
        CountSketch.from_bytes(with_checksum(bytes(damaged)))
    damaged = bytearray(raw)
    damaged[4] = 2
    with pytest.raises(ValueError, match="data: expected version 1, got 2"):
        CountSketch.from_bytes(with_checksum(bytes(damaged)))
    assert _wire.unpack(raw, _wire.COUNT_SKETCH).dtype == np.float32


if __name__ == "__main__":  # writes the golden files of a new version
    for name, make in MAKE.items():
        path = GOLDEN / f"{name}.bin"
        if not path.exists():
            path.write_bytes(make().to_bytes())


@pytest.mark.parametrize("name", ["frequent_directions-v1-float32", "dedup_filter-v1"])
def test_counts_that_leave_no_room_to_count(name: str) -> None:
    made = MAKE[name]()
    raw = bytearray(made.to_bytes()[:-4])
    # n_seen, the fourth count of both.
    struct.pack_into("<Q", raw, HEADER.size - 8 - 8 * 3, 2**64 - 1)
    with pytest.raises(ValueError, match="data: n_seen: expected an integer from 0 to 9223372036854775807"):
        type(made).from_bytes(bytes(raw) + struct.pack("<I", zlib.crc32(raw)))
