"""The C-level part of RecordQueue: csrc/queues/record_queue.hpp for Python. Twin of _record_pure.py.

Copies of up to GIL_BYTES run with the GIL held: giving it up and taking it back costs as much as copying that much.
Nothing ever sleeps with the GIL held.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetContext, PyCapsule_New, PyCapsule_SetContext
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int64_t, uint64_t

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
    to_deadline,
    to_seconds,
)

from edgefast.queues._types import Empty, Full, ShutDown

cdef extern from "queues/record_queue.hpp" nogil:
    const char *EDGEFAST_RECORD_QUEUE
    ctypedef struct edgefast_record_queue:
        pass

cdef extern from "queues/record_queue.hpp" namespace "ef" nogil:
    cppclass Counters "ef::RecordQueue::Counters":
        int64_t size, waiting_put, waiting_get, puts, gets, cleared, dropped_newest, dropped_oldest, refused
        int64_t full_waits, empty_waits, wakeups, high_events, peak, closed, bytes
        double sojourn

    cppclass Policy "ef::RecordQueue::Policy":
        pass

    cppclass Core "ef::RecordQueue":
        Core() except +
        bint allocate(int64_t itemsize, int64_t capacity, Policy policy)
        void configure(int64_t limit, int64_t high, int64_t low)
        int64_t put(const void *records, int64_t n, int64_t deadline, int *status)
        int64_t get(void *out, int64_t most, int64_t least, int64_t deadline, int64_t linger, int *status)
        int64_t wait_items "await"(int64_t deadline, int *status)
        int64_t reserve(int64_t n, int64_t deadline, void **slots, uint64_t *ticket, int *status)
        void commit(uint64_t ticket, int64_t n)
        void abort(uint64_t ticket, int64_t n)
        int64_t view(int64_t n, int64_t deadline, const void **records, uint64_t *ticket, int *status)
        void release(uint64_t ticket, int64_t n)
        int64_t clear()
        void shut_down(bint immediate)
        bint is_down()
        bint closed()
        int64_t size()
        int64_t room()
        int64_t itemsize()
        int writable(int64_t deadline)
        void forget_waiters()
        edgefast_record_queue *handle()
        Counters counters()

cdef int64_t GIL_BYTES = 16384
cdef object ndarray = np.ndarray
cdef object empty_array = np.empty


cdef int fail(int status) except -1:
    if status == EDGEFAST_SHUT_DOWN:
        raise ShutDown
    if status == EDGEFAST_EMPTY:
        raise Empty
    raise Full


cdef void forget_handle(object capsule) noexcept:
    cdef void *queue = PyCapsule_GetContext(capsule)
    Py_DECREF(<object>queue)


cdef class RecordCore:
    cdef Core *core  # apart: its cache lines need an alignment that Python's allocator does not give
    cdef object __weakref__
    cdef readonly object dtype
    cdef readonly tuple shape
    cdef int64_t item
    cdef int64_t capacity
    cdef bint refuses  # what it does not take at once, it does not wait for

    def __cinit__(self):
        self.core = new Core()

    def __dealloc__(self):
        del self.core

    def _allocate(self, dtype, tuple shape, int64_t itemsize, int64_t capacity, int policy):
        if not self.core.allocate(itemsize, capacity, <Policy>policy):
            raise MemoryError(f"maxsize: expected room for {capacity} records of {itemsize} bytes, got none")
        self.dtype = dtype
        self.shape = shape
        self.item = itemsize
        self.capacity = capacity
        self.refuses = policy != 0

    def _configure(self, int64_t limit, int64_t high, int64_t low):
        self.core.configure(limit, high, low)

    # ---- copies ----------------------------------------------------------------------------------------------------

    cdef int64_t push(self, const char *records, int64_t n, int64_t deadline, int *status) except -1:
        cdef int64_t done = 0, more
        status[0] = EDGEFAST_OK
        if n * self.item <= GIL_BYTES:
            done = self.core.put(records, n, kTry, status)
            if done == n or status[0] == EDGEFAST_OK or status[0] == EDGEFAST_SHUT_DOWN:
                return done
            if status[0] == EDGEFAST_FULL and self.refuses:
                return done
        while True:
            with nogil:
                more = self.core.put(records + done * self.item, n - done, deadline, status)
            done += more
            if status[0] != EDGEFAST_INTERRUPTED:
                return done
            if PyErr_CheckSignals() < 0 and done == 0:
                return -1

    cdef int64_t pull(self, char *out, int64_t most, int64_t least, int64_t deadline, int64_t linger,
                      int *status) except -1:
        cdef int64_t n
        if most * self.item <= GIL_BYTES and least <= 1:
            n = self.core.get(out, most, 1, kTry, 0, status)
            if n > 0 or status[0] == EDGEFAST_SHUT_DOWN:
                return n
            if status[0] == EDGEFAST_EMPTY and deadline == kDontBlock:
                return 0
        while True:
            with nogil:
                n = self.core.get(out, most, least, deadline, linger, status)
            if status[0] != EDGEFAST_INTERRUPTED:
                return n
            PyErr_CheckSignals()

    def put(self, value, block=True, timeout=None):
        cdef Py_buffer view
        cdef int status = EDGEFAST_OK
        cdef int64_t deadline = kForever if block is True and timeout is None else to_deadline(block, timeout)
        owner = borrow(self, value, &view, None, fits(value, None, ndarray, self.dtype, self.shape))
        try:
            self.push(<const char *>view.buf, 1, deadline, &status)
        finally:
            PyBuffer_Release(&view)
        if status != EDGEFAST_OK:
            fail(status)

    def put_many(self, records, block=True, timeout=None):
        cdef Py_buffer view
        cdef int status = EDGEFAST_OK
        cdef int64_t deadline = kForever if block is True and timeout is None else to_deadline(block, timeout)
        cdef int64_t n, done = 0
        owner = borrow(self, records, &view, True, fits(records, True, ndarray, self.dtype, self.shape))
        n = len(owner)
        try:
            done = self.push(<const char *>view.buf, n, deadline, &status)
        finally:
            PyBuffer_Release(&view)
        if done == 0 and status == EDGEFAST_SHUT_DOWN:
            raise ShutDown
        return done

    def get(self, block=True, timeout=None, *, out=None):
        cdef Py_buffer view
        cdef int status = EDGEFAST_OK
        cdef int64_t deadline = kForever if block is True and timeout is None else to_deadline(block, timeout)
        cdef object target = out
        if out is None:
            target = empty_array(self.shape, self.dtype)
        elif not fits(out, None, ndarray, self.dtype, self.shape) or not out.flags.carray:
            self._check_out(out, self.shape)
        PyObject_GetBuffer(target, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        try:
            self.pull(<char *>view.buf, 1, 1, deadline, 0, &status)
        finally:
            PyBuffer_Release(&view)
        if status != EDGEFAST_OK:
            fail(status)
        return target if out is not None or self.shape else target[()]

    def get_many(self, max_items=None, block=True, timeout=None, *, out=None, min_items=1, linger=0.0):
        cdef Py_buffer view
        cdef int status = EDGEFAST_OK
        cdef int64_t deadline = kForever if block is True and timeout is None else to_deadline(block, timeout)
        cdef int64_t n, there, pause = 0, most, least = 1
        cdef bint plain = type(linger) is float and <double>linger == 0 and type(min_items) is int and min_items == 1
        if plain and max_items is None and out is not None and fits(out, True, ndarray, self.dtype, self.shape) and len(out) and out.flags.carray:
            most = min(len(out), self.capacity)
        else:
            most, least = self._counts(max_items, min_items, out)
            pause = <int64_t>(min(to_seconds(linger, "linger"), 3e9) * 1e9)
        if out is None:
            there = self.core.size()
            while there == 0:
                if deadline == kDontBlock:
                    fail(EDGEFAST_SHUT_DOWN if self.core.is_down() and self.core.size() == 0 else EDGEFAST_EMPTY)
                with nogil:
                    there = self.core.wait_items(deadline, &status)
                if status == EDGEFAST_INTERRUPTED:
                    PyErr_CheckSignals()
                elif there == 0:
                    fail(status)
            # What is there now; a batch that may grow while it lingers gets room for all of it.
            target = empty_array((min(most, there if least <= there else self.capacity), *self.shape), self.dtype)
            most = min(most, len(target))
            least = min(least, most)
        else:
            target = out
        PyObject_GetBuffer(target, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        try:
            n = self.pull(<char *>view.buf, most, least, deadline, pause, &status)
        finally:
            PyBuffer_Release(&view)
        if n == 0:
            fail(status)
        return target if n == len(target) else target[:n]

    # ---- in place --------------------------------------------------------------------------------------------------

    def reserve(self, n=1, timeout=None):
        return Open(self, self._batch(n), to_deadline(True, timeout), True)

    def view(self, n=1, timeout=None):
        return Open(self, self._batch(n), to_deadline(True, timeout), False)

    # ---- the rest --------------------------------------------------------------------------------------------------

    def clear(self):
        return self.core.clear()

    def shutdown(self, immediate=False):
        self.core.shut_down(bool(immediate))

    def qsize(self):
        return self.core.size()

    def empty(self):
        return self.core.size() == 0

    def full(self):
        return self.core.room() == 0

    @property
    def is_shutdown(self):
        return self.core.is_down()

    @property
    def writable(self):
        return not self.core.closed()

    def wait_writable(self, timeout=None):
        cdef int64_t deadline = to_deadline(True, timeout)
        cdef int status
        while True:
            with nogil:
                status = self.core.writable(deadline)
            if status == EDGEFAST_INTERRUPTED:
                PyErr_CheckSignals()
                continue
            if status == EDGEFAST_SHUT_DOWN:
                raise ShutDown
            return status == EDGEFAST_OK

    def native_handle(self):
        capsule = PyCapsule_New(<void *>self.core.handle(), EDGEFAST_RECORD_QUEUE, &forget_handle)
        PyCapsule_SetContext(capsule, <void *>self)
        Py_INCREF(self)
        return capsule

    def _forget_waiters(self):
        self.core.forget_waiters()

    def _counters(self):
        cdef Counters c = self.core.counters()
        return {
            "current_buffer_used": c.size, "tasks_waiting_send": c.waiting_put, "tasks_waiting_receive": c.waiting_get,
            "put_count": c.puts, "get_count": c.gets, "cleared": c.cleared, "dropped_newest": c.dropped_newest,
            "dropped_oldest": c.dropped_oldest, "refused": c.refused, "full_waits": c.full_waits,
            "empty_waits": c.empty_waits, "wakeups": c.wakeups, "high_events": c.high_events, "peak": c.peak,
            "writable": not c.closed, "bytes_used": c.bytes, "sojourn": c.sojourn,
        }


cdef class Slots:
    """The memory of claimed slots, for numpy."""

    cdef RecordCore queue
    cdef void *start
    cdef Py_ssize_t size
    cdef bint readonly

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.readonly and flags & PyBUF_WRITABLE == PyBUF_WRITABLE:
            raise BufferError("records in view() are read-only")
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


@cython.no_gc_clear  # __dealloc__ needs the queue
cdef class Open:
    """What reserve() and view() return: claims on entry, ends the claim on exit."""

    cdef RecordCore queue
    cdef int64_t n, deadline, count
    cdef bint writes
    cdef uint64_t ticket
    cdef object array

    def __cinit__(self, RecordCore queue, int64_t n, int64_t deadline, bint writes):
        self.queue, self.n, self.deadline, self.writes = queue, n, deadline, writes

    def __enter__(self):
        cdef void *start = NULL
        cdef int status = EDGEFAST_OK
        cdef Slots slots = Slots.__new__(Slots)
        if self.count:
            raise RuntimeError("expected a new reserve() or view(), got one that is open")
        while True:
            with nogil:
                if self.writes:
                    self.count = self.queue.core.reserve(self.n, self.deadline, &start, &self.ticket, &status)
                else:
                    self.count = self.queue.core.view(
                        self.n, self.deadline, <const void **>&start, &self.ticket, &status
                    )
            if status != EDGEFAST_INTERRUPTED:
                break
            PyErr_CheckSignals()
        if self.count == 0:
            fail(status)
        slots.queue, slots.start, slots.readonly = self.queue, start, not self.writes
        slots.size = self.count * self.queue.item
        try:
            self.array = np.frombuffer(slots, self.queue.dtype).reshape((self.count, *self.queue.shape))
        except BaseException:
            self.close(False)
            raise
        return self.array

    def __exit__(self, kind, value, traceback):
        if self.count:
            self.close(kind is None)

    def __dealloc__(self):
        if self.count:
            self.close(False)

    cdef void close(self, bint commit):
        cdef int64_t count = self.count
        self.count = 0
        if self.array is not None and self.writes:
            self.array.flags.writeable = False  # the slots are somebody else's now
        self.array = None
        if not self.writes:
            self.queue.core.release(self.ticket, count)
        elif commit:
            self.queue.core.commit(self.ticket, count)
        else:
            self.queue.core.abort(self.ticket, count)
