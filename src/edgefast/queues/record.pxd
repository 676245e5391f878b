# RecordQueue for Cython: `from edgefast.queues.record cimport edgefast_record_queue, record_queue`, compiled with
# include_dirs=[edgefast.get_include()]. See edgefast/record_queue.h for what each function does.

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint64_t

cdef extern from "edgefast/record_queue.h" nogil:
    const char *EDGEFAST_RECORD_QUEUE
    cdef enum edgefast_status:
        EDGEFAST_OK
        EDGEFAST_FULL
        EDGEFAST_EMPTY
        EDGEFAST_SHUT_DOWN
        EDGEFAST_INTERRUPTED
        EDGEFAST_BUSY
    ctypedef struct edgefast_record_queue:
        void *queue
        size_t itemsize
        int64_t (*put)(void *queue, const void *records, int64_t n, int64_t timeout, int *status) noexcept nogil
        int64_t (*get)(void *queue, void *out, int64_t n, int64_t timeout, int *status) noexcept nogil
        int64_t (*reserve)(
            void *queue, int64_t n, int64_t timeout, void **slots, uint64_t *ticket, int *status
        ) noexcept nogil
        void (*commit)(void *queue, uint64_t ticket, int64_t n) noexcept nogil
        void (*abort)(void *queue, uint64_t ticket, int64_t n) noexcept nogil
        int64_t (*view)(
            void *queue, int64_t n, int64_t timeout, const void **records, uint64_t *ticket, int *status
        ) noexcept nogil
        void (*release)(void *queue, uint64_t ticket, int64_t n) noexcept nogil
        int64_t (*size)(void *queue) noexcept nogil
        void (*shutdown)(void *queue) noexcept nogil


cdef inline edgefast_record_queue *record_queue(object capsule) except NULL:
    """The queue behind RecordQueue.native_handle(); valid as long as the capsule."""
    return <edgefast_record_queue *>PyCapsule_GetPointer(capsule, EDGEFAST_RECORD_QUEUE)
