# What RecordCore and SharedCore have in common: time-outs and outcomes of calls, and the memory of records to put.

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_STRIDES,
    PyBuffer_IsContiguous,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.stdint cimport int64_t

cdef extern from "queues/record_queue.hpp" nogil:
    int EDGEFAST_OK, EDGEFAST_FULL, EDGEFAST_EMPTY, EDGEFAST_SHUT_DOWN, EDGEFAST_INTERRUPTED, EDGEFAST_BUSY

cdef extern from "queues/record_queue.hpp" namespace "ef" nogil:
    const int64_t kForever, kDontBlock, kTry
    int64_t now_ns()


cdef inline int64_t to_deadline(object block, object timeout) except -3:
    """kDontBlock, kForever or a time, out of (block, timeout) as queue.Queue takes them."""
    cdef double seconds
    if not block:
        return kDontBlock
    if timeout is None:
        return kForever
    seconds = to_seconds(timeout, "timeout")
    return kForever if seconds > 3e9 else now_ns() + <int64_t>(seconds * 1e9)


cdef inline double to_seconds(object value, str name) except -1.0:
    cdef double seconds
    if isinstance(value, (bool, str, bytes)):
        raise TypeError(f"'{name}' must be a number or None, not {type(value).__name__}")
    try:
        seconds = float(value)
    except TypeError:
        raise TypeError(f"'{name}' must be a number or None, not {type(value).__name__}") from None
    if not seconds >= 0:
        raise ValueError(f"'{name}' must be a non-negative number")
    return seconds


cdef inline bint fits(object value, object first, object ndarray, object dtype, tuple shape) except -1:
    """Whether it is an array of that dtype and shape, behind a first dimension when `first` is not None."""
    if type(value) is not ndarray:
        return False
    found = value.dtype
    if found is not dtype and found != dtype:
        return False
    found = value.shape
    if first is None:
        return found == shape
    return len(found) == len(shape) + 1 and (not shape or found[1:] == shape)


cdef inline object borrow(object queue, object value, Py_buffer *view, object first, bint fitting):
    """The C-contiguous memory of the records that are put; returns whose it is."""
    if fitting:
        PyObject_GetBuffer(value, view, PyBUF_STRIDES)
        if PyBuffer_IsContiguous(view, b"C"):
            return value
        PyBuffer_Release(view)
    value = queue._one(value) if first is None else queue._many(value)
    PyObject_GetBuffer(value, view, PyBUF_C_CONTIGUOUS)
    return value
