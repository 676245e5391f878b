"""The C-level part of SharedQueue: csrc/queues/shared_queue.hpp for Python.

As in _record.pyx, copies of up to GIL_BYTES run with the GIL held, and nothing ever sleeps with it.

The memory of a segment stays mapped as long as the handle object lives, whatever close() did: arrays and views that
somebody kept read stale bytes, not unmapped memory. close() first makes every call under way return, then leaves.

A pickle in a slot, version 1, little-endian: u8 version, u8 0, u16 number n of buffers, u32 bytes of the pickle stream,
n times u64 bytes of a buffer; the stream; each buffer at the next multiple of 16 from the start of the slot.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strerror
from libcpp.vector cimport vector
from posix.types cimport mode_t

import errno
import os
import pickle

import numpy as np

from edgefast.queues._calls cimport (
    EDGEFAST_EMPTY,
    EDGEFAST_FULL,
    EDGEFAST_INTERRUPTED,
    EDGEFAST_OK,
    EDGEFAST_SHUT_DOWN,
    borrow,
    fits,
    kDontBlock,
    kForever,
    kTry,
    now_ns,
    to_deadline,
    to_seconds,
)

from edgefast.queues._checks import batch_of, count, integer
from edgefast.queues._exceptions import CorruptedError, Empty, Full, ShutDown, VersionMismatch
from edgefast.queues._shared_types import Participant, RecoveryReport

cdef extern from "sys/stat.h" nogil:
    struct stat_t "stat":
        uint64_t st_dev
        uint64_t st_ino
        uint32_t st_mode
        uint32_t st_uid
    int fstat(int fd, stat_t *found)

cdef extern from "queues/shared_queue.hpp" namespace "ef" nogil:
    int EDGEFAST_DAMAGED, EDGEFAST_DETACHED

    enum class SharedError:
        none
        exists
        missing
        not_allowed
        not_ready
        not_a_queue
        version
        corrupted
        bad_config
        no_space
        crowded
        system

    cppclass SharedFailure:
        SharedError error
        int os_error
        char text[232]

    cppclass SharedConfig:
        uint32_t kind, policy, drop_of_dead, serializer
        uint64_t capacity, itemsize, participants, spare, nonce
        uint32_t dimensions
        uint64_t shape[8]
        char dtype[256]

    cppclass Counters "ef::SharedQueue::Counters":
        int64_t size, waiting_put, waiting_get, puts, gets, cleared, dropped_newest, dropped_oldest, refused
        int64_t full_waits, empty_waits, wakeups, high_events, peak, closed, bytes
        double sojourn
        int64_t lost, redelivered, dropped_dead, recoveries, participants

    cppclass Report "ef::SharedQueue::RecoveryReport":
        int64_t participants, lost, redelivered, dropped
        bint damaged

    cppclass Member "ef::SharedQueue::Participant":
        uint64_t index
        int64_t pid, start_time
        bint alive

    cppclass Part "ef::SharedQueue::Part":
        const void *data
        size_t length

    cppclass Core "ef::SharedQueue":
        Core() except +
        bint create(const char *path, const SharedConfig &config, mode_t mode, SharedFailure *failure)
        bint attach(const char *path, unsigned flags, SharedFailure *failure)
        const SharedConfig &config()
        int descriptor()
        void close()
        void stop_waiting()
        void poll(bint on)
        bint inherit(SharedFailure *failure)
        bint rejoin(SharedFailure *failure)
        int64_t put(const void *records, const uint32_t *lengths, int64_t n, int64_t deadline, int *status)
        int64_t put_parts(const Part *parts, const int64_t *ends, int64_t begin, int64_t n, int64_t deadline, int *status)
        int64_t put_each(const void **data, const uint32_t *lengths, int64_t n, int64_t deadline, int *status)
        int64_t get(void *out, uint32_t *lengths, int64_t most, int64_t least, int64_t deadline, int64_t linger,
                    int *status)
        int64_t wait_items "await_many"(int64_t least, int64_t deadline, int *status)
        int64_t wait_room "await_room"(int64_t deadline, int *status)
        int64_t reserve(int64_t n, int64_t deadline, void **slots, uint64_t *ticket, int *status)
        int64_t commit(uint64_t ticket, int64_t n, const uint32_t *lengths, int64_t deadline, int *status)
        void abort(uint64_t ticket, int64_t n)
        int64_t view(int64_t n, int64_t deadline, const void **records, uint32_t *lengths, uint64_t *ticket, int *status)
        void release(uint64_t ticket, int64_t n)
        uint64_t stride()
        void configure(int64_t limit, int64_t high, int64_t low)
        int64_t clear()
        bint shut_down(bint immediate)
        bint is_down()
        bint closed()
        int64_t size()
        int64_t room()
        int64_t limit()
        int64_t high()
        int64_t low()
        int writable(int64_t deadline)
        Report recover()
        int64_t participants(Member *list, int64_t most)
        Counters counters()

cdef extern from *:
    """
    // What a call puts, in the form in which it has it.
    struct Source {
        const char *records = nullptr;  // one behind the other,
        size_t itemsize = 0;
        const void **each = nullptr;    // or messages here and there,
        const uint32_t *lengths = nullptr;
        const ef::SharedQueue::Part *parts = nullptr;  // or messages in parts, each up to one of the ends
        const int64_t *ends = nullptr;

        int64_t put(ef::SharedQueue &queue, int64_t done, int64_t n, int64_t deadline, int *status) const {
            if (records)
                return queue.put(records + static_cast<size_t>(done) * itemsize, nullptr, n - done, deadline, status);
            if (each) return queue.put_each(each + done, lengths + done, n - done, deadline, status);
            return queue.put_parts(parts, ends, done, n, deadline, status);
        }
    };
    // Calls under way of one handle, so that close() can wait for them. Under a GIL it protects the numbers.
    struct Calls {
    #ifdef Py_GIL_DISABLED
        std::atomic<int64_t> number{0};
        std::atomic<bool> closing{false};
    #else
        int64_t number = 0;
        bool closing = false;
    #endif
        bool enter() {
            ++number;
            if (!closing) return true;
            --number;
            return false;
        }
        void leave() { --number; }
        void come_back() { ++number; }  // also to a handle that was closed meanwhile, to leave it again
    };
    """
    cppclass Source:
        const char *records
        size_t itemsize
        const void **each
        const uint32_t *lengths
        const Part *parts
        const int64_t *ends
        int64_t put(Core &queue, int64_t done, int64_t n, int64_t deadline, int *status) nogil

    cppclass Calls:
        int64_t number
        bint closing
        bint enter()
        void leave()
        void come_back()

cdef int64_t GIL_BYTES = 16384
cdef enum:
    SCRATCH = 4096      # bytes of the stack in which a small message is received
    MOST_AT_ONCE = 256  # messages taken at a time
    HEADER = 8
    ALIGN = 16
    WIRE_VERSION = 1
cdef object ndarray = np.ndarray
cdef object empty_array = np.empty
cdef object dumps = pickle.dumps
cdef object loads = pickle.loads

MAX_ITEM = 2**32 - 1
MAX_SLOTS = 2**24 - 64
MAX_PARTICIPANTS = 1023
MAX_DTYPE = 255
MAX_DIMENSIONS = 8

cdef enum:
    BYTES
    RECORDS
    PICKLE


cdef int fail(int status) except -1:
    if status == EDGEFAST_SHUT_DOWN:
        raise ShutDown
    if status == EDGEFAST_EMPTY:
        raise Empty
    if status == EDGEFAST_DAMAGED:
        raise CorruptedError("segment: expected states, indices and lengths of a SharedQueue, got others: it is damaged")
    if status == EDGEFAST_DETACHED:
        raise ValueError("SharedQueue: expected an open queue, got a closed one")
    raise Full


cdef int refuse(SharedFailure *failure, str path) except -1:
    text = failure.text.decode("utf-8", "replace")
    error = failure.error
    if error == SharedError.exists:
        raise FileExistsError(failure.os_error, "a SharedQueue of that name exists", path)
    if error == SharedError.missing:
        raise FileNotFoundError(failure.os_error, "no SharedQueue of that name", path)
    if error == SharedError.not_ready:
        raise FileNotFoundError(errno.ENOENT, text, path)
    if error == SharedError.not_allowed:
        raise PermissionError(failure.os_error or errno.EPERM, text, path)
    if error == SharedError.not_a_queue or error == SharedError.corrupted:
        raise CorruptedError(f"segment {path}: {text}")
    if error == SharedError.version:
        raise VersionMismatch(f"segment {path}: {text}")
    if error == SharedError.bad_config:
        raise ValueError(text)
    if error == SharedError.crowded:
        raise RuntimeError(f"SharedQueue {path}: {text}, and all of them are alive")
    raise OSError(failure.os_error, text or strerror(failure.os_error).decode(), path)


@cython.auto_pickle(False)  # SharedBase pickles
cdef class SharedCore:
    cdef Core *core
    cdef Calls calls
    cdef int64_t blocks  # of reserve() and view() that are open
    cdef int64_t era     # forks since this handle was made
    cdef object __weakref__
    cdef readonly object dtype
    cdef readonly tuple shape
    cdef int64_t item
    cdef int64_t capacity
    cdef int kind
    cdef bint inherited  # from the process that forked this one, and not used since
    cdef bint refuses  # what it does not take at once, it does not wait for
    cdef bint drops

    def __cinit__(self):
        self.core = new Core()
        self.calls.closing = True  # until it is a queue's
        self.shape = ()

    def __dealloc__(self):
        del self.core

    # ---- handles ---------------------------------------------------------------------------------------------------

    def _open_new(self, str path, dict settings, int mode):
        cdef SharedConfig config
        cdef SharedFailure failure
        cdef int i
        cdef bytes dtype = settings["dtype"].encode()
        config.kind = settings["serializer"] == RECORDS
        config.serializer = settings["serializer"]
        config.policy = settings["policy"]
        config.drop_of_dead = not settings["redeliver"]
        config.capacity = settings["capacity"]
        config.itemsize = settings["itemsize"]
        config.participants = settings["participants"]
        config.dimensions = len(settings["shape"])
        for i in range(<int>config.dimensions):
            config.shape[i] = settings["shape"][i]
        memcpy(config.dtype, PyBytes_AS_STRING(dtype), min(len(dtype), 255))
        cdef bytes encoded = path.encode()
        cdef const char *file = PyBytes_AS_STRING(encoded)
        cdef bint done
        with nogil:
            done = self.core.create(file, config, mode, &failure)
        if not done:
            refuse(&failure, path)
        self.core.configure(settings["capacity"], settings["high"], settings["low"])
        self._settle()

    def _open(self, str path, unsigned int owner):
        cdef SharedFailure failure
        cdef stat_t found
        cdef bytes encoded = path.encode()
        cdef const char *file = PyBytes_AS_STRING(encoded)
        cdef bint done
        with nogil:
            done = self.core.attach(file, 1, &failure)  # of any user: the file's owner is checked below
        if not done:
            refuse(&failure, path)
        try:
            if fstat(self.core.descriptor(), &found) != 0:
                raise OSError(errno.EBADF, "fstat", path)
            if found.st_uid != owner:
                raise PermissionError(
                    errno.EPERM, f"expected a segment of user {owner}, got one of user {found.st_uid}", path
                )
            if self.core.config().serializer == PICKLE:
                if found.st_uid != os.geteuid():
                    raise PermissionError(
                        errno.EPERM,
                        f"expected bytes or records, got pickles of user {found.st_uid}, which are never unpickled here "
                        f"(user {os.geteuid()})",
                        path,
                    )
                if found.st_mode & 0o022:
                    raise PermissionError(
                        errno.EPERM,
                        f"expected a segment that only we may write, got mode {found.st_mode & 0o777:#o}: who can write "
                        "a pickle can run code in its reader",
                        path,
                    )
            if self.core.config().serializer > PICKLE or (
                (self.core.config().serializer == RECORDS) != (self.core.config().kind == 1)
            ):
                raise CorruptedError(f"segment {path}: expected serializer 0 to 2, got {self.core.config().serializer}")
        except BaseException:
            self.core.close()
            raise
        self._settle()

    cdef void _settle(self):
        self.core.poll(True)
        self.calls.closing = False
        self.item = self.core.config().itemsize
        self.capacity = self.core.config().capacity
        self.kind = self.core.config().serializer
        self.refuses = self.core.config().policy != 0
        self.drops = 1 <= self.core.config().policy <= 3

    def _config(self):
        cdef stat_t found
        cdef int i
        if fstat(self.core.descriptor(), &found) != 0:
            raise OSError(errno.EBADF, "fstat")
        return {
            "serializer": self.kind, "policy": self.core.config().policy,
            "redeliver": not self.core.config().drop_of_dead,
            "capacity": self.core.config().capacity, "itemsize": self.core.config().itemsize,
            "participants": self.core.config().participants, "nonce": self.core.config().nonce,
            "dtype": (<bytes>self.core.config().dtype).decode("ascii", "replace"),
            "shape": tuple(self.core.config().shape[i] for i in range(<int>self.core.config().dimensions)),
            "uid": found.st_uid, "file": (found.st_dev, found.st_ino),
        }

    def _set_dtype(self, dtype, tuple shape):
        self.dtype = dtype
        self.shape = shape

    cdef int enter(self) except -1:
        while not self.calls.enter():
            self._check_open()
        return 0

    cdef int handle_signals(self) except -1:
        """Signal handlers, between two waits of a call. A handler may close the queue, or fork: then no call is under way."""
        self.calls.leave()
        try:
            PyErr_CheckSignals()
            self._check_open()
        finally:
            self.calls.come_back()
        return 0

    def _check_open(self):
        """ValueError when the handle is closed; in a forked child the first use, which makes it a participant."""
        cdef SharedFailure failure
        if not self.calls.closing:
            return
        if not self.inherited:
            fail(EDGEFAST_DETACHED)
        if not self.core.rejoin(&failure):
            refuse(&failure, "of the parent process")
        self.inherited = False
        self.calls.closing = False

    @property
    def closed(self):
        """Whether close() was called on this handle."""
        return bool(self.calls.closing) and not self.inherited

    def _close(self):
        if self.calls.closing:
            self.inherited = False
            return
        if self.blocks > 0:
            raise BufferError(f"close: expected no open reserve() or view() block, got {self.blocks}")
        self.calls.closing = True
        while self.calls.number > 0:
            self.core.stop_waiting()
            with nogil:
                nap()
        self.core.close()

    def _after_fork(self):
        cdef SharedFailure failure
        self.era += 1
        self.blocks = 0
        self.calls.number = 0
        if self.calls.closing and not self.inherited:
            return
        # As if closed until the child uses it: most children use few of the queues they inherit.
        self.calls.closing = True
        self.inherited = self.core.inherit(&failure)

    # ---- copies in -------------------------------------------------------------------------------------------------

    cdef int64_t push(self, Source *source, int64_t n, int64_t size, int64_t deadline, int *status) except -1:
        """How many of n items, of `size` bytes together, were accepted; when not all, *status says why."""
        cdef int64_t done = 0, more
        status[0] = EDGEFAST_OK
        self.enter()
        try:
            if size <= GIL_BYTES:
                done = source.put(self.core[0], 0, n, kTry, status)
                if done == n or status[0] != EDGEFAST_FULL or self.refuses or deadline == kDontBlock:
                    return done
            while True:
                with nogil:
                    more = source.put(self.core[0], done, n, deadline, status)
                done += more
                if status[0] != EDGEFAST_INTERRUPTED:
                    return done
                self.handle_signals()
        finally:
            self.calls.leave()

    cdef int put_one(self, object item, int64_t deadline) except -1:
        """The status: EDGEFAST_OK also when the policy dropped the item."""
        cdef Source source
        cdef const void *data
        cdef uint32_t length
        cdef Py_buffer view
        cdef int status = EDGEFAST_OK
        cdef int64_t done
        source.each, source.lengths = &data, &length
        if self.kind == BYTES and PyBytes_CheckExact(item):
            self.check_length(PyBytes_GET_SIZE(item))
            data, length = PyBytes_AS_STRING(item), <uint32_t>PyBytes_GET_SIZE(item)
            done = self.push(&source, 1, length, deadline, &status)
            return EDGEFAST_OK if done == 1 else status
        if self.kind == PICKLE:
            return self.put_pickle(item, deadline)
        if self.kind == RECORDS:
            owner = borrow(self, item, &view, None, fits(item, None, ndarray, self.dtype, self.shape))
            source.records, source.itemsize = <const char *>view.buf, view.len
        else:
            self.borrow_bytes(item, &view)
            data, length = view.buf, <uint32_t>view.len
        try:
            done = self.push(&source, 1, view.len, deadline, &status)
        finally:
            PyBuffer_Release(&view)
        return EDGEFAST_OK if done == 1 else status

    cdef int check_length(self, int64_t length) except -1:
        if length > self.item:
            raise ValueError(f"item: expected at most {self.item} bytes, got {length}")
        return 0

    cdef int borrow_bytes(self, object item, Py_buffer *view) except -1:
        try:
            PyObject_GetBuffer(item, view, PyBUF_SIMPLE)
        except TypeError:
            raise TypeError(f"item: expected bytes, or what has their memory, got {type(item).__name__}") from None
        except (BufferError, ValueError) as error:
            raise ValueError(f"item: expected contiguous memory, got {type(item).__name__} ({error})") from None
        if view.len > self.item:
            PyBuffer_Release(view)
            self.check_length(view.len)
        return 0

    cdef int put_pickle(self, object item, int64_t deadline) except -1:
        cdef int status = EDGEFAST_OK
        cdef int64_t done = self.put_pickles((item,), deadline, &status)
        return EDGEFAST_OK if done == 1 else status

    cdef int64_t put_pickles(self, tuple items, int64_t deadline, int *status) except -1:
        # All of them pickled before the first is put: one that cannot be leaves the queue as it was.
        cdef Source source
        cdef Frames frames = Frames.__new__(Frames)
        self._check_open()
        for item in items:
            frames.add(item, self.item)
        source.parts, source.ends = frames.parts.data(), frames.ends.data()
        return self.push(&source, len(items), frames.size, deadline, status) if items else 0

    def put(self, item, block=True, timeout=None):
        """Copy an item in; without room wait, drop or refuse, as the policy says.

        Args:
            item: bytes or any object with contiguous memory, of up to itemsize bytes; a record as RecordQueue.put takes
                it; with serializer "pickle" any picklable object, whose arrays are copied once, into shared memory.
            block: False raises Full at once instead of waiting.
            timeout: seconds to wait at most; None for ever.

        Raises:
            Full: no room in time (policies "block" and "error").
            ShutDown: the queue was shut down, by any process.
            TypeError: an item of another type; a timeout that is no number.
            ValueError: more bytes than itemsize; a record of another shape; a negative timeout; the handle is closed.
            CorruptedError: the segment is damaged.
        """
        cdef int64_t deadline = kForever if block is True and timeout is None else to_deadline(block, timeout)
        cdef int status = self.put_one(item, deadline)
        if status != EDGEFAST_OK:
            fail(status)

    def put_nowait(self, item):
        """put(item, block=False)."""
        cdef int status = self.put_one(item, kDontBlock)
        if status != EDGEFAST_OK:
            fail(status)

    def _offer(self, item):
        """put() of a task: False when it has to wait for room."""
        cdef int status = self.put_one(item, kTry)
        if status == EDGEFAST_FULL and not self.refuses:
            return False
        if status != EDGEFAST_OK:
            fail(status)
        return True

    def put_many(self, items, block=True, timeout=None):
        """Copy items in, in order, as many as find room in time.

        Args:
            items: a list or another sequence; of a queue of records an (n, *shape) array or a list.
            block: False puts what fits now.
            timeout: seconds to wait at most, for all of them; None for ever.

        Returns:
            The number accepted: items[:n] were put. Less than all after the time-out, after shutdown() while waiting, or
            when the policy dropped the rest. Items of the same call that "drop_oldest" or "latest" replaced count as
            accepted.

        Raises:
            ShutDown: the queue was shut down before the first item.
            TypeError, ValueError, CorruptedError: as for put; no item was put.
        """
        cdef int64_t deadline = kForever if block is True and timeout is None else to_deadline(block, timeout)
        cdef int status = EDGEFAST_OK
        cdef int64_t done
        if self.kind == RECORDS:
            done = self.put_records(items, deadline, &status)
        elif self.kind == BYTES:
            done = self.put_messages(batch_of(items), deadline, &status)
        else:
            done = self.put_pickles(batch_of(items), deadline, &status)
        if status == EDGEFAST_DAMAGED or (done == 0 and (status == EDGEFAST_SHUT_DOWN or status == EDGEFAST_DETACHED)):
            fail(status)
        return done

    cdef int64_t put_records(self, object records, int64_t deadline, int *status) except -1:
        cdef Source source
        cdef Py_buffer view
        owner = borrow(self, records, &view, True, fits(records, True, ndarray, self.dtype, self.shape))
        try:
            source.records, source.itemsize = <const char *>view.buf, self.item
            if view.len == 0:
                self._check_open()
                return 0
            return self.push(&source, len(owner), view.len, deadline, status)
        finally:
            PyBuffer_Release(&view)

    cdef int64_t put_messages(self, tuple items, int64_t deadline, int *status) except -1:
        cdef Source source
        cdef int64_t n = len(items), i = 0, size = 0, others = 0
        cdef const void **data
        cdef uint32_t *lengths
        cdef Py_buffer *views = NULL
        if n == 0:
            self._check_open()
            return 0
        data = <const void **>malloc(n * (sizeof(void *) + sizeof(uint32_t)))
        if data == NULL:
            raise MemoryError
        lengths = <uint32_t *>(data + n)
        try:
            for i in range(n):
                item = items[i]
                if PyBytes_CheckExact(item):
                    self.check_length(PyBytes_GET_SIZE(item))
                    data[i] = PyBytes_AS_STRING(item)
                    lengths[i] = <uint32_t>PyBytes_GET_SIZE(item)
                else:
                    if views == NULL:
                        views = <Py_buffer *>malloc((n - i) * sizeof(Py_buffer))
                        if views == NULL:
                            raise MemoryError
                    self.borrow_bytes(item, &views[others])
                    data[i] = views[others].buf
                    lengths[i] = <uint32_t>views[others].len
                    others += 1
                size += lengths[i]
            source.each, source.lengths = data, lengths
            return self.push(&source, n, size, deadline, status)
        finally:
            for i in range(others):
                PyBuffer_Release(&views[i])
            free(views)
            free(data)

    # ---- copies out ------------------------------------------------------------------------------------------------

    cdef int64_t pull(self, char *out, uint32_t *lengths, int64_t most, int64_t least, int64_t deadline, int64_t linger,
                      int *status) except -1:
        cdef int64_t n
        self.enter()
        try:
            if most * self.item <= GIL_BYTES and least <= 1:
                n = self.core.get(out, lengths, most, 1, kTry, 0, status)
                if n > 0 or status[0] != EDGEFAST_EMPTY or deadline == kDontBlock or deadline == kTry:
                    return n
            while True:
                with nogil:
                    n = self.core.get(out, lengths, most, least, deadline, linger, status)
                if status[0] != EDGEFAST_INTERRUPTED:
                    return n
                self.handle_signals()
        finally:
            self.calls.leave()

    cdef int64_t there(self, int64_t least, int64_t deadline, int64_t linger, int *status) except -1:
        """Waits for items without taking them, the first until the deadline and then for more; how many there are."""
        cdef int64_t n, until
        status[0] = EDGEFAST_OK
        self.enter()
        try:
            n = self.core.size()
            while n == 0:
                if deadline == kDontBlock:
                    status[0] = EDGEFAST_SHUT_DOWN if self.core.is_down() and self.core.size() == 0 else EDGEFAST_EMPTY
                    return 0
                with nogil:
                    n = self.core.wait_items(1, deadline, status)
                if status[0] == EDGEFAST_INTERRUPTED:
                    self.handle_signals()
                elif n == 0:
                    return 0
            if n >= least or linger == 0:
                return n
            until = now_ns() + linger
            while True:
                with nogil:
                    n = self.core.wait_items(least, until, status)
                if status[0] == EDGEFAST_INTERRUPTED:
                    self.handle_signals()
                    continue
                if status[0] == EDGEFAST_DAMAGED or status[0] == EDGEFAST_DETACHED:
                    return 0
                status[0] = EDGEFAST_OK
                return n if n > 0 else max(1, self.core.size())
        finally:
            self.calls.leave()

    cdef object get_message(self, int64_t deadline, int *status):
        """The bytes of the oldest item; None with *status."""
        cdef char scratch[SCRATCH]
        cdef uint32_t length = 0
        cdef int64_t n
        if self.item > SCRATCH:
            return self.get_big_message(deadline, status)
        n = self.pull(scratch, &length, 1, 1, deadline, 0, status)
        if n == 0 or status[0] == EDGEFAST_DAMAGED:
            return None
        return PyBytes_FromStringAndSize(scratch, length)

    cdef object get_big_message(self, int64_t deadline, int *status):
        """The same, with memory only for the length it has. Bytes, or for a pickle with buffers a bytearray."""
        cdef uint32_t length = 0
        cdef uint64_t ticket = 0
        cdef const void *start = NULL
        cdef char *to
        cdef int64_t n
        self.enter()
        try:
            n = self.core.view(1, kTry, &start, &length, &ticket, status)
            while n == 0:
                if status[0] != EDGEFAST_EMPTY and status[0] != EDGEFAST_INTERRUPTED:
                    return None
                if deadline == kDontBlock or deadline == kTry:
                    return None
                if status[0] == EDGEFAST_INTERRUPTED:
                    self.handle_signals()
                with nogil:
                    n = self.core.view(1, deadline, &start, &length, &ticket, status)
                if n == 0 and status[0] == EDGEFAST_EMPTY:
                    return None
            try:
                if status[0] == EDGEFAST_DAMAGED:
                    return None
                if self.kind == PICKLE and length > HEADER and (<const char *>start)[2] | (<const char *>start)[3]:
                    message = PyByteArray_FromStringAndSize(NULL, length)
                    to = PyByteArray_AS_STRING(message)
                else:
                    message = PyBytes_FromStringAndSize(NULL, length)
                    to = PyBytes_AS_STRING(message)
                if length <= GIL_BYTES:
                    memcpy(to, start, length)
                else:
                    with nogil:
                        memcpy(to, start, length)
            finally:
                self.core.release(ticket, 1)
            return message
        finally:
            self.calls.leave()

    cdef object get_record(self, object out, int64_t deadline, int *status):
        cdef Py_buffer view
        cdef object target = out
        if out is None:
            target = empty_array(self.shape, self.dtype)
        elif not fits(out, None, ndarray, self.dtype, self.shape) or not out.flags.carray:
            self._check_out(out, self.shape)
        PyObject_GetBuffer(target, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        try:
            self.pull(<char *>view.buf, NULL, 1, 1, deadline, 0, status)
        finally:
            PyBuffer_Release(&view)
        if status[0] != EDGEFAST_OK:
            return None
        return target if out is not None or self.shape else target[()]

    cdef object get_one(self, int64_t deadline, object out):
        cdef int status = EDGEFAST_OK
        if self.kind == RECORDS:
            item = self.get_record(out, deadline, &status)
        else:
            if out is not None:
                raise TypeError("out: expected None in a queue without a dtype, got an object")
            item = self.get_message(deadline, &status)
        if status != EDGEFAST_OK:
            fail(status)
        return unframed(item) if self.kind == PICKLE else item

    def get(self, block=True, timeout=None, *, out=None):
        """Take the oldest item, copied out of shared memory; wait for one when there is none.

        Once it has returned, the item is this process's alone: to have it redelivered if the process dies while working
        on it, use view().

        Args:
            block: False raises Empty at once instead of waiting.
            timeout: seconds to wait at most; None for ever.
            out: of a queue of records: C-contiguous array of the queue's dtype and shape to copy into.

        Returns:
            bytes; a record, as RecordQueue.get; an object, with serializer "pickle". An object that cannot be unpickled
            is gone when the exception of unpickling it comes.

        Raises:
            Empty: no item in time.
            ShutDown: the queue was shut down and is empty.
            TypeError, ValueError: out or timeout; the handle is closed.
            CorruptedError: the segment is damaged.
        """
        return self.get_one(kForever if block is True and timeout is None else to_deadline(block, timeout), out)

    def get_nowait(self):
        """get(block=False)."""
        return self.get_one(kDontBlock, None)

    def get_many(self, max_items=None, block=True, timeout=None, *, out=None, min_items=1, linger=0.0):
        """Take up to max_items items, oldest first; wait for the first like get.

        Args:
            max_items: most items to take; of a queue of records None for len(out).
            block, timeout: as for get.
            out: of a queue of records: (n, *shape) C-contiguous array of its dtype to copy into, n >= max_items.
            min_items: wait up to `linger` seconds after the first item until there are so many.
            linger: seconds.

        Returns:
            1 to max_items items: a list, or a (k, *shape) array of records, new or out[:k].

        Raises:
            Empty, ShutDown, TypeError, ValueError, CorruptedError: as for get; also ValueError when min_items > max_items.
        """
        cdef int64_t deadline = kForever if block is True and timeout is None else to_deadline(block, timeout)
        cdef int64_t most, least = 1, pause = 0
        if self.kind == RECORDS:
            return self.get_records(max_items, deadline, out, min_items, linger)
        if out is not None:
            raise TypeError("out: expected None in a queue without a dtype, got an object")
        if max_items is None:
            raise TypeError("max_items: expected an integer, got None")
        most = min(count(max_items, "max_items"), 2**62)
        if not (type(min_items) is int and min_items == 1):
            least = integer(min_items, "min_items", low=1, high=most)
        pause = <int64_t>(min(to_seconds(linger, "linger"), 3e9) * 1e9)
        return self.get_messages(min(most, self.capacity), min(least, self.capacity), deadline, pause)

    cdef object get_messages(self, int64_t most, int64_t least, int64_t deadline, int64_t pause):
        cdef int status = EDGEFAST_OK
        cdef int64_t n, i, at_once
        cdef uint32_t lengths[MOST_AT_ONCE]
        cdef char *scratch
        cdef list items = []
        if least > 1 and pause > 0 and self.there(least, deadline, pause, &status) == 0:
            fail(status)
        if self.item > SCRATCH:
            while len(items) < most and not (items and self.calls.closing):
                item = self.get_message(kTry if items else deadline, &status)
                if item is None:
                    break
                items.append(item)
        else:
            at_once = min(most, <int64_t>min(MOST_AT_ONCE, 65536 // self.item))
            scratch = <char *>malloc(at_once * self.item)
            if scratch == NULL:
                raise MemoryError
            try:
                while len(items) < most and not (items and self.calls.closing):
                    n = self.pull(scratch, lengths, min(at_once, most - len(items)), 1, kTry if items else deadline, 0,
                                  &status)
                    if n == 0 or status == EDGEFAST_DAMAGED:
                        break
                    for i in range(n):
                        items.append(PyBytes_FromStringAndSize(scratch + i * self.item, lengths[i]))
            finally:
                free(scratch)
        if status == EDGEFAST_DAMAGED or not items:
            fail(status)
        if self.kind == PICKLE:
            return [unframed(item) for item in items]
        return items

    cdef object get_records(self, object max_items, int64_t deadline, object out, object min_items, object linger):
        cdef Py_buffer view
        cdef int status = EDGEFAST_OK
        cdef int64_t n, there, pause = 0, most, least = 1
        cdef bint plain = type(linger) is float and <double>linger == 0 and type(min_items) is int and min_items == 1
        if plain and max_items is None and out is not None and fits(out, True, ndarray, self.dtype, self.shape) and len(out) and out.flags.carray:
            most = min(len(out), self.capacity)
        else:
            most, least = self._counts(max_items, min_items, out)
            pause = <int64_t>(min(to_seconds(linger, "linger"), 3e9) * 1e9)
            least = min(least, most)
        if out is None:
            there = self.there(least, deadline, pause, &status)
            if there == 0:
                fail(status)
            # What is there now.
            most = min(most, there)
            least, pause = 1, 0
            target = empty_array((most, *self.shape), self.dtype)
        else:
            target = out
        PyObject_GetBuffer(target, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        try:
            n = self.pull(<char *>view.buf, NULL, most, least, deadline, pause, &status)
        finally:
            PyBuffer_Release(&view)
        if n == 0 or status == EDGEFAST_DAMAGED:
            fail(status)
        return target if n == len(target) else target[:n]

    def drain(self):
        """Take everything that is there, without waiting: a list, or an array of records."""
        cdef int64_t n
        self.enter()
        n = self.core.size()
        self.calls.leave()
        try:
            if n == 0:
                raise Empty
            return self.get_many(n, False)
        except (Empty, ShutDown):
            return [] if self.kind != RECORDS else empty_array((0, *self.shape), self.dtype)

    # ---- in place --------------------------------------------------------------------------------------------------

    def reserve(self, n=1, timeout=None, *, size=None):
        """Write items in place: `with q.reserve(n) as slots:` takes 1 to n free slots that lie in a row, waiting for
        room as put does; leaving the block puts them, an exception gives them up.

        slots is a writable (k, *shape) array of records, or a list of k writable memoryviews of `size` bytes (None:
        itemsize), with whatever the memory held. They must not be used after the block. An open block holds up nobody:
        its items take their place in the order when it ends, and if others have filled the queue meanwhile, leaving the
        block waits for room, until the same time-out. Items of a process that dies inside the block are counted as lost.

        Raises (on entering or leaving):
            Full: no room in time, or the policy would drop the items. On leaving, `accepted` tells how many were put.
            ShutDown: the queue was shut down.
            TypeError: n, size or timeout; a queue of pickles, or size in a queue of records.
            ValueError: n or size out of range, a negative timeout; the handle is closed.
            CorruptedError: the segment is damaged.
        """
        cdef int64_t length = self.item
        if self.kind == PICKLE:
            raise TypeError("reserve: expected a queue of bytes or records, got serializer 'pickle'")
        if size is not None:
            if self.kind == RECORDS:
                raise TypeError("size: expected None in a queue of records, got an object")
            length = integer(size, "size", low=0, high=self.item)
        return Open(self, self._batch(n), length, to_deadline(True, timeout), True)

    def view(self, n=1, timeout=None):
        """Read items in place: `with q.view(n) as items:` takes 1 to n items that lie in a row, waiting for the first as
        get does; leaving the block frees their slots, after an exception too.

        items is a read-only (k, *shape) array of records, a list of read-only memoryviews, or a list of objects whose
        arrays are read-only and lie in shared memory. They must not be used after the block. Should this process die
        inside the block, the items are redelivered to others (or dropped: on_consumer_death).

        Raises (on entering):
            Empty: no item in time.
            ShutDown: the queue was shut down and is empty.
            TypeError, ValueError: n or timeout; 1 <= n <= maxsize; the handle is closed.
            CorruptedError: the segment is damaged.
        """
        return Open(self, self._batch(n), 0, to_deadline(True, timeout), False)

    # ---- the rest --------------------------------------------------------------------------------------------------

    def clear(self):
        """Discard all items; returns how many."""
        cdef int64_t n
        self.enter()
        with nogil:
            n = self.core.clear()
        self.calls.leave()
        return n

    def shutdown(self, immediate=False):
        """Close the queue for good, for all processes: put raises ShutDown, get does once the queue is empty. Wakes
        everybody who waits, in every process.

        Args:
            immediate: discard what is in the queue.

        Raises:
            CorruptedError: the segment is damaged.
        """
        cdef bint now = bool(immediate), done
        self.enter()
        with nogil:
            done = self.core.shut_down(now)
        self.calls.leave()
        if not done:
            fail(EDGEFAST_DAMAGED)

    def qsize(self):
        """Number of items in the queue: neither those in open reserve() blocks nor those in open view() blocks."""
        cdef int64_t n
        self.enter()
        n = self.core.size()
        self.calls.leave()
        return n

    def empty(self):
        """True when there is no item."""
        return self.qsize() == 0

    def full(self):
        """True when put would find no room: maxsize items, or the gate is closed."""
        cdef int64_t n
        self.enter()
        n = self.core.room()
        self.calls.leave()
        return n == 0

    @property
    def is_shutdown(self):
        """True after shutdown(), by any process."""
        self._check_open()
        return bool(self.core.is_down())

    @property
    def writable(self):
        """True while the gate is open."""
        self._check_open()
        return not self.core.closed()

    def wait_writable(self, timeout=None):
        """Wait until the gate is open; False when it was not in time.

        Raises:
            ShutDown: the queue was shut down.
        """
        cdef int64_t deadline = to_deadline(True, timeout)
        cdef int status
        self.enter()
        try:
            while True:
                with nogil:
                    status = self.core.writable(deadline)
                if status != EDGEFAST_INTERRUPTED:
                    break
                self.handle_signals()
        finally:
            self.calls.leave()
        if status != EDGEFAST_OK and status != EDGEFAST_FULL:
            fail(status)
        return status == EDGEFAST_OK

    def recover(self):
        """Look for participants that died and recover what they left. Whoever waits does so five times a second: this is
        for those who do not wait, and to know.

        Returns:
            A RecoveryReport of what this call found.

        Raises:
            CorruptedError: what they left makes no sense.
        """
        cdef Report report
        self.enter()
        with nogil:
            report = self.core.recover()
        self.calls.leave()
        if report.damaged:
            fail(EDGEFAST_DAMAGED)
        return RecoveryReport(report.participants, report.lost, report.redelivered, report.dropped)

    def participants(self):
        """The handles attached, of all processes, as a list of Participant."""
        cdef int64_t n, i
        cdef Member *members = <Member *>malloc(1024 * sizeof(Member))
        if members == NULL:
            raise MemoryError
        try:
            self.enter()
            n = min(<int64_t>1024, self.core.participants(members, 1024))
            self.calls.leave()
            return [Participant(members[i].pid, members[i].start_time, bool(members[i].alive)) for i in range(n)]
        finally:
            free(members)

    def _configure(self, int64_t limit, int64_t high, int64_t low):
        self.enter()
        self.core.configure(limit, high, low)
        self.calls.leave()

    def _settings(self):
        """(maxsize, high, low), which another participant may have changed."""
        cdef int64_t limit, high, low
        self.enter()
        limit, high, low = self.core.limit(), self.core.high(), self.core.low()
        self.calls.leave()
        limit = max(1, min(limit, self.capacity))
        high = max(0, min(high, limit))
        return limit, high, max(0, min(low, high - 1))

    def _await_items(self, double timeout, int64_t wanted=1):
        """For tasks: items there within the time, without taking any. Raises as get_many does, but never Empty."""
        cdef int status = EDGEFAST_OK
        cdef int64_t n, deadline = now_ns() + <int64_t>(timeout * 1e9)
        self.enter()
        try:
            with nogil:
                n = self.core.wait_items(min(wanted, self.capacity), deadline, &status)
        finally:
            self.calls.leave()
        if n == 0 and status != EDGEFAST_EMPTY and status != EDGEFAST_INTERRUPTED:
            fail(status)
        return n

    def _await_room(self, double timeout):
        """The same for room."""
        cdef int status = EDGEFAST_OK
        cdef int64_t n, deadline = now_ns() + <int64_t>(timeout * 1e9)
        self.enter()
        try:
            with nogil:
                n = self.core.wait_room(deadline, &status)
        finally:
            self.calls.leave()
        if n == 0 and status != EDGEFAST_FULL and status != EDGEFAST_INTERRUPTED:
            fail(status)
        return n

    def _counters(self):
        cdef Counters c
        self.enter()
        c = self.core.counters()
        self.calls.leave()
        return {
            "current_buffer_used": c.size, "tasks_waiting_send": c.waiting_put, "tasks_waiting_receive": c.waiting_get,
            "put_count": c.puts, "get_count": c.gets, "cleared": c.cleared, "dropped_newest": c.dropped_newest,
            "dropped_oldest": c.dropped_oldest, "refused": c.refused, "full_waits": c.full_waits,
            "empty_waits": c.empty_waits, "wakeups": c.wakeups, "high_events": c.high_events, "peak": c.peak,
            "writable": not c.closed, "bytes_used": c.bytes, "sojourn": c.sojourn, "lost": c.lost,
            "redelivered": c.redelivered, "dropped_dead": c.dropped_dead, "participants": c.participants,
        }


cdef extern from *:
    """
    #include <time.h>
    static void nap() {
        const struct timespec t = {0, 200000};
        nanosleep(&t, nullptr);
    }
    """
    void nap() nogil


# ---- pickles ---------------------------------------------------------------------------------------------------------


cdef class Frames:
    """Pickles with their buffers, as the parts of messages."""

    cdef vector[Part] parts
    cdef vector[int64_t] ends
    cdef vector[Py_buffer] views
    cdef int64_t size
    cdef list owners  # of the memory of the parts

    def __cinit__(self):
        self.owners = []

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.views.size()):
            PyBuffer_Release(&self.views[i])

    cdef int add(self, object item, int64_t most) except -1:
        cdef list buffers = []
        cdef int64_t n, i, at, start
        cdef bytes stream = dumps(item, 5, buffer_callback=buffers.append)
        cdef bytes head
        cdef uint8_t *header
        cdef Py_buffer view
        n = len(buffers)
        if n > 65535:
            # No header counts so many: they travel inside the stream.
            buffers, n = [], 0
            stream = dumps(item, 5)
        at = HEADER + 8 * n + len(stream)
        if at > most:
            too_big(most, at)
        head = PyBytes_FromStringAndSize(NULL, HEADER + 8 * n)
        header = <uint8_t *>PyBytes_AS_STRING(head)
        put_header(header, n, len(stream))
        self.owners.append(head)
        self.owners.append(stream)
        self.part(header, HEADER + 8 * n)
        self.part(PyBytes_AS_STRING(stream), len(stream))
        for i in range(n):
            raw = buffers[i].raw()  # one dimension of bytes, C or Fortran contiguous as the object is
            PyObject_GetBuffer(raw, &view, PyBUF_SIMPLE)
            self.views.push_back(view)
            put_length(header, i, view.len)
            start = (at + ALIGN - 1) // ALIGN * ALIGN
            self.part(padding, start - at)
            self.part(view.buf, view.len)
            at = start + view.len
        if at > most:
            too_big(most, at)
        self.ends.push_back(<int64_t>self.parts.size())
        self.size += at
        return 0

    cdef int part(self, const void *data, int64_t length) except -1:
        cdef Part part
        part.data, part.length = data, length
        self.parts.push_back(part)
        return 0


cdef int too_big(int64_t most, int64_t got) except -1:
    raise ValueError(f"item: expected at most {most} bytes pickled, got {got}")


cdef extern from *:
    """
    static const char padding[16] = {};
    // Little-endian on every machine, at any address.
    static void put_number(uint8_t *to, uint64_t value, int bytes) {
        for (int i = 0; i < bytes; ++i) to[i] = static_cast<uint8_t>(value >> 8 * i);
    }
    static uint64_t get_number(const uint8_t *from, int bytes) {
        uint64_t value = 0;
        for (int i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(from[i]) << 8 * i;
        return value;
    }
    static void put_header(uint8_t *to, int64_t buffers, int64_t stream) {
        to[0] = 1;
        to[1] = 0;
        put_number(to + 2, static_cast<uint64_t>(buffers), 2);
        put_number(to + 4, static_cast<uint64_t>(stream), 4);
    }
    static void put_length(uint8_t *to, int64_t i, int64_t length) {
        put_number(to + 8 + 8 * i, static_cast<uint64_t>(length), 8);
    }
    """
    const char padding[16]
    uint64_t get_number(const uint8_t *start, int size)
    void put_header(uint8_t *to, int64_t buffers, int64_t stream)
    void put_length(uint8_t *to, int64_t i, int64_t length)


cdef object bad_frame(str expected, object got):
    return CorruptedError(f"item: expected a pickle with {expected}, got {got}")


cdef object unframed(object message):
    """The object of a message that holds a pickle; its arrays keep the message's memory."""
    cdef Py_buffer view
    cdef const uint8_t *header
    cdef int64_t size, n, stream, i, at, start, length
    if PyBytes_CheckExact(message) and PyBytes_GET_SIZE(message) > HEADER:
        header = <const uint8_t *>PyBytes_AS_STRING(message)
        if header[2] | header[3]:
            message = bytearray(message)  # arrays that were writable are so again
    PyObject_GetBuffer(message, &view, PyBUF_SIMPLE)
    try:
        size = view.len
        header = <const uint8_t *>view.buf
        if size < HEADER:
            raise bad_frame(f"a header of {HEADER} bytes", size)
        if header[0] != WIRE_VERSION or header[1] != 0:
            raise bad_frame(f"version {WIRE_VERSION}", (header[0], header[1]))
        n = get_number(header + 2, 2)
        stream = get_number(header + 4, 4)
        at = HEADER + 8 * n
        if at > size or stream > size - at:
            raise bad_frame("lengths inside its message", f"{n} buffers and {stream} bytes of {size}")
        memory = memoryview(message)
        pickled = memory[at : at + stream]
        if n == 0:
            return loads(pickled)
        at += stream
        buffers = []
        for i in range(n):
            length = <int64_t>min(get_number(header + HEADER + 8 * i, 8), <uint64_t>1 << 62)
            start = (at + ALIGN - 1) // ALIGN * ALIGN
            if start > size or length > size - start:
                raise bad_frame("lengths inside its message", f"buffer {i} of {length} bytes at {start} of {size}")
            buffers.append(memory[start : start + length])
            at = start + length
        return loads(pickled, buffers=buffers)
    finally:
        PyBuffer_Release(&view)


# ---- blocks ----------------------------------------------------------------------------------------------------------


cdef class Slots:
    """The memory of slots that a block holds."""

    cdef SharedCore queue
    cdef void *start
    cdef Py_ssize_t size
    cdef bint readonly

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.readonly and flags & PyBUF_WRITABLE == PyBUF_WRITABLE:
            raise BufferError("items in view() are read-only")
        buffer.buf = self.start
        buffer.obj = self
        buffer.len = self.size
        buffer.readonly = self.readonly
        buffer.itemsize = 1
        buffer.format = b"B"
        buffer.ndim = 1
        buffer.shape = &self.size
        buffer.strides = &buffer.itemsize
        buffer.suboffsets = NULL
        buffer.internal = NULL


cdef Slots slots_at(SharedCore queue, void *start, Py_ssize_t size, bint readonly):
    cdef Slots slots = Slots.__new__(Slots)
    slots.queue, slots.start, slots.size, slots.readonly = queue, start, size, readonly
    return slots


@cython.no_gc_clear  # __dealloc__ needs the queue
cdef class Open:
    """What reserve() and view() return: takes slots on entry, puts or frees them on exit."""

    cdef SharedCore queue
    cdef int64_t n, length, deadline, count, era
    cdef bint writes
    cdef uint64_t ticket
    cdef object items

    def __cinit__(self, SharedCore queue, int64_t n, int64_t length, int64_t deadline, bint writes):
        self.queue, self.n, self.length, self.deadline, self.writes = queue, n, length, deadline, writes

    def __enter__(self):
        cdef void *start = NULL
        cdef uint32_t lengths[MOST_AT_ONCE]
        cdef int status = EDGEFAST_OK
        cdef int64_t n = min(self.n, <int64_t>MOST_AT_ONCE)
        cdef SharedCore q = self.queue
        if self.count:
            raise RuntimeError("expected a new reserve() or view(), got one that is open")
        q.enter()
        try:
            # Without giving up the GIL if there is nothing to wait for.
            if self.writes:
                self.count = q.core.reserve(n, kTry, &start, &self.ticket, &status)
            else:
                self.count = q.core.view(n, kTry, <const void **>&start, lengths, &self.ticket, &status)
            while self.count == 0 and (
                (status == EDGEFAST_FULL and not q.refuses) or status == EDGEFAST_EMPTY or status == EDGEFAST_INTERRUPTED
            ):
                if status == EDGEFAST_INTERRUPTED:
                    q.handle_signals()
                with nogil:
                    if self.writes:
                        self.count = q.core.reserve(n, self.deadline, &start, &self.ticket, &status)
                    else:
                        self.count = q.core.view(
                            n, self.deadline, <const void **>&start, lengths, &self.ticket, &status
                        )
                if status != EDGEFAST_INTERRUPTED:
                    break
            if self.count and q.calls.closing:
                # close() has found no block open; once this call is over, what is being read goes as if we had died.
                if self.writes:
                    q.core.abort(self.ticket, self.count)
                self.count, status = 0, EDGEFAST_DETACHED
        finally:
            q.calls.leave()
        if self.count == 0:
            fail(status)
        self.era = q.era
        q.blocks += 1
        try:
            if status == EDGEFAST_DAMAGED:
                fail(status)
            self.items = self.wrap(<char *>start, lengths)
        except BaseException:
            self.close(False, None)
            raise
        return self.items

    cdef object wrap(self, char *start, uint32_t *lengths):
        cdef SharedCore q = self.queue
        cdef int64_t i, stride
        if q.kind == RECORDS:
            slots = slots_at(q, start, self.count * q.item, not self.writes)
            return np.frombuffer(slots, q.dtype).reshape((self.count, *q.shape))
        stride = q.core.stride()
        views = [
            memoryview(slots_at(q, start + i * stride, self.length if self.writes else lengths[i], not self.writes))
            for i in range(self.count)
        ]
        return [unframed(view) for view in views] if q.kind == PICKLE else views

    def __exit__(self, kind, value, traceback):
        if self.count:
            self.close(kind is None, Full)

    def __dealloc__(self):
        if self.count:
            self.close(False, None)

    cdef int close(self, bint commit, object error) except -1:
        cdef SharedCore q = self.queue
        cdef int64_t count = self.count, done = 0
        cdef uint32_t lengths[64]
        cdef int status = EDGEFAST_OK
        cdef int64_t i
        self.count = 0
        items, self.items = self.items, None
        if self.era != q.era:
            return 0  # a forked child: the block is its parent's
        q.blocks -= 1
        if items is not None and self.writes or q.kind == BYTES:
            revoke(items)
        if not self.writes:
            q.core.release(self.ticket, count)
            return 0
        if not commit:
            q.core.abort(self.ticket, count)
            return 0
        for i in range(min(count, <int64_t>64)):
            lengths[i] = <uint32_t>self.length
        q.enter()
        try:
            done = q.core.commit(self.ticket, count, lengths, kTry, &status)
            while done < count and (status == EDGEFAST_INTERRUPTED or (status == EDGEFAST_FULL and not q.refuses)):
                if status == EDGEFAST_INTERRUPTED:
                    q.handle_signals()
                with nogil:
                    done += q.core.commit(self.ticket + done, count - done, lengths, self.deadline, &status)
                if status != EDGEFAST_INTERRUPTED:
                    break
        finally:
            if done < count:
                q.core.abort(self.ticket + done, count - done)
            q.calls.leave()
        if done < count:
            if status == EDGEFAST_FULL:
                full = Full()
                full.accepted = done
                raise full
            fail(status)
        return 0


cdef int revoke(object items) except -1:
    """The slots are somebody else's from now on."""
    if type(items) is ndarray:
        items.flags.writeable = False
    elif items is not None:
        for view in items:
            try:
                view.release()
            except BufferError:  # an array over it lives on, and reads what the next owner writes
                pass
    return 0
