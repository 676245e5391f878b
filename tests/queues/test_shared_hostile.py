"""Segments that are damaged, hostile, foreign or left over: an error each time, never a crash or a hang."""

from __future__ import annotations

import contextlib
import gzip
import mmap
import os
import random
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import edgefast.queues
from edgefast.queues import CorruptedError, Empty, ShutDown, VersionMismatch

if edgefast.queues.IMPLEMENTATION != "native" or sys.platform != "linux":
    pytest.skip("SharedQueue needs the native backend and Linux", allow_module_level=True)

from edgefast.queues import SharedQueue, cleanup, list_shared

Make = Callable[..., Any]
UID = os.geteuid()
OPTIONS: list[dict[str, Any]] = [{"itemsize": 24}, {"itemsize": 200, "serializer": "pickle"}, {"dtype": "i8"}]


def path_of(name: str) -> Path:
    return Path(f"/dev/shm/edgefast-{UID}-{name}")


def filled(make: Make, options: dict[str, Any]) -> Any:
    q = make(5, max_participants=4, high_watermark=4, **options)
    q.put_many([3, 4, 5] if "dtype" in options else [b"one", b"two", b"three"])
    q.get()
    return q


@pytest.fixture
def planted() -> Iterator[Callable[[bytes], str]]:
    """Writes a segment file; gives its name."""
    made: list[str] = []

    def plant(content: bytes) -> str:
        made.append(f"planted-{os.getpid()}-{len(made)}")
        path_of(made[-1]).write_bytes(content)
        return made[-1]

    yield plant
    for name in made:
        path_of(name).unlink(missing_ok=True)


def attempt(name: str) -> None:
    """Everything a reader and a writer would do; whatever is wrong must show as one of these errors."""
    with (
        contextlib.suppress(CorruptedError, VersionMismatch, FileNotFoundError, RuntimeError, PermissionError),
        contextlib.closing(SharedQueue.attach(name)) as q,
    ):
        value = 1 if q.dtype is not None else b"x"
        calls: list[Callable[[], Any]] = [
            lambda: q.get_many(3, block=False),
            q.get_nowait,
            lambda: q.put(value, timeout=0.001),
            lambda: q.get(timeout=0.001),
            lambda: q.put_many([value] * 3, block=False),
            lambda: q.view(2, timeout=0).__enter__(),
            lambda: q.reserve(2, timeout=0).__enter__(),
            q.statistics,
            q.participants,
            lambda: repr(q),
            q.qsize,
            q.recover,
            q.clear,
            q.drain,
            q.shutdown,
        ]
        for call in calls:
            # What a pickle of garbage raises is the unpickler's choice; our own user wrote it.
            with (
                contextlib.suppress(Exception)
                if q.serializer == "pickle"
                else contextlib.suppress(CorruptedError, Empty, edgefast.queues.Full, ShutDown, TypeError)
            ):
                call()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_flipped_header_bytes(shared: Make, planted: Callable[[bytes], str], options: dict[str, Any]) -> None:
    good = path_of(filled(shared, options).name).read_bytes()
    rng = random.Random(0)
    for position in (*range(128), *(rng.randrange(128, 1024) for _ in range(60))):
        bad = bytearray(good)
        bad[position] ^= 1 << rng.randrange(8)
        attempt(planted(bytes(bad)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", OPTIONS[:1] + OPTIONS[2:], ids=str)
def test_overwritten_state(shared: Make, planted: Callable[[bytes], str], options: dict[str, Any], seed: int) -> None:
    """Behind a valid header: words of the ring, the states, the lengths, with what hurts most."""
    good = path_of(filled(shared, options).name).read_bytes()
    rng = random.Random(seed)
    for _ in range(60):
        bad = bytearray(good)
        for _ in range(rng.choice([1, 2, 8, 100])):
            position = rng.randrange(512, len(bad) - 8) & ~7
            word = rng.choice([0, 1, 2**32 - 1, 2**63, 2**64 - 1, 1 << 40, rng.getrandbits(64), rng.getrandbits(20)])
            bad[position : position + 8] = word.to_bytes(8, "little")
        start = time.monotonic()
        attempt(planted(bytes(bad)))
        assert time.monotonic() - start < 30


def test_truncated_and_grown_files(shared: Make, planted: Callable[[bytes], str]) -> None:
    good = path_of(filled(shared, OPTIONS[0]).name).read_bytes()
    for size in (0, 1, 7, 8, 63, 64, 500, 4095, 4096, len(good) // 2, len(good) - 1):
        with pytest.raises((CorruptedError, FileNotFoundError)):
            SharedQueue.attach(planted(good[:size]))
    for extra in (1, 4096):
        with pytest.raises(CorruptedError, match="expected"):
            SharedQueue.attach(planted(good + bytes(extra)))
    for noise in (b"", bytes(8192), os.urandom(8192), b"\xff" * 8192):
        with pytest.raises((CorruptedError, VersionMismatch, FileNotFoundError)):
            SharedQueue.attach(planted(noise))


def test_words_that_change_while_in_use(shared: Make) -> None:
    """A peer that writes at random while we use the queue."""
    rng = random.Random(5)
    for seed in range(8):
        q = filled(shared, OPTIONS[0])
        with open(path_of(q.name), "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            for _ in range(80):
                position = rng.randrange(512, len(memory) - 8) & ~7
                memory[position : position + 8] = rng.getrandbits(rng.choice([1, 8, 64])).to_bytes(8, "little")
                with contextlib.suppress(CorruptedError, Empty, edgefast.queues.Full, ShutDown):
                    q.put(b"x" * (seed % 8), timeout=0)
                with contextlib.suppress(CorruptedError, Empty, edgefast.queues.Full, ShutDown):
                    assert len(q.get(timeout=0)) <= 24
                with contextlib.suppress(CorruptedError, ValueError):
                    q.statistics()


def test_not_a_regular_file(shared: Make) -> None:
    q = shared(1, itemsize=8)
    link = path_of(f"link-{os.getpid()}")
    link.symlink_to(path_of(q.name))
    try:
        with pytest.raises((CorruptedError, OSError)):
            SharedQueue.attach(f"link-{os.getpid()}")
        with pytest.raises(FileExistsError):
            shared(1, itemsize=8, name=f"link-{os.getpid()}")
    finally:
        link.unlink()
    for make in (os.mkdir, os.mkfifo):
        make(link)
        try:
            with pytest.raises((CorruptedError, OSError)):
                SharedQueue.attach(f"link-{os.getpid()}")
        finally:
            link.rmdir() if link.is_dir() else link.unlink()


def test_modes(shared: Make) -> None:
    before = os.umask(0o077)
    try:
        for mode in (0o600, 0o660, 0o666):
            q = shared(1, itemsize=8, mode=mode)
            assert stat.S_IMODE(path_of(q.name).stat().st_mode) == mode
    finally:
        os.umask(before)


def test_pickles_of_a_segment_that_others_may_write(shared: Make) -> None:
    q = shared(1, itemsize=100, serializer="pickle")
    path_of(q.name).chmod(0o622)
    with pytest.raises(PermissionError, match="expected a segment that only we may write"):
        SharedQueue.attach(q.name)


@pytest.mark.skipif(UID != 0, reason="needs root to give a file away")
def test_segments_of_other_users(shared: Make) -> None:
    messages, pickles = shared(1, itemsize=8), shared(1, itemsize=100, serializer="pickle")
    messages.put(b"theirs")
    for q in (messages, pickles):
        os.chown(path_of(q.name), 12345, -1)
        with pytest.raises(PermissionError, match="12345"):
            SharedQueue.attach(q.name)
        os.rename(path_of(q.name), f"/dev/shm/edgefast-12345-{q.name}")
    try:
        with SharedQueue.attach(messages.name, uid=12345) as other:
            assert other.get() == b"theirs"
        with pytest.raises(PermissionError, match="never unpickled"):
            SharedQueue.attach(pickles.name, uid=12345)
    finally:
        for q in (messages, pickles):
            os.unlink(f"/dev/shm/edgefast-12345-{q.name}")


# ---- leftovers -----------------------------------------------------------------------------------------------------


def names() -> dict[str, Any]:
    return {segment.name: segment for segment in list_shared()}


def test_leftovers_are_listed_and_removed(shared: Make) -> None:
    alive = shared(3, itemsize=100)
    name = f"left-{os.getpid()}"
    code = f"""
import os
from edgefast.queues import SharedQueue
q = SharedQueue.create(2, itemsize=8, name={name!r})
q.put(b"x")
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert done.returncode == -9
    found = names()
    assert found[alive.name].in_use
    assert not found[name].in_use
    assert found[name].size == path_of(name).stat().st_size
    assert abs(found[name].created - time.time()) < 600
    with SharedQueue.attach(name) as q:  # still good: the queue outlives who made it
        assert names()[name].in_use
        assert name not in cleanup()
        assert q.get() == b"x"
    assert name in cleanup()
    assert name not in names()
    assert alive.name in names()
    with pytest.raises(FileNotFoundError):
        SharedQueue.attach(name)


def test_cleanup_takes_damaged_segments_and_nothing_else(planted: Callable[[bytes], str]) -> None:
    damaged, fresh = planted(os.urandom(5000)), planted(b"")
    os.utime(path_of(damaged), (0, 0))
    other = Path(f"/dev/shm/edgefast-other-{os.getpid()}")
    other.write_bytes(b"x")
    link = path_of(f"link-{os.getpid()}")
    link.symlink_to(other)
    try:
        removed = cleanup()
        assert damaged in removed
        assert fresh not in removed  # somebody may be making it just now
        assert other.exists()
        assert link.is_symlink()
    finally:
        other.unlink()
        link.unlink()


def test_no_room_in_shared_memory_is_an_error_at_once(shared: Make) -> None:
    whole = os.statvfs("/dev/shm")  # more than all of it: what is only more than is free would first be filled
    with pytest.raises(OSError) as caught:
        shared(1000, itemsize=min(2**32 - 1, whole.f_blocks * whole.f_frsize // 1000 + 4096))
    assert not isinstance(caught.value, (FileExistsError, FileNotFoundError))


# ---- format --------------------------------------------------------------------------------------------------------

GOLDEN = Path(__file__).parent / "golden" / "shared-1.bin.gz"


def write_golden() -> None:
    """The segment of a queue whose creator died: made once for each version of the layout, never again."""
    with SharedQueue.create(3, dtype="<i4", shape=2, max_participants=2, high_watermark=3) as q:
        q.put_many([[1, 2], [3, 4], [5, 6]])
        assert q.get().tolist() == [1, 2]
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_bytes(gzip.compress(path_of(q.name).read_bytes(), mtime=0))


@pytest.mark.skipif(sys.byteorder != "little", reason="a segment has the byte order of its machine")
def test_golden_segment(planted: Callable[[bytes], str]) -> None:
    with SharedQueue.attach(planted(gzip.decompress(GOLDEN.read_bytes())), dtype="<i4", shape=2) as q:
        assert (q.maxsize, q.watermarks, q.max_participants, q.policy) == (3, (3, 0), 2, "block")
        assert not q.writable
        assert q.recover().dead == 1
        assert q.drain().tolist() == [[3, 4], [5, 6]]
        s = q.statistics()
        assert (s.put_count, s.get_count, s.high_events, s.participants) == (3, 3, 1, 1)
