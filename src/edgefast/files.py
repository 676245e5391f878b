"""Tables read and written a block of rows at a time: memory is bounded whatever the size of the file.

.npy (a matrix), .npz (one matrix, or a SciPy CSR matrix as scipy.sparse.save_npz writes it), .csv (with a header line)
and .parquet. Nothing is unpickled. What is written appears under its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import os
import warnings
import weakref
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgefast.errors import InputError

__all__ = ["SUFFIXES", "Block", "Sink", "Source", "open_sink", "open_source"]

SUFFIXES = (".npy", ".npz", ".csv", ".parquet")
_BLOCK_BYTES = 8 << 20
#: What stands for a number that is missing in a .csv: pandas' own list.
_MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "None", "n/a", "nan", "null"),
)
_EXTRA = "pip install 'edgefast[cli]'"


class Block:
    """Some consecutive rows of a table.

    Attributes:
        numbers: the numeric columns: an array of shape (n, width), or a SciPy CSR matrix.
        rows: the same rows as the file has them, text columns included: an array, a CSR matrix or a DataFrame.
    """

    __slots__ = ("numbers", "rows")

    def __init__(self, numbers: Any, rows: Any) -> None:
        self.numbers: Any = numbers
        self.rows: Any = rows


class Source(ABC):
    """A table to read once, from the first row to the last.

    Attributes:
        name: what to call it in messages.
        width: numeric columns.
        n_rows: rows, or None where only reading tells.
        columns: names of the numeric columns; None where the format has none.
        sparse: whether blocks are CSR matrices.
    """

    name: str
    width: int
    n_rows: int | None = None
    columns: tuple[str, ...] | None = None
    sparse = False

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """The rows, in order.

        Raises:
            InputError: damaged bytes, text or missing values where numbers should be.
        """

    def done(self) -> float | None:
        """Share of the file that was read, where n_rows is None and the position says so."""
        return None

    def rows_at_once(self, itemsize: int = 8) -> int:
        """Rows of a block, at most 65536: 8 MiB of `itemsize` bytes a number."""
        return int(max(1, min(1 << 16, _BLOCK_BYTES // (max(1, self.width) * itemsize))))


def open_source(path: str | os.PathLike[str]) -> Source:
    """The table in a file, by its suffix.

    Args:
        path: a .npy, .npz, .csv or .parquet file.

    Raises:
        InputError: there is no such file, its format is another, or it is damaged; one line says what was expected.
    """
    file = Path(path)
    if file.is_dir():
        raise InputError(f"{file}: expected a file, this is a folder")
    if not file.exists():
        raise InputError(f"{file}: there is no such file")
    if not file.is_file():
        raise InputError(f"{file}: expected a regular file, which can be read from more than one place")
    try:
        kind = _SOURCES[_suffix(file)]
        with _readable(file):
            return kind(file)
    except ModuleNotFoundError as error:
        raise InputError(f"{file.name}: reading it needs {error.name}; {_EXTRA}") from None


def _suffix(file: Path) -> str:
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{file.name}: expected a file ending in {', '.join(SUFFIXES)}")
    return suffix


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Whatever a reader raises on damaged bytes (ValueError, BadZipFile, zlib.error, ...) as one line."""
    try:
        yield
    except (InputError, ModuleNotFoundError):
        raise
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from None
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        if "pickle" in reason or "Object arrays" in reason:
            reason = "it holds Python objects, which are not read; save plain numbers"
        raise InputError(f"{file.name}: not a readable {file.suffix} file ({reason or type(error).__name__})") from None


def _check_matrix(shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> None:
    if len(shape) != 2:
        raise InputError(f"{name}: expected a matrix (rows, columns), got shape {shape}")
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise InputError(f"{name}: expected numbers, got {dtype}")
    if shape[1] == 0:
        raise InputError(f"{name}: expected at least one column, got shape {shape}")


def _check_finite(numbers: NDArray[Any], first: int, name: str, columns: tuple[str, ...] | None) -> None:
    if numbers.dtype.kind != "f":
        return
    bad = ~np.isfinite(numbers)
    if not bad.any():
        return
    row, column = (int(i) for i in np.argwhere(bad)[0])
    where = repr(columns[column]) if columns else str(column)
    raise _not_finite(numbers[row, column], first + row, where, name)


def _check_csr_finite(rows: Any, first: int, name: str) -> None:
    if rows.dtype.kind != "f":
        return
    bad = np.flatnonzero(~np.isfinite(rows.data))
    if bad.size:
        row = int(np.searchsorted(rows.indptr, bad[0], side="right")) - 1
        raise _not_finite(rows.data[bad[0]], first + row, str(rows.indices[bad[0]]), name)


def _not_finite(number: Any, row: int, column: str, name: str) -> InputError:
    what = "NaN (a missing value)" if np.isnan(number) else "infinity"
    return InputError(
        f"{name}: expected finite numbers, got {what} in row {row}, column {column}; fill or remove such rows"
    )


class _NpySource(Source):
    """A stored matrix, read through the page cache."""

    def __init__(self, file: Path) -> None:
        self.name = file.name
        self._file = file
        self._array = np.load(file, mmap_mode="r", allow_pickle=False)
        _check_matrix(self._array.shape, self._array.dtype, self.name)
        self.n_rows, self.width = self._array.shape

    def blocks(self) -> Iterator[Block]:
        step = self.rows_at_once(self._array.dtype.itemsize)
        native = self._array.dtype.newbyteorder("=")
        for first in range(0, self._array.shape[0], step):
            part = np.array(self._array[first : first + step], dtype=native, order="C", subok=False)
            _check_finite(part, first, self.name, None)
            yield Block(part, part)


class _Member:
    """One array of a .npz, read from front to back."""

    def __init__(self, archive: zipfile.ZipFile, key: str) -> None:
        self._stream = archive.open(key + ".npy")
        version = np.lib.format.read_magic(self._stream)  # type: ignore[arg-type]
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, self.fortran, self.dtype = read(self._stream)  # type: ignore[arg-type]
        if self.dtype.hasobject:
            raise ValueError("Object arrays are not read")

    def take(self, count: int) -> NDArray[Any]:
        wanted = count * self.dtype.itemsize
        data = self._stream.read(wanted)
        if len(data) != wanted:
            raise ValueError("the data ends early")
        return np.frombuffer(data, self.dtype).astype(self.dtype.newbyteorder("="), copy=False)


class _NpzSource(Source):
    """One matrix, or the members of a CSR matrix, decompressed as they are needed."""

    def __init__(self, file: Path) -> None:
        self.name = file.name
        self._file = file
        # Opened here: a ZipFile that fails half way does not close what it opened.
        with open(file, "rb") as stream, zipfile.ZipFile(stream) as archive:
            keys = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
            self.sparse = {"data", "indices", "indptr", "shape", "format"} <= set(keys)
            if self.sparse:
                layout = np.asarray(self._whole(archive, "format")).item()
                layout = layout.decode() if isinstance(layout, bytes) else str(layout)
                if layout != "csr":
                    raise InputError(f"{self.name}: expected a sparse matrix in CSR format, got {layout}; save tocsr()")
                shape = tuple(int(n) for n in self._whole(archive, "shape"))
                self._dtype = _Member(archive, "data").dtype
            else:
                matrices = [k for k in keys if len(_Member(archive, k).shape) == 2]
                if len(matrices) != 1:
                    raise InputError(
                        f"{self.name}: expected one matrix, or a CSR matrix, got {', '.join(keys) or 'nothing'}"
                    )
                self._key = matrices[0]
                member = _Member(archive, self._key)
                if member.fortran:
                    raise InputError(f"{self.name}: expected a matrix in C order, got Fortran order; save it as .npy")
                shape, self._dtype = member.shape, member.dtype
        _check_matrix(shape, self._dtype, self.name)
        self.n_rows, self.width = shape

    @staticmethod
    def _whole(archive: zipfile.ZipFile, key: str) -> NDArray[Any]:
        member = _Member(archive, key)
        if int(np.prod(member.shape)) > 16:
            raise ValueError(f"{key} has shape {member.shape}")
        return member.take(int(np.prod(member.shape))).reshape(member.shape)

    def blocks(self) -> Iterator[Block]:
        with _readable(self._file), open(self._file, "rb") as stream, zipfile.ZipFile(stream) as archive:
            yield from self._csr(archive) if self.sparse else self._dense(archive)

    def _dense(self, archive: zipfile.ZipFile) -> Iterator[Block]:
        member = _Member(archive, self._key)
        step, n = self.rows_at_once(self._dtype.itemsize), self.n_rows or 0
        for first in range(0, n, step):
            count = min(step, n - first)
            part = member.take(count * self.width).reshape(count, self.width)
            _check_finite(part, first, self.name, None)
            yield Block(part, part)

    def _csr(self, archive: zipfile.ZipFile) -> Iterator[Block]:
        import scipy.sparse

        data, indices, indptr = (_Member(archive, k) for k in ("data", "indices", "indptr"))
        n = self.n_rows or 0
        if indptr.shape != (n + 1,) or data.shape != indices.shape or len(data.shape) != 1:
            raise ValueError(f"members of shapes {data.shape}, {indices.shape}, {indptr.shape} for {n} rows")
        last = indptr.take(1)
        if last[0] != 0:
            raise ValueError("row pointers do not begin at 0")
        per_entry = data.dtype.itemsize + indices.dtype.itemsize
        first = 0
        while first < n:
            count = min(1 << 14, n - first)
            ends = indptr.take(count)
            pointers = np.concatenate([last, ends]).astype(np.int64)
            if (np.diff(pointers) < 0).any() or pointers[-1] > data.shape[0]:
                raise ValueError("row pointers are out of order")
            start = 0
            while start < count:  # rows of very different lengths: pieces by bytes
                room = pointers[start] + max(1, _BLOCK_BYTES // per_entry)
                stop = max(start + 1, int(np.searchsorted(pointers, room, side="right")) - 1)
                stop = min(stop, count)
                entries = int(pointers[stop] - pointers[start])
                part = scipy.sparse.csr_matrix(
                    (data.take(entries), indices.take(entries), pointers[start : stop + 1] - pointers[start]),
                    shape=(stop - start, self.width),
                    copy=False,
                )
                part.check_format(full_check=True)  # SciPy's own routines write wherever an index points
                _check_csr_finite(part, first + start, self.name)
                yield Block(part, part)
                start = stop
            last = ends[-1:]
            first += count


class _CsvSource(Source):
    def __init__(self, file: Path) -> None:
        import pandas

        self.name = file.name
        self._file = file
        self._stream: IO[bytes] | None = None
        self._size = file.stat().st_size
        with warnings.catch_warnings():
            # Otherwise pandas takes fields without a name for an index, or drops them.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            try:
                head = pandas.read_csv(file, nrows=1000, skipinitialspace=True, index_col=False)
            except pandas.errors.ParserWarning:
                raise InputError(
                    f"{self.name}: expected as many fields in a row as in the header line, got more"
                ) from None
        if not len(head):
            raise InputError(f"{self.name}: expected rows after the header line, got none")
        self._numeric, self.columns = _numeric_columns(head, self.name)
        self.width = len(self.columns)
        # Text stays what it is: 007 is no number there, and NA is not missing.
        numeric = set(self._numeric)
        self._text = {name: str for i, name in enumerate(head.columns) if i not in numeric}
        self._missing = {head.columns[i]: list(_MISSING) for i in self._numeric}

    def blocks(self) -> Iterator[Block]:
        import pandas

        first = 0
        with _readable(self._file), open(self._file, "rb") as self._stream:
            frames = pandas.read_csv(
                self._stream,
                chunksize=self.rows_at_once(),
                skipinitialspace=True,
                index_col=False,
                dtype=self._text,
                na_values=self._missing,
                keep_default_na=False,
            )
            for frame in frames:
                numbers = _frame_numbers(frame, self._numeric, self.name, first)
                _check_finite(numbers, first, self.name, self.columns)
                yield Block(numbers, frame)
                first += len(frame)

    def done(self) -> float | None:
        if self._stream is None or self._stream.closed:
            return None
        return self._stream.tell() / max(1, self._size)


class _ParquetSource(Source):
    def __init__(self, file: Path) -> None:
        import pandas  # noqa: F401 - asked for here, so that the message comes early
        import pyarrow.parquet

        self.name = file.name
        self._file = file
        table = pyarrow.parquet.ParquetFile(file)
        self.n_rows = table.metadata.num_rows
        schema = table.schema_arrow
        # An index that pandas has stored is a column to copy, not to compute with.
        index = [c for c in (schema.pandas_metadata or {}).get("index_columns", ()) if isinstance(c, str)]
        frame = schema.empty_table().to_pandas(ignore_metadata=True)
        self._numeric, self.columns = _numeric_columns(frame, self.name, index)
        self.width = len(self.columns)

    def blocks(self) -> Iterator[Block]:
        import pyarrow.parquet

        first = 0
        with _readable(self._file), open(self._file, "rb") as stream:
            for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=self.rows_at_once()):
                frame = batch.to_pandas(ignore_metadata=True)
                numbers = _frame_numbers(frame, self._numeric, self.name, first)
                _check_finite(numbers, first, self.name, self.columns)
                yield Block(numbers, frame)
                first += len(frame)


def _numeric_columns(frame: Any, name: str, but: Sequence[str] = ()) -> tuple[list[int], tuple[str, ...]]:
    """Positions and names of the columns that hold numbers."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    names = [str(c) for c in frame.columns]
    numbers = [is_numeric_dtype(t) or is_bool_dtype(t) for t in frame.dtypes]
    numeric = [i for i, yes in enumerate(numbers) if yes and names[i] not in but]
    if not numeric:
        raise InputError(f"{name}: expected columns of numbers, got {', '.join(names[:8]) or 'no columns'}")
    return numeric, tuple(names[i] for i in numeric)


def _frame_numbers(frame: Any, numeric: list[int], name: str, first: int) -> NDArray[Any]:
    part = frame.iloc[:, numeric]
    narrow = all(t == np.float32 for t in part.dtypes)
    try:
        return np.ascontiguousarray(part.to_numpy(np.float32 if narrow else np.float64, na_value=np.nan))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected numbers in rows {first} to {first + len(frame) - 1}: {error}") from None


_SOURCES: dict[str, Callable[[Path], Source]] = {
    ".npy": _NpySource,
    ".npz": _NpzSource,
    ".csv": _CsvSource,
    ".parquet": _ParquetSource,
}


# ---- writing -------------------------------------------------------------------------------------------------------


def _beside(file: Path) -> Path:
    """What a file is called until it is whole."""
    return file.with_name(f".{file.name}.{os.getpid()}.part")


def _unlink(parts: list[Path]) -> None:
    for part in parts:
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """The name of another file, which takes the place of this one when the block ends, and is removed if that fails.
    What is there and no regular file, such as /dev/stdout, is written to itself."""
    if file.exists() and not file.is_file():
        yield file
        return
    part = _beside(file)
    try:
        yield part
        os.replace(part, file)
    except OSError as error:
        if error.filename == os.fspath(part):
            error.filename, error.filename2 = os.fspath(file), None
        raise
    finally:
        _unlink([part])


class Sink(ABC):
    """A table being written; a context manager that gives the file its name when the block ends without an error."""

    def __init__(self, file: Path) -> None:
        self._target = file
        self._part = _beside(file)
        self._parts = [self._part]
        # For Ctrl-C before the with block begins, or within its end.
        self._remove = weakref.finalize(self, _unlink, self._parts)

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self._close(failed=kind is not None)
            if kind is None:
                os.replace(self._part, self._target)
        finally:
            _unlink(self._parts)
            self._remove.detach()

    @abstractmethod
    def write(self, rows: Any) -> None:
        """Append rows: an array, a CSR matrix or a DataFrame, as the format takes them, always alike."""

    @abstractmethod
    def _close(self, failed: bool) -> None: ...


def open_sink(path: str | os.PathLike[str], *, columns: tuple[str, ...] | None = None) -> Sink:
    """Write a table, in the format its suffix names.

    Args:
        path: a .npy, .npz, .csv or .parquet file; an existing one is replaced at the end, and only on success.
        columns: names for rows that come as arrays, in .csv and .parquet.

    Raises:
        InputError: another suffix, a folder that is not there, or a package that is missing.
    """
    file = Path(path)
    suffix = _suffix(file)
    if file.is_dir():
        raise InputError(f"{file}: expected a file, this is a folder")
    if not file.absolute().parent.is_dir():
        raise InputError(f"{file}: there is no folder {file.parent}")
    try:
        return _SINKS[suffix](file) if suffix in (".npy", ".npz") else _SINKS[suffix](file, columns)
    except ModuleNotFoundError as error:
        raise InputError(f"{file.name}: writing it needs {error.name}; {_EXTRA}") from None


class _NpyWriter:
    """An .npy whose first dimension is known at the end: the header keeps its place."""

    _HEADER = 128  # bytes, a multiple of 64, as numpy aligns it

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._dtype: np.dtype[Any] | None = None
        self._tail: tuple[int, ...] = ()
        self.count = 0
        stream.write(bytes(self._HEADER))

    def write(self, array: NDArray[Any]) -> None:
        if self._dtype is None:
            self._dtype, self._tail = array.dtype, array.shape[1:]
        elif (array.dtype, array.shape[1:]) != (self._dtype, self._tail):
            raise ValueError(f"expected blocks of {self._dtype} {self._tail}, got {array.dtype} {array.shape[1:]}")
        self._stream.write(np.ascontiguousarray(array).data)
        self.count += len(array)

    def close(self, empty: NDArray[Any]) -> None:
        """`empty` tells the type of a table without rows."""
        if self._dtype is None:
            self.write(empty)
        assert self._dtype is not None
        text = f"{{'descr': {self._dtype.str!r}, 'fortran_order': False, 'shape': {(self.count, *self._tail)}, }}"
        body = text.ljust(self._HEADER - 11) + "\n"
        self._stream.seek(0)
        self._stream.write(b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body.encode("ascii"))


class _NpySink(Sink):
    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._stream = open(self._part, "wb")  # noqa: SIM115 - closed by _close
        self._writer = _NpyWriter(self._stream)

    def write(self, rows: Any) -> None:
        if hasattr(rows, "tocsr"):
            raise InputError(f"{self._target.name}: sparse rows are written to .npz only")
        self._writer.write(np.asarray(rows))

    def _close(self, failed: bool) -> None:
        if not failed:
            self._writer.close(np.empty((0, 0), np.float32))
        self._stream.close()


class _NpzSink(Sink):
    """Arrays under `rows`, CSR rows as scipy.sparse.save_npz; each member grows in a file of its own first."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._members: dict[str, tuple[IO[bytes], _NpyWriter]] = {}
        self._columns: int | None = None  # of CSR rows
        self._entries = 0

    def _append(self, key: str, array: NDArray[Any]) -> None:
        if key not in self._members:
            part = self._part.with_suffix(f".{key}")
            self._parts.append(part)
            stream = open(part, "w+b")  # noqa: SIM115 - closed by _close
            self._members[key] = stream, _NpyWriter(stream)
        self._members[key][1].write(array)

    def write(self, rows: Any) -> None:
        if not hasattr(rows, "tocsr"):
            self._append("rows", np.asarray(rows))
            return
        if self._columns is None:
            self._columns = rows.shape[1]
            self._append("indptr", np.zeros(1, np.int64))
        self._append("data", rows.data)
        self._append("indices", rows.indices)
        self._append("indptr", rows.indptr[1:].astype(np.int64) + self._entries)
        self._entries += rows.nnz

    def _close(self, failed: bool) -> None:
        try:
            if not failed:
                self._assemble()
        finally:
            for stream, _ in self._members.values():
                stream.close()

    def _assemble(self) -> None:
        if not self._members:
            self._append("rows", np.empty((0, 0), np.float32))
        with zipfile.ZipFile(self._part, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for key, (stream, writer) in self._members.items():
                writer.close(np.empty(0))
                stream.seek(0)
                # A fixed date: the same rows give the same bytes.
                with archive.open(zipfile.ZipInfo(key + ".npy"), "w", force_zip64=True) as member:
                    while piece := stream.read(1 << 20):
                        member.write(piece)
            if self._columns is not None:
                count = self._members["indptr"][1].count - 1
                for key, value in (("format", np.array(b"csr")), ("shape", np.array([count, self._columns]))):
                    with archive.open(zipfile.ZipInfo(key + ".npy"), "w") as member:
                        np.lib.format.write_array(member, value, allow_pickle=False)  # type: ignore[arg-type]


class _FrameSink(Sink):
    def __init__(self, file: Path, columns: tuple[str, ...] | None) -> None:
        import pandas

        super().__init__(file)
        self._pandas = pandas
        self._names = columns

    def _frame(self, rows: Any) -> Any:
        if hasattr(rows, "tocsr"):
            raise InputError(f"{self._target.name}: sparse rows are written to .npz only")
        if isinstance(rows, self._pandas.DataFrame):
            return rows
        names = self._names or tuple(map(str, range(rows.shape[1])))
        return self._pandas.DataFrame(rows, columns=list(names), copy=False)


class _CsvSink(_FrameSink):
    def __init__(self, file: Path, columns: tuple[str, ...] | None) -> None:
        super().__init__(file, columns)
        self._stream = open(self._part, "w", newline="", encoding="utf-8")  # noqa: SIM115 - closed by _close
        self._first = True

    def write(self, rows: Any) -> None:
        # pandas writes the shortest decimals that read back to the same bits.
        self._frame(rows).to_csv(self._stream, header=self._first, index=False)
        self._first = False

    def _close(self, failed: bool) -> None:
        if self._first and self._names and not failed:
            self._stream.write(",".join(self._names) + "\n")
        self._stream.close()


class _ParquetSink(_FrameSink):
    def __init__(self, file: Path, columns: tuple[str, ...] | None) -> None:
        import pyarrow.parquet

        super().__init__(file, columns)
        self._arrow = pyarrow
        self._writer: Any = None

    def write(self, rows: Any) -> None:
        schema = None if self._writer is None else self._writer.schema
        table = self._arrow.Table.from_pandas(self._frame(rows), schema=schema, preserve_index=False)
        if self._writer is None:
            self._writer = self._arrow.parquet.ParquetWriter(self._part, table.schema)
        self._writer.write_table(table)

    def _close(self, failed: bool) -> None:
        if self._writer is None and not failed:
            self.write(np.empty((0, len(self._names or ())), np.float32))
        if self._writer is not None:
            self._writer.close()


_SINKS: dict[str, Callable[..., Sink]] = {
    ".npy": _NpySink,
    ".npz": _NpzSink,
    ".csv": _CsvSink,
    ".parquet": _ParquetSink,
}
