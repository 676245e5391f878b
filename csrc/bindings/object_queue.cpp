// Module edgefast.queues._native: QueueCore, the C-level part of edgefast.queues.Queue.
//
// Raw C API, because the type must traverse references that live in C++ memory. Every method runs under the GIL, or,
// on free-threaded builds, inside the object's critical section; both are given up only while a thread sleeps. The
// fast path of put and get takes no other lock and makes no system call.
//
// Rule for everything below: between the first and the last change of the ring no Python code may run (no allocation
// that can trigger a collection, no DECREF), because finalizers may use the queue.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <pthread.h>
#include <structmember.h>

#include <atomic>
#include <cmath>
#include <new>

#include "queues/gated_ring.hpp"
#include "queues/parker.hpp"

#if PY_VERSION_HEX < 0x030D0000
#define Py_BEGIN_CRITICAL_SECTION(op) {
#define Py_END_CRITICAL_SECTION() }
#endif

namespace {

PyObject* g_full;
PyObject* g_empty;
PyObject* g_shut_down;
PyObject* g_finish_events;  // calls the listeners of a queue

// Counts forks, so that a child can tell that the waiters it inherited do not exist.
std::atomic<uint64_t> g_generation{0};
void after_fork_in_child() { g_generation.fetch_add(1, std::memory_order_relaxed); }

struct Queue {
    PyObject_HEAD
    PyObject* weakrefs;
    ef::GatedRing<PyObject*> ring;
    ef::WaitList getters, putters, joiners, writers;
    uint64_t generation;
    int64_t unfinished;
    bool shut_down;
    bool listening;   // some listener wants to hear of the gate
    bool went_high, went_low;
    // statistics
    int64_t puts, gets, cleared, full_waits, empty_waits, wakeups, refused, high_events, peak;
    // One item in 64 is timed, one at a time.
    uint64_t sampled_position;
    int64_t sampled_at;  // 0: no sample under way
    double sojourn;      // moving average in seconds, negative before the first sample
    int64_t created_at;
};

constexpr uint64_t kSampleEvery = 64;

// ---- small parts, all under the caller's protection ----------------------------------------------------------------

void check_fork(Queue* q) {
    const uint64_t generation = g_generation.load(std::memory_order_relaxed);
    if (q->generation == generation) return;
    q->generation = generation;
    q->getters.forget();
    q->putters.forget();
    q->joiners.forget();
    q->writers.forget();
}

void wake(Queue* q, ef::WaitList& list, int64_t n) {
    if (list.empty()) return;
    check_fork(q);
    q->wakeups += list.wake(n);
}

void push(Queue* q, PyObject* item) {  // steals the reference
    const uint64_t position = q->ring.put_position();
    if (position % kSampleEvery == 0 && q->sampled_at == 0) {
        q->sampled_position = position;
        q->sampled_at = ef::now_ns();
    }
    if (q->ring.push(item)) {
        ++q->high_events;
        q->went_high = true;
    }
    ++q->puts;
    ++q->unfinished;
    if (q->ring.size() > q->peak) q->peak = q->ring.size();
}

PyObject* pop(Queue* q) {  // returns the ring's reference
    const uint64_t position = q->ring.get_position();
    if (q->sampled_at != 0 && position == q->sampled_position) {
        const double seconds = static_cast<double>(ef::now_ns() - q->sampled_at) * 1e-9;
        q->sojourn = q->sojourn < 0 ? seconds : q->sojourn + 0.125 * (seconds - q->sojourn);
        q->sampled_at = 0;
    }
    bool reopened = false;
    PyObject* item = q->ring.pop(&reopened);
    if (reopened) q->went_low = true;
    return item;
}

// After items were taken: whoever waits for room.
void after_take(Queue* q) {
    if (!q->putters.empty()) wake(q, q->putters, q->ring.room());
    if (!q->writers.empty() && !q->ring.closed()) wake(q, q->writers, INT64_MAX);
}

// Calls the listeners, outside of the operation: its result is final, and they may use the queue.
void tell_listeners(Queue* q) {
    if (!q->went_high && !q->went_low) return;
    const bool high = q->went_high, low = q->went_low;
    q->went_high = q->went_low = false;
    if (!q->listening) return;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject* result = PyObject_CallFunction(g_finish_events, "OOO", reinterpret_cast<PyObject*>(q),
                                             high ? Py_True : Py_False, low ? Py_True : Py_False);
    if (!result) PyErr_WriteUnraisable(reinterpret_cast<PyObject*>(q));
    Py_XDECREF(result);
    PyErr_Restore(type, value, traceback);
}

PyObject* raise(PyObject* type) {
    PyErr_SetNone(type);
    return nullptr;
}

// ---- arguments -----------------------------------------------------------------------------------------------------

constexpr int64_t kDontBlock = -1;

bool parse_seconds(PyObject* object, const char* name, double* out) {
    if (PyBool_Check(object) || !(PyFloat_Check(object) || PyIndex_Check(object) || PyNumber_Check(object))) {
        PyErr_Format(PyExc_TypeError, "'%s' must be a number or None, not %.100s", name, Py_TYPE(object)->tp_name);
        return false;
    }
    const double seconds = PyFloat_AsDouble(object);
    if (seconds == -1.0 && PyErr_Occurred()) return false;
    if (!(seconds >= 0)) {
        PyErr_Format(PyExc_ValueError, "'%s' must be a non-negative number", name);
        return false;
    }
    *out = seconds;
    return true;
}

int64_t deadline_in(double seconds) {
    // Beyond a century is for ever, and adding it would overflow.
    return seconds > 3e9 ? ef::kForever : ef::now_ns() + static_cast<int64_t>(seconds * 1e9);
}

// Deadline of (block, timeout) as queue.Queue takes them: kDontBlock, kForever, or a time.
bool parse_blocking(PyObject* block, PyObject* timeout, int64_t* deadline) {
    const int blocks = block ? PyObject_IsTrue(block) : 1;
    if (blocks < 0) return false;
    if (!blocks) {
        *deadline = kDontBlock;
        return true;
    }
    *deadline = ef::kForever;
    if (!timeout || timeout == Py_None) return true;
    double seconds;
    if (!parse_seconds(timeout, "timeout", &seconds)) return false;
    *deadline = deadline_in(seconds);
    return true;
}

// Positional and keyword arguments into slots[], by name; the first `required` must be there.
bool parse(const char* function, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames, const char* const* names,
           int count, int positional, int required, PyObject** slots) {
    if (nargs > positional) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %d positional arguments (%zd given)", function, positional, nargs);
        return false;
    }
    for (int i = 0; i < count; ++i) slots[i] = i < nargs ? args[i] : nullptr;
    const Py_ssize_t keywords = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    for (Py_ssize_t k = 0; k < keywords; ++k) {
        PyObject* const name = PyTuple_GET_ITEM(kwnames, k);
        int i = 0;
        while (i < count && PyUnicode_CompareWithASCIIString(name, names[i]) != 0) ++i;
        if (i == count) {
            PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", function, name);
            return false;
        }
        if (slots[i]) {
            PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument '%s'", function, names[i]);
            return false;
        }
        slots[i] = args[nargs + k];
    }
    for (int i = 0; i < required; ++i) {
        if (!slots[i]) {
            PyErr_Format(PyExc_TypeError, "%s() missing required argument '%s'", function, names[i]);
            return false;
        }
    }
    return true;
}

// ---- waiting -------------------------------------------------------------------------------------------------------

enum class Woken { yes, timed_out, error };

// Sleeps on the list until woken, the deadline, or a signal. The caller checks its condition again in every case and
// calls pass_on when it was woken for something it does not take.
Woken sleep_on(Queue* q, ef::WaitList& list, int64_t deadline, bool* was_woken) {
    check_fork(q);
    ef::Parker parker;
    list.add(&parker);
    PyThreadState* state = PyEval_SaveThread();
    parker.wait(deadline);
    PyEval_RestoreThread(state);
    *was_woken = !parker.listed;
    if (parker.listed) list.remove(&parker);
    if (PyErr_CheckSignals() < 0) return Woken::error;
    if (!*was_woken && deadline != ef::kForever && ef::now_ns() >= deadline) return Woken::timed_out;
    return Woken::yes;
}

// True when an item may be put. On false an exception is set.
bool wait_for_room(Queue* q, int64_t deadline, int64_t* waits) {
    bool counted = false, was_woken = false;
    for (;;) {
        if (q->shut_down) {
            PyErr_SetNone(g_shut_down);
            return false;
        }
        if (q->ring.room() > 0) return true;
        if (deadline == kDontBlock || (deadline != ef::kForever && ef::now_ns() >= deadline)) {
            ++q->refused;
            PyErr_SetNone(g_full);
            return false;
        }
        if (!counted) ++*waits;
        counted = true;
        const Woken woken = sleep_on(q, q->putters, deadline, &was_woken);
        if (woken == Woken::error) {
            // Woken and leaving without putting: the room is somebody else's now.
            if (was_woken && q->ring.room() > 0) wake(q, q->putters, 1);
            return false;
        }
    }
}

// True when `wanted` items are there, or the deadline passed with at least one. On false an exception is set.
bool wait_for_items(Queue* q, int64_t wanted, int64_t deadline) {
    bool counted = false, was_woken = false;
    for (;;) {
        if (q->ring.size() >= wanted) return true;
        if (q->shut_down) {
            if (!q->ring.empty()) return true;
            PyErr_SetNone(g_shut_down);
            return false;
        }
        if (deadline == kDontBlock || (deadline != ef::kForever && ef::now_ns() >= deadline)) {
            if (!q->ring.empty()) return true;
            PyErr_SetNone(g_empty);
            return false;
        }
        if (!counted) ++q->empty_waits;
        counted = true;
        const Woken woken = sleep_on(q, q->getters, deadline, &was_woken);
        if (woken == Woken::error) {
            if (was_woken && !q->ring.empty()) wake(q, q->getters, 1);
            return false;
        }
    }
}

// ---- operations, under protection ----------------------------------------------------------------------------------

PyObject* put_one(Queue* q, PyObject* item, int64_t deadline) {
    if (q->shut_down || q->ring.room() <= 0) {
        if (!wait_for_room(q, deadline, &q->full_waits)) return nullptr;
    }
    if (!q->ring.reserve(1)) return PyErr_NoMemory();
    Py_INCREF(item);
    push(q, item);
    if (!q->getters.empty()) wake(q, q->getters, 1);
    if (q->went_high) tell_listeners(q);
    Py_RETURN_NONE;
}

PyObject* get_one(Queue* q, int64_t deadline) {
    if (q->ring.empty() && !wait_for_items(q, 1, deadline)) return nullptr;
    PyObject* item = pop(q);
    ++q->gets;
    after_take(q);
    if (q->went_low) tell_listeners(q);
    return item;
}

#define EF_LOCKED(type, call)             \
    type locked_result;                   \
    Py_BEGIN_CRITICAL_SECTION(self);      \
    locked_result = (call);               \
    Py_END_CRITICAL_SECTION();            \
    return locked_result

Queue* as_queue(PyObject* self) { return reinterpret_cast<Queue*>(self); }

PyObject* queue_put(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    static const char* const names[] = {"item", "block", "timeout"};
    if (nargs == 1 && !kwnames) {
        EF_LOCKED(PyObject*, put_one(as_queue(self), args[0], ef::kForever));
    }
    PyObject* slots[3];
    int64_t deadline;
    if (!parse("put", args, nargs, kwnames, names, 3, 3, 1, slots)) return nullptr;
    if (!parse_blocking(slots[1], slots[2], &deadline)) return nullptr;
    EF_LOCKED(PyObject*, put_one(as_queue(self), slots[0], deadline));
}

PyObject* queue_put_nowait(PyObject* self, PyObject* item) {
    EF_LOCKED(PyObject*, put_one(as_queue(self), item, kDontBlock));
}

PyObject* queue_get(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    static const char* const names[] = {"block", "timeout"};
    if (nargs == 0 && !kwnames) {
        EF_LOCKED(PyObject*, get_one(as_queue(self), ef::kForever));
    }
    PyObject* slots[2];
    int64_t deadline;
    if (!parse("get", args, nargs, kwnames, names, 2, 2, 0, slots)) return nullptr;
    if (!parse_blocking(slots[0], slots[1], &deadline)) return nullptr;
    EF_LOCKED(PyObject*, get_one(as_queue(self), deadline));
}

PyObject* queue_get_nowait(PyObject* self, PyObject*) { EF_LOCKED(PyObject*, get_one(as_queue(self), kDontBlock)); }

// Puts as many items of a list or tuple as it can until the deadline; -1 on an exception.
int64_t put_items(Queue* q, PyObject* items, int64_t deadline) {
    const int64_t count = PySequence_Fast_GET_SIZE(items);
    int64_t done = 0;
    while (done < count) {
        if (!wait_for_room(q, deadline, &q->full_waits)) {
            // What was accepted stays accepted: time-out and shutdown end the call with their number.
            const bool ended = PyErr_ExceptionMatches(g_full) || (done > 0 && PyErr_ExceptionMatches(g_shut_down));
            if (!ended) return -1;
            PyErr_Clear();
            break;
        }
        int64_t n = q->ring.room();
        if (n > count - done) n = count - done;
        if (!q->ring.reserve(n)) {
            PyErr_NoMemory();
            return -1;
        }
        // The list may change while this thread sleeps: read its items only now.
        for (int64_t i = 0; i < n && done < PySequence_Fast_GET_SIZE(items); ++i, ++done) {
            PyObject* item = PySequence_Fast_GET_ITEM(items, done);
            Py_INCREF(item);
            push(q, item);
        }
        wake(q, q->getters, n);
        if (done < count && done >= PySequence_Fast_GET_SIZE(items)) break;
    }
    tell_listeners(q);
    return done;
}

PyObject* queue_put_many(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    static const char* const names[] = {"items", "block", "timeout"};
    PyObject* slots[3];
    int64_t deadline;
    if (!parse("put_many", args, nargs, kwnames, names, 3, 3, 1, slots)) return nullptr;
    if (!parse_blocking(slots[1], slots[2], &deadline)) return nullptr;
    if (!PySequence_Check(slots[0]) || PyUnicode_Check(slots[0]) || PyBytes_Check(slots[0])) {
        return PyErr_Format(PyExc_TypeError,
                            "items: expected a sequence such as a list, got %.100s (an iterator would lose what does not fit)",
                            Py_TYPE(slots[0])->tp_name);
    }
    PyObject* items = PySequence_Fast(slots[0], "items: expected a sequence");
    if (!items) return nullptr;
    int64_t done;
    Py_BEGIN_CRITICAL_SECTION(self);
    done = put_items(as_queue(self), items, deadline);
    Py_END_CRITICAL_SECTION();
    Py_DECREF(items);
    return done < 0 ? nullptr : PyLong_FromLongLong(done);
}

// Up to n items as a list; the list is allocated before the ring is touched.
PyObject* take(Queue* q, int64_t n) {
    for (;;) {
        const int64_t count = q->ring.size() < n ? q->ring.size() : n;
        PyObject* list = PyList_New(count);
        if (!list) return nullptr;
        if (q->ring.size() < count) {  // a finalizer run by the allocation took some
            Py_DECREF(list);
            continue;
        }
        for (int64_t i = 0; i < count; ++i) PyList_SET_ITEM(list, i, pop(q));
        q->gets += count;
        after_take(q);
        tell_listeners(q);
        return list;
    }
}

PyObject* get_items(Queue* q, int64_t most, int64_t least, int64_t deadline, double linger) {
    if (!wait_for_items(q, 1, deadline)) return nullptr;
    if (q->ring.size() < least && linger > 0 && !wait_for_items(q, least, deadline_in(linger))) {
        // Somebody else took the first item meanwhile: start again, unless this was a signal or the end.
        if (!PyErr_ExceptionMatches(g_empty)) return nullptr;
        PyErr_Clear();
        return get_items(q, most, least, deadline, linger);
    }
    return take(q, most);
}

bool parse_count(PyObject* object, const char* name, int64_t least, int64_t* out) {
    if (PyBool_Check(object) || !PyIndex_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s: expected an integer, got %.100s", name, Py_TYPE(object)->tp_name);
        return false;
    }
    const Py_ssize_t n = PyNumber_AsSsize_t(object, PyExc_OverflowError);
    if (n == -1 && PyErr_Occurred()) return false;
    if (n < least) {
        PyErr_Format(PyExc_ValueError, "%s: expected at least %lld, got %zd", name, static_cast<long long>(least), n);
        return false;
    }
    *out = n;
    return true;
}

PyObject* queue_get_many(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    static const char* const names[] = {"max_items", "block", "timeout", "min_items", "linger"};
    PyObject* slots[5];
    int64_t deadline, most, least = 1;
    double linger = 0;
    if (!parse("get_many", args, nargs, kwnames, names, 5, 3, 1, slots)) return nullptr;
    if (!parse_blocking(slots[1], slots[2], &deadline)) return nullptr;
    if (!parse_count(slots[0], "max_items", 1, &most)) return nullptr;
    if (slots[3] && !parse_count(slots[3], "min_items", 1, &least)) return nullptr;
    if (slots[4] && !parse_seconds(slots[4], "linger", &linger)) return nullptr;
    if (least > most)
        return PyErr_Format(PyExc_ValueError, "min_items: expected at most max_items (%lld), got %lld",
                            static_cast<long long>(most), static_cast<long long>(least));
    EF_LOCKED(PyObject*, get_items(as_queue(self), most, least, deadline, linger));
}

PyObject* queue_drain(PyObject* self, PyObject*) { EF_LOCKED(PyObject*, take(as_queue(self), INT64_MAX)); }

void finish_tasks(Queue* q, int64_t n) {
    q->unfinished -= n < q->unfinished ? n : q->unfinished;
    if (q->unfinished == 0) wake(q, q->joiners, INT64_MAX);
}

PyObject* clear_items(Queue* q) {
    PyObject* list = take(q, INT64_MAX);
    if (!list) return nullptr;
    const int64_t n = PyList_GET_SIZE(list);
    q->gets -= n;
    q->cleared += n;
    finish_tasks(q, n);
    Py_DECREF(list);  // last: finalizers may use the queue
    return PyLong_FromLongLong(n);
}
PyObject* queue_clear_items(PyObject* self, PyObject*) { EF_LOCKED(PyObject*, clear_items(as_queue(self))); }

PyObject* peek(Queue* q) {
    if (q->ring.empty()) return raise(q->shut_down ? g_shut_down : g_empty);
    return Py_NewRef(q->ring.at(0));
}
PyObject* queue_peek(PyObject* self, PyObject*) { EF_LOCKED(PyObject*, peek(as_queue(self))); }

PyObject* task_done(Queue* q) {
    if (q->unfinished <= 0) {
        PyErr_SetString(PyExc_ValueError, "task_done() called too many times");
        return nullptr;
    }
    finish_tasks(q, 1);
    Py_RETURN_NONE;
}
PyObject* queue_task_done(PyObject* self, PyObject*) { EF_LOCKED(PyObject*, task_done(as_queue(self))); }

PyObject* join(Queue* q) {
    bool was_woken;
    while (q->unfinished > 0)
        if (sleep_on(q, q->joiners, ef::kForever, &was_woken) == Woken::error) return nullptr;
    Py_RETURN_NONE;
}
PyObject* queue_join(PyObject* self, PyObject*) { EF_LOCKED(PyObject*, join(as_queue(self))); }

PyObject* shut_down(Queue* q, bool immediate) {
    PyObject* left = nullptr;
    if (immediate) {
        left = take(q, INT64_MAX);
        if (!left) return nullptr;
        const int64_t n = PyList_GET_SIZE(left);
        q->gets -= n;
        q->cleared += n;
        finish_tasks(q, n);
        wake(q, q->joiners, INT64_MAX);
    }
    q->shut_down = true;
    wake(q, q->getters, INT64_MAX);
    wake(q, q->putters, INT64_MAX);
    wake(q, q->writers, INT64_MAX);
    Py_XDECREF(left);
    Py_RETURN_NONE;
}
PyObject* queue_shutdown(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    static const char* const names[] = {"immediate"};
    PyObject* slots[1];
    if (!parse("shutdown", args, nargs, kwnames, names, 1, 1, 0, slots)) return nullptr;
    const int immediate = slots[0] ? PyObject_IsTrue(slots[0]) : 0;
    if (immediate < 0) return nullptr;
    EF_LOCKED(PyObject*, shut_down(as_queue(self), immediate != 0));
}

PyObject* queue_qsize(PyObject* self, PyObject*) {
    int64_t n;
    Py_BEGIN_CRITICAL_SECTION(self);
    n = as_queue(self)->ring.size();
    Py_END_CRITICAL_SECTION();
    return PyLong_FromLongLong(n);
}
PyObject* queue_empty(PyObject* self, PyObject*) {
    bool empty;
    Py_BEGIN_CRITICAL_SECTION(self);
    empty = as_queue(self)->ring.empty();
    Py_END_CRITICAL_SECTION();
    return PyBool_FromLong(empty);
}
PyObject* queue_full(PyObject* self, PyObject*) {
    bool full;
    Py_BEGIN_CRITICAL_SECTION(self);
    full = as_queue(self)->ring.room() == 0;
    Py_END_CRITICAL_SECTION();
    return PyBool_FromLong(full);
}

PyObject* wait_writable(Queue* q, int64_t deadline) {
    bool was_woken;
    while (q->ring.closed() && !q->shut_down) {
        if (deadline != ef::kForever && ef::now_ns() >= deadline) Py_RETURN_FALSE;
        if (sleep_on(q, q->writers, deadline, &was_woken) == Woken::error) return nullptr;
    }
    if (q->shut_down) return raise(g_shut_down);
    Py_RETURN_TRUE;
}
PyObject* queue_wait_writable(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    static const char* const names[] = {"timeout"};
    PyObject* slots[1];
    int64_t deadline;
    if (!parse("wait_writable", args, nargs, kwnames, names, 1, 1, 0, slots)) return nullptr;
    if (!parse_blocking(nullptr, slots[0], &deadline)) return nullptr;
    EF_LOCKED(PyObject*, wait_writable(as_queue(self), deadline));
}

// _configure(maxsize, high, low): values checked in Python; 0 for "none".
PyObject* configure(Queue* q, long long maxsize, long long high, long long low) {
    q->ring.configure(maxsize, high, low);
    after_take(q);
    Py_RETURN_NONE;
}
PyObject* queue_configure(PyObject* self, PyObject* args) {
    long long maxsize, high, low;
    if (!PyArg_ParseTuple(args, "LLL", &maxsize, &high, &low)) return nullptr;
    EF_LOCKED(PyObject*, configure(as_queue(self), maxsize, high, low));
}

PyObject* queue_listen(PyObject* self, PyObject* on) {
    const int yes = PyObject_IsTrue(on);
    if (yes < 0) return nullptr;
    Py_BEGIN_CRITICAL_SECTION(self);
    as_queue(self)->listening = yes != 0;
    Py_END_CRITICAL_SECTION();
    Py_RETURN_NONE;
}

PyObject* counters(Queue* q) {
    check_fork(q);
    return Py_BuildValue("(LLLLLLLLLLLLLLdd)", static_cast<long long>(q->ring.size()), static_cast<long long>(q->putters.size()),
                         static_cast<long long>(q->getters.size()), static_cast<long long>(q->puts),
                         static_cast<long long>(q->gets), static_cast<long long>(q->cleared),
                         static_cast<long long>(q->refused), static_cast<long long>(q->full_waits),
                         static_cast<long long>(q->empty_waits), static_cast<long long>(q->wakeups),
                         static_cast<long long>(q->high_events), static_cast<long long>(q->peak),
                         static_cast<long long>(q->unfinished), static_cast<long long>(q->ring.closed()), q->sojourn,
                         static_cast<double>(ef::now_ns() - q->created_at) * 1e-9);
}
PyObject* queue_counters(PyObject* self, PyObject*) { EF_LOCKED(PyObject*, counters(as_queue(self))); }

PyObject* queue_get_unfinished(PyObject* self, void*) {
    int64_t n;
    Py_BEGIN_CRITICAL_SECTION(self);
    n = as_queue(self)->unfinished;
    Py_END_CRITICAL_SECTION();
    return PyLong_FromLongLong(n);
}
PyObject* queue_get_is_shutdown(PyObject* self, void*) {
    bool yes;
    Py_BEGIN_CRITICAL_SECTION(self);
    yes = as_queue(self)->shut_down;
    Py_END_CRITICAL_SECTION();
    return PyBool_FromLong(yes);
}
PyObject* queue_get_writable(PyObject* self, void*) {
    bool yes;
    Py_BEGIN_CRITICAL_SECTION(self);
    yes = !as_queue(self)->ring.closed();
    Py_END_CRITICAL_SECTION();
    return PyBool_FromLong(yes);
}

// ---- the type ------------------------------------------------------------------------------------------------------

PyObject* queue_new(PyTypeObject* type, PyObject*, PyObject*) {
    auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
    PyObject* self = allocate(type, 0);
    if (!self) return nullptr;
    Queue* q = as_queue(self);
    new (&q->ring) ef::GatedRing<PyObject*>();
    new (&q->getters) ef::WaitList();
    new (&q->putters) ef::WaitList();
    new (&q->joiners) ef::WaitList();
    new (&q->writers) ef::WaitList();
    q->generation = g_generation.load(std::memory_order_relaxed);
    q->sojourn = -1;
    q->created_at = ef::now_ns();
    return self;
}

int queue_traverse(PyObject* self, visitproc visit, void* arg) {
    const Queue* q = as_queue(self);
    for (int64_t i = 0; i < q->ring.size(); ++i) Py_VISIT(q->ring.at(i));
    Py_VISIT(Py_TYPE(self));
    return 0;
}

int queue_clear(PyObject* self) {
    Queue* q = as_queue(self);
    bool reopened = false;
    while (!q->ring.empty()) Py_DECREF(q->ring.pop(&reopened));
    return 0;
}

void queue_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Queue* q = as_queue(self);
    if (q->weakrefs) PyObject_ClearWeakRefs(self);
    queue_clear(self);
    q->ring.~GatedRing();
    auto release = reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free));
    release(self);
    Py_DECREF(type);
}

PyCFunction fast(PyObject* (*f)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}

PyMethodDef queue_methods[] = {
    {"put", fast(queue_put), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"put_nowait", queue_put_nowait, METH_O, nullptr},
    {"get", fast(queue_get), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"get_nowait", queue_get_nowait, METH_NOARGS, nullptr},
    {"put_many", fast(queue_put_many), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"get_many", fast(queue_get_many), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"drain", queue_drain, METH_NOARGS, nullptr},
    {"clear", queue_clear_items, METH_NOARGS, nullptr},
    {"peek", queue_peek, METH_NOARGS, nullptr},
    {"task_done", queue_task_done, METH_NOARGS, nullptr},
    {"join", queue_join, METH_NOARGS, nullptr},
    {"shutdown", fast(queue_shutdown), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"qsize", queue_qsize, METH_NOARGS, nullptr},
    {"empty", queue_empty, METH_NOARGS, nullptr},
    {"full", queue_full, METH_NOARGS, nullptr},
    {"wait_writable", fast(queue_wait_writable), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"_configure", queue_configure, METH_VARARGS, nullptr},
    {"_listen", queue_listen, METH_O, nullptr},
    {"_counters", queue_counters, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef queue_getset[] = {
    {"unfinished_tasks", queue_get_unfinished, nullptr, nullptr, nullptr},
    {"is_shutdown", queue_get_is_shutdown, nullptr, nullptr, nullptr},
    {"writable", queue_get_writable, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyMemberDef queue_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, sizeof(PyObject) /* right behind the head */, READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};

PyType_Slot queue_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(queue_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(queue_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(queue_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(queue_clear)},
    {Py_tp_methods, queue_methods},
    {Py_tp_getset, queue_getset},
    {Py_tp_members, queue_members},
    {0, nullptr},
};

PyType_Spec queue_spec = {"edgefast.queues._native.QueueCore", sizeof(Queue), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, queue_slots};

int module_exec(PyObject* module) {
    PyObject* types = PyImport_ImportModule("edgefast.queues._types");
    if (!types) return -1;
    g_full = PyObject_GetAttrString(types, "Full");
    g_empty = PyObject_GetAttrString(types, "Empty");
    g_shut_down = PyObject_GetAttrString(types, "ShutDown");
    g_finish_events = PyObject_GetAttrString(types, "call_listeners");
    Py_DECREF(types);
    if (!g_full || !g_empty || !g_shut_down || !g_finish_events) return -1;
    PyObject* type = PyType_FromModuleAndSpec(module, &queue_spec, nullptr);
    if (!type) return -1;
    const int added = PyModule_AddObjectRef(module, "QueueCore", type);
    Py_DECREF(type);
    return added;
}

PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, reinterpret_cast<void*>(module_exec)},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, nullptr},
};

PyModuleDef module_definition = {PyModuleDef_HEAD_INIT, "_native", "The C-level part of edgefast.queues.Queue.", 0,
                                 nullptr, module_slots, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native(void) {
    pthread_atfork(nullptr, nullptr, after_fork_in_child);
    return PyModuleDef_Init(&module_definition);
}
