"""Model files, .safetensors and .npz: mapped into memory, read piece by piece, written piece by piece."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import secrets
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

import numpy as np

from edgefast.aggregate import _npy
from edgefast.backends.table import BF16, Array
from edgefast.errors import InputError

__all__ = ["CheckpointReader", "CheckpointWriter", "Entry", "map_checkpoint"]

SAFETENSORS_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BF16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # the format's own limit
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_MOST_EXPANSION = 1100  # deflate's limit is 1032
#: What zipfile raises over a damaged archive; NotImplementedError and RuntimeError: features numpy never writes.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    KeyError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    EOFError,
    OSError,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file.

    Attributes:
        name: its key.
        dtype: numpy dtype; bfloat16 is the kernels' two-byte dtype.
        shape: its shape.
        offset: where its values begin in the file; None for a compressed member of an .npz.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int | None
    fortran: bool = False
    member: str = ""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class CheckpointReader:
    """The tensors of a .safetensors or .npz file, told apart by their first bytes. Nothing is unpickled.

    Args:
        path: the file.

    Attributes:
        entries: its tensors in the file's order of names.
        metadata: the `__metadata__` of a .safetensors file; empty for .npz.

    Raises:
        InputError: damaged, or neither of the two.
        OSError: it cannot be opened.
    """

    entries: dict[str, Entry]
    metadata: dict[str, str]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path)
        self._streams: dict[str, _Stream] = {}
        self._file = open(self.path, "rb")  # noqa: SIM115 - closed by close()
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            if self._file.read(2) == b"PK":
                self.entries, self.metadata = self._npz(), {}
            else:
                self.entries, self.metadata = self._safetensors()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()
        self._file.close()

    def _bad(self, message: str) -> InputError:
        return InputError(f"{self.path}: {message}")

    # ---- layouts -----------------------------------------------------------------------------------------------

    def _safetensors(self) -> tuple[dict[str, Entry], dict[str, str]]:
        start = os.pread(self._file.fileno(), 8, 0)
        if len(start) < 8:
            raise self._bad("expected a .safetensors or .npz file, got fewer than 8 bytes")
        (length,) = struct.unpack("<Q", start)
        if length > min(_LONGEST_HEADER, self._size - 8):
            raise self._bad("expected a .safetensors or .npz file, got something else (or a truncated one)")
        try:
            header = json.loads(os.pread(self._file.fileno(), length, 8), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise self._bad(f"not a .safetensors header ({error})") from None
        if not isinstance(header, dict):
            raise self._bad("not a .safetensors header")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise self._bad("__metadata__: expected strings")
        begin = 8 + length
        entries, spans = {}, []
        for name, fields in header.items():
            entry, span = self._safetensors_entry(name, fields, begin)
            entries[name] = entry
            spans.append(span)
        end = 0
        for first, last in sorted(spans):
            if first != end:
                raise self._bad(f"tensors overlap or leave a hole at byte {first}")
            end = last
        if begin + end != self._size:
            raise self._bad(f"expected {begin + end} bytes, got {self._size}")
        return entries, metadata

    def _safetensors_entry(self, name: str, fields: Any, begin: int) -> tuple[Entry, tuple[int, int]]:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise self._bad(f"tensor {name!r}: its name is no Unicode text") from None
        try:
            code, shape, (first, last) = fields["dtype"], fields["shape"], fields["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise self._bad(f"tensor {name!r}: expected dtype, shape and data_offsets") from None
        if code not in SAFETENSORS_DTYPES:
            raise self._bad(f"tensor {name!r}: expected dtype {', '.join(SAFETENSORS_DTYPES)}, got {code}")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in (*shape, first, last)):
            raise self._bad(f"tensor {name!r}: shape {shape!r}, data_offsets {[first, last]!r}")
        entry = Entry(name, SAFETENSORS_DTYPES[code], tuple(shape), begin + first)
        if last - first != entry.nbytes or begin + last > self._size:
            raise self._bad(f"tensor {name!r}: expected {entry.nbytes} bytes, got {last - first}")
        return entry, (first, last)

    def _npz(self) -> dict[str, Entry]:
        entries = {}
        try:
            self._zip = zipfile.ZipFile(self._file)
            for info in self._zip.infolist():
                name = info.filename.removesuffix(".npy")
                if name in entries:
                    raise self._bad(f"array {name!r} twice")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise self._bad(f"array {name!r}: expected stored or deflated, got method {info.compress_type}")
                if info.file_size > _MOST_EXPANSION * info.compress_size + 65536:
                    raise self._bad(
                        f"array {name!r}: expected fewer than {info.file_size} bytes of {info.compress_size}"
                    )
                with self._zip.open(info) as member:
                    dtype, shape, fortran, length = _npy.layout(member.read(_npy.LONGEST_START))
                if math.prod(shape) * dtype.itemsize != info.file_size - length:
                    raise self._bad(f"array {name!r}: expected {math.prod(shape) * dtype.itemsize} bytes")
                offset = None
                if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
                    # Only the local header knows where the member's bytes begin.
                    local = os.pread(self._file.fileno(), _LOCAL_HEADER.size, info.header_offset)
                    magic, name_length, extra_length = _LOCAL_HEADER.unpack(local)
                    offset = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length + length
                    if magic != b"PK\x03\x04" or offset + info.file_size - length > self._size:
                        raise self._bad(f"array {name!r}: not where the archive says")
                entries[name] = Entry(name, dtype, shape, offset, fortran, info.filename)
        except InputError:
            raise
        except _DAMAGE as error:
            raise self._bad(f"not an .npz file ({error})") from None
        return entries

    # ---- values ------------------------------------------------------------------------------------------------

    def read(self, name: str, start: int, out: Array) -> None:
        """Elements [start, start + len(out)) of a tensor, C order, into a contiguous array; the file is not mapped.

        Compressed members are read as a stream: their pieces have to be asked for in order.

        Raises:
            InputError: the file ends early, or a compressed member is damaged.
        """
        entry = self.entries[name]
        target = out.view(np.uint8).reshape(-1).data if out.size else memoryview(b"")
        if entry.fortran and len(entry.shape) > 1:
            raise self._bad(f"array {name!r}: Fortran order cannot be read piece by piece")
        if entry.offset is None:
            self._stream(entry).read(start * entry.dtype.itemsize, target)
            return
        position, done = entry.offset + start * entry.dtype.itemsize, 0
        while done < len(target):
            try:
                got = os.preadv(self._file.fileno(), [target[done:]], position + done)
            except OSError as error:
                error.filename = os.fspath(self.path)
                raise
            if got == 0:
                raise self._bad(f"tensor {name!r}: the file ends early")
            done += got

    def _stream(self, entry: Entry) -> _Stream:
        if entry.name not in self._streams:
            # One tensor at a time: the one before is finished, or never will be.
            for stream in self._streams.values():
                stream.close()
            self._streams = {entry.name: _Stream(self._zip, entry, self.path)}
        return self._streams[entry.name]

    def map(self) -> dict[str, Array]:
        """Every tensor as a read-only array over the mapped file; compressed members are read into memory.

        The map lives as long as the arrays. Truncating the file meanwhile kills the process (SIGBUS): that is how
        memory maps are.
        """
        whole: Any = b""
        if self._size:
            whole = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        arrays = {}
        for name, entry in self.entries.items():
            order: Literal["C", "F"] = "F" if entry.fortran else "C"
            if entry.offset is None or entry.size == 0:
                flat = np.empty(entry.size, entry.dtype)
                if entry.size:
                    self._stream(entry).read(0, flat.view(np.uint8).data)
            else:
                flat = np.frombuffer(whole, entry.dtype, entry.size, entry.offset)
            arrays[name] = flat.reshape(entry.shape, order=order)
        return arrays


class _Stream:
    """The values of a compressed member, front to back."""

    def __init__(self, archive: zipfile.ZipFile, entry: Entry, path: Path) -> None:
        self._name, self._path = entry.name, path
        self._member = archive.open(entry.member)
        self._position = -(archive.getinfo(entry.member).file_size - entry.nbytes)
        self._skip(0)

    def _skip(self, position: int) -> None:
        while self._position < position:
            got = self._member.read(min(position - self._position, 1 << 20))
            if not got:
                raise InputError(f"{self._path}: array {self._name!r}: the file ends early")
            self._position += len(got)

    def read(self, position: int, target: memoryview) -> None:
        if position < self._position:
            raise ValueError("pieces of a compressed array: expected in order")
        try:
            self._skip(position)
            done = 0
            while done < len(target):
                got = self._member.read(min(len(target) - done, 1 << 20))
                if not got:
                    raise InputError(f"{self._path}: array {self._name!r}: the file ends early")
                target[done : done + len(got)] = got
                done += len(got)
            self._position += done
        except InputError:
            raise
        except _DAMAGE as error:
            raise InputError(f"{self._path}: array {self._name!r}: {error}") from None

    def close(self) -> None:
        self._member.close()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def map_checkpoint(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The tensors of a .safetensors or .npz file by name, as read-only arrays over the mapped file.

    bfloat16 tensors have ml_dtypes' dtype where that package is installed, else two-byte records with one field
    "bfloat16" that holds the bits. Compressed .npz members are read into memory. Nothing is unpickled.

    Raises:
        InputError: damaged, or neither of the two formats.
        OSError: the file cannot be opened.
    """
    with CheckpointReader(path) as reader:
        return reader.map()


@dataclass
class CheckpointWriter:
    """Writes a .safetensors or .npz file front to back; it appears under its name when complete, or not at all.

    Args:
        path: where to; the suffix names the format.
        entries: the tensors in the order in which their values will come (offsets are not looked at).
        metadata: for .safetensors.

    Raises:
        InputError: another suffix, or a dtype the format does not have.
        OSError: it cannot be written.
    """

    path: Path
    entries: list[Entry]
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._zip = check_suffix(self.path) == ".npz"
        for entry in self.entries:
            if self._zip and entry.dtype == BF16:
                raise InputError(f"{self.path}: tensor {entry.name!r} is bfloat16, which .npz does not have")
            if not self._zip and entry.dtype.newbyteorder("<") not in _SAFETENSORS_NAMES:
                raise InputError(f"{self.path}: tensor {entry.name!r}: .safetensors has no {entry.dtype}")

    @contextlib.contextmanager
    def open(self) -> Iterator[Self]:
        """The file under another name beside its own; renamed at the end, removed on an error.

        Raises:
            OSError: with the file's own name, not the other.
        """
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with open(temporary, "xb") as file:
                self._file: IO[bytes] = file
                if self._zip:
                    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as self._archive:
                        yield self
                else:
                    file.write(self._header())
                    yield self
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            if isinstance(error, OSError) and error.filename in (None, os.fspath(temporary)):
                error.filename, error.filename2 = os.fspath(self.path), None
            raise

    def _header(self) -> bytes:
        header: dict[str, Any] = {"__metadata__": self.metadata} if self.metadata else {}
        offset = 0
        for entry in self.entries:
            header[entry.name] = {
                "dtype": _SAFETENSORS_NAMES[entry.dtype.newbyteorder("<")],
                "shape": list(entry.shape),
                "data_offsets": [offset, offset + entry.nbytes],
            }
            offset += entry.nbytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    @contextlib.contextmanager
    def tensor(self, entry: Entry) -> Iterator[IO[bytes]]:
        """Where the values of the next entry are written to, C order."""
        if not self._zip:
            yield self._file
            return
        with self._archive.open(f"{entry.name}.npy", "w", force_zip64=entry.nbytes >= 1 << 31) as member:
            member.write(_npy.header(entry.dtype, entry.shape))
            yield member


def check_suffix(path: Path) -> str:
    """.safetensors or .npz.

    Raises:
        InputError: another one.
    """
    if path.suffix not in (".safetensors", ".npz"):
        raise InputError(f"{path}: expected a name that ends in .safetensors or .npz")
    return path.suffix
