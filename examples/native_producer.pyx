# A producer in native code: a C++ thread puts records without the GIL while Python consumes.
# distutils: language = c++
# cython: language_level=3
from libc.stdint cimport int64_t

from edgefast.queues.record cimport edgefast_record_queue, record_queue

cdef extern from *:
    """
    #include <cstdint>
    #include <thread>
    #include "edgefast/record_queue.h"

    struct Sample { int64_t number; double value; };

    // Runs without Python: every third sample is written in place, the others are copied in.
    static void produce(const edgefast_record_queue* q, int64_t n) {
        int status = EDGEFAST_OK;
        for (int64_t i = 0; i < n && status != EDGEFAST_SHUT_DOWN;) {
            const Sample sample = {i, 0.5 * static_cast<double>(i)};
            if (i % 3) {
                i += q->put(q->queue, &sample, 1, -1, &status);
            } else {
                void* slot;
                uint64_t ticket;
                if (q->reserve(q->queue, 1, -1, &slot, &ticket, &status)) {
                    *static_cast<Sample*>(slot) = sample;
                    q->commit(q->queue, ticket, 1);
                    ++i;
                }
            }
        }
        q->shutdown(q->queue);
    }

    static std::thread* start(const edgefast_record_queue* q, int64_t n) { return new std::thread(produce, q, n); }
    static void finish(std::thread* worker) {
        worker->join();
        delete worker;
    }
    """
    cppclass thread "std::thread":
        pass
    thread *start(const edgefast_record_queue *q, int64_t n) except +
    void finish(thread *worker) nogil


cdef class Producer:
    """Puts n records of dtype [("number", "i8"), ("value", "f8")] into a RecordQueue, then shuts it down."""

    cdef thread *worker
    cdef edgefast_record_queue *queue
    cdef object handle

    def __init__(self, queue, int64_t n):
        self.handle = queue.native_handle()  # keeps the queue alive
        self.queue = record_queue(self.handle)
        if self.queue.itemsize != 16:
            raise TypeError(f"queue: expected records of 16 bytes, got {self.queue.itemsize}")
        self.worker = start(self.queue, n)

    def join(self):
        if self.worker is not NULL:
            with nogil:
                finish(self.worker)
            self.worker = NULL

    def __dealloc__(self):
        if self.worker is not NULL:
            self.queue.shutdown(self.queue.queue)  # nobody may be left to make room
            self.join()
