# Time-outs and outcomes of calls: what RecordCore and SharedCore have in common.

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
