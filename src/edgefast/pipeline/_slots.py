"""Private files through which running processes show themselves to other processes of the same user.

A folder of mode 0700 holds for every process a lock file, on which the process holds a flock, and a data file, replaced
as a whole. The kernel lets go of the lock when the process dies, however it dies: a data file whose lock can be taken
is a dead process's and is removed by whoever finds it. Neither process numbers nor clocks are trusted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator

__all__ = ["MAX_BYTES", "Slot", "folder_path", "read_all"]

#: A longer data file is not read.
MAX_BYTES = 4 << 20

_NAME = re.compile(r"[0-9]{1,10}-[0-9a-f]{16}")
_NO_FOLLOW = os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) if sys.platform != "win32" else 0


def folder_path() -> str:
    """$XDG_RUNTIME_DIR/edgefast, or edgefast-UID in the folder for temporary files when there is no such variable.

    Raises:
        OSError: this system has no such thing (Windows).
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOTSUP, "publishing statistics needs POSIX file locks; this is Windows")
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(base) and os.path.isdir(base):
        return os.path.join(base, "edgefast")
    return os.path.join(tempfile.gettempdir(), f"edgefast-{os.geteuid()}")


@contextlib.contextmanager
def _folder(*, create: bool) -> Iterator[int]:
    """A descriptor of the folder: whatever happens to its path afterwards, files are opened relative to this one."""
    path = folder_path()
    if create:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _NO_FOLLOW)
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise PermissionError(
                errno.EACCES,
                f"expected a folder of user {os.geteuid()} with mode 0700, got one of user {found.st_uid} with mode "
                f"{stat.S_IMODE(found.st_mode):04o}; remove it",
                path,
            )
        yield fd
    finally:
        os.close(fd)


class Slot:
    """This process's pair of files.

    Raises:
        OSError: the folder cannot be made, or is not this user's alone.
    """

    def __init__(self) -> None:
        import fcntl

        self._name = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._lock = -1
        try:
            with _folder(create=True) as folder:
                while True:
                    self._lock = os.open(
                        f"{self._name}.lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o600, dir_fd=folder
                    )
                    fcntl.flock(self._lock, fcntl.LOCK_EX)
                    if os.fstat(self._lock).st_nlink:
                        break
                    # Between open and flock a reader took it for a dead process's.
                    fd, self._lock = self._lock, -1
                    os.close(fd)
        except BaseException:
            self.close()
            raise

    def write(self, data: bytes) -> None:
        """Replace the data file.

        Raises:
            OSError: the folder or the lock file is gone, or the disk is full.
        """
        if not os.fstat(self._lock).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "the lock file was removed", f"{self._name}.lock")
        part = f"{self._name}.part"
        with _folder(create=False) as folder:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _NO_FOLLOW, 0o600, dir_fd=folder)
            with open(fd, "wb") as f:
                f.write(data)
            os.replace(part, f"{self._name}.json", src_dir_fd=folder, dst_dir_fd=folder)

    def close(self) -> None:
        """Remove both files; never fails."""
        with contextlib.suppress(OSError), _folder(create=False) as folder:
            _remove(folder, self._name)
        if self._lock >= 0:
            os.close(self._lock)

    def forget(self) -> None:
        """In a forked child: let go of the parent's lock without touching its files."""
        os.close(self._lock)


def _remove(folder: int, name: str) -> None:
    for suffix in (".json", ".part", ".lock"):  # the lock last: until then the rest is found again
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name + suffix, dir_fd=folder)


def read_all() -> Iterator[tuple[str, bytes | None]]:
    """(name, content) of every living process's data file; None where there is a file that must not be read.

    Files of dead processes are removed. Nothing at all when there is no folder.

    Raises:
        OSError: the folder is not this user's alone.
    """
    try:
        with _folder(create=False) as folder:
            for entry in sorted(os.listdir(folder)):
                name, _, suffix = entry.partition(".")
                if suffix == "lock" and _NAME.fullmatch(name):
                    if _buried(folder, name):
                        continue
                    with contextlib.suppress(FileNotFoundError):  # not written yet, or just gone
                        yield name, _read(folder, f"{name}.json")
    except FileNotFoundError:
        return


def _buried(folder: int, name: str) -> bool:
    """Whether the process that owned the lock file holds it no more; its files are then removed."""
    import fcntl

    try:
        fd = os.open(f"{name}.lock", os.O_RDONLY | os.O_NONBLOCK | _NO_FOLLOW, dir_fd=folder)
    except OSError:  # gone, or a link, which no process of ours made
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        # Under the lock: a process that has just made the file waits for it, sees that it is gone and makes another.
        with contextlib.suppress(OSError):
            _remove(folder, name)
        return True
    finally:
        os.close(fd)


def _read(folder: int, file: str) -> bytes | None:
    try:
        # Without O_NONBLOCK a pipe of that name would hold us for ever.
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | _NO_FOLLOW, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_size > MAX_BYTES:
            return None
        with open(fd, "rb", closefd=False) as f:
            data = f.read(MAX_BYTES + 1)
        return data if len(data) <= MAX_BYTES else None
    finally:
        os.close(fd)
