/* RecordQueue for C, C++ and Cython: records in and out without Python and without the GIL.
 *
 * Compile with -I$(python -c "import edgefast; print(edgefast.get_include())"). In Python, queue.native_handle() is a
 * capsule; PyCapsule_GetPointer(capsule, EDGEFAST_RECORD_QUEUE) is the edgefast_record_queue below, valid as long as
 * the capsule. All functions may be called from any thread, with or without the GIL; hold it only for timeout 0.
 *
 * timeout: nanoseconds to wait at most; 0 does not wait, negative waits for ever. *status may not be NULL.
 */
#ifndef EDGEFAST_RECORD_QUEUE_H
#define EDGEFAST_RECORD_QUEUE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The name changes when the struct does: a module built against another version gets NULL and an exception. */
#define EDGEFAST_RECORD_QUEUE "edgefast.RecordQueue.1"

enum edgefast_status {
    EDGEFAST_OK = 0,
    EDGEFAST_FULL = 1,        /* no room in time */
    EDGEFAST_EMPTY = 2,       /* no record in time */
    EDGEFAST_SHUT_DOWN = 3,   /* put: shut down; get: shut down and empty */
    EDGEFAST_INTERRUPTED = 4, /* a signal handler ran; call again to go on */
    EDGEFAST_BUSY = 5         /* internal */
};

typedef struct edgefast_record_queue {
    void *queue;
    size_t itemsize; /* bytes of a record */

    /* Copies n records in, waiting for room as the queue's policy says. Returns how many were accepted. */
    int64_t (*put)(void *queue, const void *records, int64_t n, int64_t timeout, int *status);
    /* Waits for the first record, copies 1 to n out. Returns how many. */
    int64_t (*get)(void *queue, void *out, int64_t n, int64_t timeout, int *status);

    /* Claims 1 to n slots that lie in a row; returns how many, or 0. *slots is where to write, *ticket is for the end:
     * commit makes them records, abort gives them up. Records put behind them wait for one of the two. */
    int64_t (*reserve)(void *queue, int64_t n, int64_t timeout, void **slots, uint64_t *ticket, int *status);
    void (*commit)(void *queue, uint64_t ticket, int64_t n);
    void (*abort)(void *queue, uint64_t ticket, int64_t n);
    /* Takes 1 to n records that lie in a row, to be read in place; release frees their slots. */
    int64_t (*view)(void *queue, int64_t n, int64_t timeout, const void **records, uint64_t *ticket, int *status);
    void (*release)(void *queue, uint64_t ticket, int64_t n);

    int64_t (*size)(void *queue);
    void (*shutdown)(void *queue);
} edgefast_record_queue;

#ifdef __cplusplus
}
#endif

#endif
