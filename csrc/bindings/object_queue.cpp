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
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <initializer_list>
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

enum Kind { kGetters, kPutters, kJoiners, kWriters, kKinds };
enum class Policy { block, drop_newest, drop_oldest, latest, error };

// What keeps put and get off their fast path.
constexpr unsigned kShutDown = 1, kMetered = 2, kLatest = 4;

struct Queue {
    PyObject_HEAD
    PyObject* weakrefs;
    ef::GatedRing<PyObject*> ring;
    unsigned special;
    bool after;  // finish() has something to do
    ef::WaitList lists[kKinds];
    // Hand-over between threads in bursts, see defer().
    std::atomic<uint32_t> yielded;  // counts threads that gave up the GIL to sleep here
    bool coming[kKinds];              // of getters and putters: one was woken ahead of time and has not run yet
    int64_t ahead[kKinds];
    int streak;                     // asyncio operations that did not wait, in a row
    bool bursts;                    // the last getter that was woken found many items
    ef::Parker* told_first;  // asyncio waiters taken off their list whose loop has not heard of it
    ef::Parker* told_last;
    uint64_t generation;
    int64_t unfinished;
    Policy policy;
    bool counts_bytes;
    int64_t max_age;    // nanoseconds; 0: no limit
    int64_t frozen_at;  // tests: the clock by which items age; negative: the real one
    PyObject* sizer;    // null: the default
    PyObject* engine;   // a subclass overrides _init, _put, _get or _qsize: the pure-Python queue that does the work
    bool listening;     // some listener wants to hear of the gate
    bool went_high, went_low;
    // statistics
    int64_t puts, gets, cleared, dropped_newest, dropped_oldest, expired, full_waits, empty_waits, wakeups, refused,
        high_events, peak, peak_bytes;
    // One item in 64 is timed, one at a time; with max_age every item is.
    uint64_t sampled_position;
    int64_t sampled_at;  // 0: no sample under way
    double sojourn;      // moving average in seconds, negative before the first sample
    int64_t created_at;

    bool shut_down() const { return special & kShutDown; }
};

// An asyncio task that waits. Its list owns a reference to it.
struct Waiter {
    PyObject_HEAD
    ef::Parker parker;
    Kind kind;
    uint64_t generation;
    PyObject* callback;  // callback(future), in any thread; false when nobody will hear of it
    PyObject* future;
};

PyTypeObject* g_waiter_type;

constexpr uint64_t kSampleEvery = 64;

// ---- small parts, all under the caller's protection ----------------------------------------------------------------

int64_t clock_of(const Queue* q) { return q->frozen_at < 0 ? ef::now_ns() : q->frozen_at; }

void check_fork(Queue* q) {
    const uint64_t generation = g_generation.load(std::memory_order_relaxed);
    if (q->generation == generation) return;
    q->generation = generation;
    for (auto& list : q->lists) list.forget();
    for (bool& yes : q->coming) yes = false;
}

// ---- bursts --------------------------------------------------------------------------------------------------------
//
// Under the GIL only one side runs. A waiter woken by the first put or get would only wait again, for the GIL, and
// every such wake-up of an idle CPU costs microseconds. So a thread that begins to wait is shallow: for a short time it
// looks for itself, without being woken, and meanwhile its wake-up is put off until the other side is about to run out
// of items or of room. Woken then, it spins for the few microseconds until the other side lets the GIL go. A getter is
// shallow only while items come in bursts: otherwise the first put wakes it at once.

#if defined(Py_GIL_DISABLED)
constexpr bool kDefers = false;
#else
constexpr bool kDefers = true;
#endif
// The first in line looks soon, those behind it later: everyone who looks asks for the GIL.
constexpr int64_t kFirstPutterLooksAfter = 1000000, kFirstGetterLooksAfter = 100000, kLooksAfter = 5000000;  // ns
constexpr int64_t kSpins = 10000;                                            // nanoseconds, at most
constexpr int64_t kShortSpin = 4000;                                         // of a well timed wake-up, at most
constexpr int64_t kSmallest = 64;                                            // limits below hold no bursts
constexpr int64_t kUnlimited = 1024;                                         // a burst of a queue without a limit

int64_t burst_limit(const Queue* q) {
    if (q->ring.high() > 0) return q->ring.high();
    return q->ring.limit() > 0 ? q->ring.limit() : kUnlimited;
}

// Items the other side still has to move when the waiter is woken; learned, so that it arrives just in time.
int64_t ahead(const Queue* q, Kind kind) {
    const int64_t most = burst_limit(q) / 2;
    return q->ahead[kind] < most ? q->ahead[kind] : most;
}
void learn(Queue* q, Kind kind, int64_t spun) {
    int64_t& n = q->ahead[kind];
    if (spun < kShortSpin / 4) n += n / 4 + 1;
    else if (spun > kShortSpin) n -= n / 8;
    if (n < 8) n = 8;
    if (n > burst_limit(q) / 2) n = burst_limit(q) / 2;
}

// Whether the wake-up of the first in the list is put off now.
bool defer(const Queue* q, Kind kind) {
    const ef::Parker* p = q->lists[kind].first();
    if (q->coming[kind]) return true;
    if (!p->shallow) return false;
    if (kind == kPutters) return q->ring.size() > ahead(q, kind);
    return q->bursts && q->ring.size() < burst_limit(q) - ahead(q, kind);
}

// Whether somebody waits who may have been put off, and nobody is under way.
bool put_off(const Queue* q, Kind kind) {
    const ef::Parker* p = q->lists[kind].first();
    return p && p->shallow && !q->coming[kind];
}

void wake_first(Queue* q, ef::WaitList& list) {
    ef::Parker* p = list.first();
    list.remove(p);
    if (p->shallow) {
        q->coming[&list - q->lists] = true;
        p->spins = true;
        p->seen = q->yielded.load(std::memory_order_relaxed);
    }
    ++q->wakeups;
    if (!p->owner) {
        p->signal();
        return;
    }
    p->next = nullptr;
    (q->told_last ? q->told_last->next : q->told_first) = p;
    q->told_last = p;
    q->after = true;
}

void wake(Queue* q, Kind kind, int64_t n) {
    ef::WaitList& list = q->lists[kind];
    if (list.empty()) return;
    check_fork(q);
    for (; n > 0 && !list.empty(); --n) wake_first(q, list);
}

void wake_getters(Queue* q, int64_t n) {
    ef::WaitList& list = q->lists[kGetters];
    if (list.empty()) return;
    check_fork(q);
    for (; n > 0 && !list.empty() && !defer(q, kGetters); --n) wake_first(q, list);
}

// In turn: with a limit of bytes the first that does not fit keeps the later ones waiting.
void wake_putters(Queue* q) {
    ef::WaitList& list = q->lists[kPutters];
    if (list.empty()) return;
    check_fork(q);
    if (q->ring.max_bytes() == 0) {
        for (int64_t n = q->ring.room(); n > 0 && !list.empty() && !defer(q, kPutters); --n) wake_first(q, list);
        return;
    }
    int64_t left = q->ring.max_bytes() - q->ring.bytes();
    for (int64_t room = q->ring.room(); room > 0 && !list.empty() && list.first()->need <= left; --room) {
        left -= list.first()->need;
        wake_first(q, list);
    }
}

void settle(Queue* q) {
    using Gate = ef::GatedRing<PyObject*>::Gate;
    const Gate gate = q->ring.settle();
    if (gate == Gate::unchanged) return;
    if (gate == Gate::closed) {
        ++q->high_events;
        q->went_high = true;
    } else {
        q->went_low = true;
    }
    q->after = true;
}

void push(Queue* q, PyObject* item, int64_t bytes) {  // steals the reference; settle() follows
    const uint64_t position = q->ring.put_position();
    if (q->special & kMetered) {
        q->ring.append(item, ef::Meter{bytes, q->max_age ? clock_of(q) : 0});
        if (q->ring.bytes() > q->peak_bytes) q->peak_bytes = q->ring.bytes();
    } else {
        q->ring.append(item);
    }
    if (position % kSampleEvery == 0 && q->sampled_at == 0 && q->max_age == 0) {
        q->sampled_position = position;
        q->sampled_at = ef::now_ns();
    }
    ++q->puts;
    ++q->unfinished;
    if (q->ring.size() > q->peak) q->peak = q->ring.size();
}

void stayed(Queue* q, int64_t nanoseconds) {
    const double seconds = static_cast<double>(nanoseconds) * 1e-9;
    q->sojourn = q->sojourn < 0 ? seconds : q->sojourn + 0.125 * (seconds - q->sojourn);
}

PyObject* pop(Queue* q) {  // returns the ring's reference; settle() follows
    if (q->max_age) {
        stayed(q, clock_of(q) - q->ring.meter_at(0).stamp);
    } else if (q->sampled_at != 0 && q->ring.get_position() == q->sampled_position) {
        stayed(q, ef::now_ns() - q->sampled_at);
        q->sampled_at = 0;
    }
    return q->ring.remove();
}

PyObject* evict(Queue* q) {  // as pop, of an item nobody gets
    if (q->sampled_at != 0 && q->ring.get_position() == q->sampled_position) q->sampled_at = 0;
    return q->ring.remove();
}

// As push, of n items of an unmetered ring; the references are new.
void push_many(Queue* q, PyObject* const* items, int64_t n) {
    const uint64_t begin = q->ring.put_position(), timed = (begin + kSampleEvery - 1) / kSampleEvery * kSampleEvery;
    if (q->sampled_at == 0 && timed < begin + static_cast<uint64_t>(n)) {
        q->sampled_position = timed;
        q->sampled_at = ef::now_ns();
    }
    for (int64_t i = 0; i < n; ++i) q->ring.append(Py_NewRef(items[i]));
    q->puts += n;
    q->unfinished += n;
    if (q->ring.size() > q->peak) q->peak = q->ring.size();
}

// As pop, of n items.
void pop_many(Queue* q, PyObject** items, int64_t n) {
    if (q->ring.metered()) {
        for (int64_t i = 0; i < n; ++i) items[i] = pop(q);
        return;
    }
    const uint64_t begin = q->ring.get_position();
    if (q->sampled_at != 0 && q->sampled_position - begin < static_cast<uint64_t>(n)) {
        stayed(q, ef::now_ns() - q->sampled_at);
        q->sampled_at = 0;
    }
    q->ring.remove(items, n);
}

// After items were taken: whoever waits for room.
void after_take(Queue* q) {
    wake_putters(q);
    if (!q->lists[kWriters].empty() && !q->ring.closed()) wake(q, kWriters, INT64_MAX);
}

void finish_tasks(Queue* q, int64_t n) {
    q->unfinished -= n < q->unfinished ? n : q->unfinished;
    if (q->unfinished == 0) wake(q, kJoiners, INT64_MAX);
}

// Whoever was woken does not take what it was woken for: the next one may.
void pass_on(Queue* q, Kind kind) {
    if (kind == kPutters) wake_putters(q);
    if (kind == kGetters) wake(q, kGetters, q->ring.size());
}

// Tells the loops of asyncio waiters and calls the listeners, outside of the operation: its result is final, and what
// is called may use the queue.
void finish(Queue* q) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    bool interrupted = false;
    while (q->after) {
        q->after = false;
        while (q->told_first) {
            ef::Parker* p = q->told_first;
            q->told_first = p->next;
            if (!q->told_first) q->told_last = nullptr;
            Waiter* w = static_cast<Waiter*>(p->owner);
            PyObject* heard = PyObject_CallOneArg(w->callback, w->future);
            if (!heard) {
                // Such as Ctrl-C, before the waiter was told: it is now, and the signal comes again at the end.
                if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
                    PyErr_Clear();
                    interrupted = true;
                } else {
                    PyErr_WriteUnraisable(w->callback);
                }
                heard = PyObject_CallOneArg(w->callback, w->future);
                if (!heard) PyErr_WriteUnraisable(w->callback);
            }
            if (heard != Py_True) pass_on(q, w->kind);
            Py_XDECREF(heard);
            Py_DECREF(reinterpret_cast<PyObject*>(w));
        }
        const bool high = q->went_high, low = q->went_low;
        q->went_high = q->went_low = false;
        if (!q->listening || !(high || low)) continue;
        PyObject* result = PyObject_CallFunction(g_finish_events, "OOO", reinterpret_cast<PyObject*>(q),
                                                 high ? Py_True : Py_False, low ? Py_True : Py_False);
        if (!result) PyErr_WriteUnraisable(reinterpret_cast<PyObject*>(q));
        Py_XDECREF(result);
    }
    if (interrupted) PyErr_SetInterrupt();
    PyErr_Restore(type, value, traceback);
}

// Drops the items that are too old. Python code may run.
void expire(Queue* q) {
    for (;;) {
        constexpr int kAtOnce = 32;
        PyObject* gone[kAtOnce];
        int n = 0;
        const int64_t now = clock_of(q);
        while (n < kAtOnce && !q->ring.empty() && now - q->ring.meter_at(0).stamp >= q->max_age) gone[n++] = evict(q);
        if (n == 0) return;
        q->expired += n;
        settle(q);
        finish_tasks(q, n);
        after_take(q);
        for (int i = 0; i < n; ++i) Py_DECREF(gone[i]);
    }
}

// When the oldest item expires, if that is before `deadline`.
int64_t next_expiry(const Queue* q, int64_t deadline) {
    if (q->max_age == 0 || q->ring.empty() || q->frozen_at >= 0) return deadline;
    const int64_t at = q->ring.meter_at(0).stamp + q->max_age;
    return at < deadline ? at : deadline;
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

bool ready(Queue* q, Kind kind, int64_t need, bool woken);

bool many_cpus() {
    static const bool many = [] {
        const long n = sysconf(_SC_NPROCESSORS_ONLN);
        return n > 1;
    }();
    return many;
}

// Sleeps until woken, until the deadline, or until a signal handler raised. The caller checks its condition again in
// every case and calls pass_on when it leaves without taking what it may have been woken for. looks_after: shallow for
// so many nanoseconds.
Woken sleep_on(Queue* q, Kind kind, int64_t deadline, int64_t need = 0, bool keeps_place = false, int64_t looks_after = 0) {
    check_fork(q);
    ef::WaitList& list = q->lists[kind];
    // Not on the stack: at interpreter exit the stack goes, and the list may still be used by finalizers.
    ef::Parker* parker = new (std::nothrow) ef::Parker;
    if (!parker) {
        PyErr_NoMemory();
        return Woken::error;
    }
    parker->need = need;
    parker->shallow = looks_after > 0;
    keeps_place ? list.add_first(parker) : list.add(parker);
    int64_t until = deadline;
    if (looks_after > 0) {
        const int64_t look = ef::now_ns() + looks_after;
        if (look < until) until = look;
    }
    Woken result;
    for (;;) {
        PyThreadState* state = PyEval_SaveThread();
        q->yielded.fetch_add(1, std::memory_order_release);
        parker->wait(until);
        int64_t spun = -1;
        if (parker->signalled() && parker->spins && many_cpus()) spun = ef::spin_while(q->yielded, parker->seen, kSpins);
        PyEval_RestoreThread(state);
        if (spun >= 0) learn(q, kind, spun);
        if (PyErr_CheckSignals() < 0) {
            result = Woken::error;
        } else if (!parker->listed) {
            result = Woken::yes;
        } else if (deadline != ef::kForever && ef::now_ns() >= deadline) {
            result = Woken::timed_out;
        } else if (parker->shallow && ef::now_ns() >= until) {
            parker->shallow = false;
            until = deadline;
            if (!ready(q, kind, need, true)) {
                if (kind == kGetters) q->bursts = false;
                continue;
            }
            result = Woken::yes;
        } else {
            continue;
        }
        break;
    }
    if (parker->listed) list.remove(parker);
    if (parker->spins) q->coming[kind] = false;
    delete parker;
    return result;
}

bool past(int64_t deadline) { return deadline == kDontBlock || (deadline != ef::kForever && ef::now_ns() >= deadline); }

// True when an item of so many bytes may be put. On false an exception is set.
bool wait_for_room(Queue* q, int64_t bytes, int64_t deadline) {
    bool counted = false, woken = false;
    for (;;) {
        if (q->max_age) expire(q);
        if (q->shut_down()) {
            PyErr_SetNone(g_shut_down);
            return false;
        }
        const bool fits = q->ring.fits(bytes);
        // Small items must not starve a large one that waits.
        const bool in_turn = woken || q->ring.max_bytes() == 0 || q->lists[kPutters].empty();
        if (fits && in_turn) return true;
        if (q->policy == Policy::error || past(deadline)) {
            if (fits) return true;
            ++q->refused;
            PyErr_SetNone(g_full);
            return false;
        }
        if (!counted) ++q->full_waits;
        counted = true;
        if (q->after) {  // whoever was woken so far must hear of it before this thread sleeps
            finish(q);
            continue;
        }
        // Whoever was left waiting because this thread would bring more.
        if (put_off(q, kGetters) && !q->ring.empty()) wake(q, kGetters, 1);
        const int64_t looks_after = !kDefers || burst_limit(q) < kSmallest || q->ring.max_bytes() > 0 ? 0
                                    : q->lists[kPutters].empty() ? kFirstPutterLooksAfter
                                                                 : kLooksAfter;
        const Woken result = sleep_on(q, kPutters, next_expiry(q, deadline), bytes, woken, looks_after);
        woken = result == Woken::yes;
        if (!woken) pass_on(q, kPutters);
        if (result == Woken::error) return false;
    }
}

// True when `wanted` items are there, or the deadline passed with at least one. On false an exception is set.
bool wait_for_items(Queue* q, int64_t wanted, int64_t deadline) {
    bool counted = false, woken = false;
    for (;;) {
        if (q->max_age) expire(q);
        if (q->ring.size() >= wanted) return true;
        if (q->shut_down()) {
            if (!q->ring.empty()) return true;
            PyErr_SetNone(g_shut_down);
            return false;
        }
        if (past(deadline)) {
            if (!q->ring.empty()) return true;
            PyErr_SetNone(g_empty);
            return false;
        }
        if (!counted) ++q->empty_waits;
        counted = true;
        if (q->after) {
            finish(q);
            continue;
        }
        // Whoever was left waiting because this thread would take more.
        if (put_off(q, kPutters) && q->ring.room() > 0) wake(q, kPutters, 1);
        // Who wants several must not stand before those who want one.
        const int64_t looks_after = !q->bursts || wanted > 1 ? 0
                                    : q->lists[kGetters].empty() ? kFirstGetterLooksAfter
                                                                 : kLooksAfter;
        const Woken result = sleep_on(q, kGetters, deadline, wanted, woken && wanted == 1, looks_after);
        woken = result == Woken::yes;
        if (woken) {
            q->bursts = kDefers && burst_limit(q) >= kSmallest && q->ring.size() >= burst_limit(q) / 4;
            wake_getters(q, q->ring.size() - 1);  // those behind that were put off for this one
        }
        if (result == Woken::error) {
            pass_on(q, kGetters);
            return false;
        }
    }
}

// ---- operations, under protection ----------------------------------------------------------------------------------

Py_ssize_t bytes_of(Queue* q, PyObject* item) {
    if (!q->sizer && PyBytes_Check(item)) return PyBytes_GET_SIZE(item);
    if (!q->sizer && PyByteArray_Check(item)) return PyByteArray_Size(item);
    PyObject* number = q->sizer ? PyObject_CallOneArg(q->sizer, item) : PyObject_GetAttrString(item, "nbytes");
    if (!number) {
        if (q->sizer || !PyErr_ExceptionMatches(PyExc_AttributeError)) return -1;
        PyErr_Format(PyExc_TypeError, "item: expected bytes or an object with nbytes, got %.100s; pass sizer= for others",
                     Py_TYPE(item)->tp_name);
        return -1;
    }
    Py_ssize_t bytes = -1;
    if (PyBool_Check(number) || !PyIndex_Check(number)) {
        PyErr_Format(PyExc_TypeError, "sizer: expected an integer number of bytes, got %.100s", Py_TYPE(number)->tp_name);
    } else {
        bytes = PyNumber_AsSsize_t(number, PyExc_OverflowError);
        if (bytes < 0 && !PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "sizer: expected at least 0 bytes, got %zd", bytes);
    }
    Py_DECREF(number);
    return bytes < 0 ? -1 : bytes;
}

// Bytes of an item that goes into the queue; negative with an exception set.
int64_t size_of(Queue* q, PyObject* item) {
    const Py_ssize_t bytes = bytes_of(q, item);
    if (bytes >= 0 && q->ring.max_bytes() > 0 && bytes > q->ring.max_bytes()) {
        PyErr_Format(PyExc_ValueError, "item: expected at most max_bytes (%lld), got %zd bytes",
                     static_cast<long long>(q->ring.max_bytes()), bytes);
        return -1;
    }
    return bytes;
}

enum class Put { accepted, dropped, failed };

// One item by the queue's policy.
Put put_by_policy(Queue* q, PyObject* item, int64_t bytes, int64_t deadline) {
    int64_t excess = 0;
    if (q->policy == Policy::block || q->policy == Policy::error) {
        if (!wait_for_room(q, bytes, deadline)) return Put::failed;
    } else {
        if (q->max_age) expire(q);
        if (q->shut_down()) {
            PyErr_SetNone(g_shut_down);
            return Put::failed;
        }
        if (q->policy == Policy::latest) excess = q->ring.size();
        else if (!q->ring.fits(bytes)) excess = q->ring.excess(bytes);
        if (excess > 0 && q->policy == Policy::drop_newest) {
            ++q->dropped_newest;
            return Put::dropped;
        }
    }
    PyObject* few[16];
    PyObject** gone = few;
    if (excess > 16) gone = static_cast<PyObject**>(PyMem_RawMalloc(static_cast<size_t>(excess) * sizeof(PyObject*)));
    if (!gone || !q->ring.reserve(1)) {
        if (gone != few) PyMem_RawFree(gone);
        PyErr_NoMemory();
        return Put::failed;
    }
    for (int64_t i = 0; i < excess; ++i) gone[i] = evict(q);
    q->dropped_oldest += excess;
    push(q, Py_NewRef(item), bytes);
    settle(q);
    if (excess > 0) {
        finish_tasks(q, excess);
        after_take(q);
    }
    wake_getters(q, 1);
    if (q->ring.max_bytes() > 0) wake_putters(q);  // the next in line may fit as well
    for (int64_t i = 0; i < excess; ++i) Py_DECREF(gone[i]);
    if (gone != few) PyMem_RawFree(gone);
    return Put::accepted;
}

PyObject* put_one(Queue* q, PyObject* item, int64_t deadline) {
    if (q->special == 0 && q->ring.room() > 0) {
        if (!q->ring.reserve(1)) return PyErr_NoMemory();
        push(q, Py_NewRef(item), 0);
        settle(q);
        if (!q->lists[kGetters].empty()) wake_getters(q, 1);
        Py_RETURN_NONE;
    }
    const int64_t bytes = q->counts_bytes ? size_of(q, item) : 0;
    if (bytes < 0 || put_by_policy(q, item, bytes, deadline) == Put::failed) return nullptr;
    Py_RETURN_NONE;
}

PyObject* get_one(Queue* q, int64_t deadline) {
    if ((q->max_age || q->ring.empty()) && !wait_for_items(q, 1, deadline)) return nullptr;
    PyObject* item = pop(q);
    settle(q);
    ++q->gets;
    after_take(q);
    return item;
}

Queue* as_queue(PyObject* self) { return reinterpret_cast<Queue*>(self); }

#define EF_LOCKED(type, call)                            \
    type locked_result;                                  \
    Py_BEGIN_CRITICAL_SECTION(self);                     \
    locked_result = (call);                              \
    if (as_queue(self)->after) finish(as_queue(self));   \
    Py_END_CRITICAL_SECTION();                           \
    return locked_result

PyObject* forward(PyObject* self, const char* method, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    PyObject* bound = PyObject_GetAttrString(as_queue(self)->engine, method);
    if (!bound) return nullptr;
    PyObject* result = PyObject_Vectorcall(bound, args, static_cast<size_t>(nargs), kwnames);
    Py_DECREF(bound);
    return result;
}

// First in every method: the engine does the work of a queue whose storage a subclass overrides.
#define EF_FORWARD(name) \
    if (as_queue(self)->engine) return forward(self, name, args, nargs, kwnames)
#define EF_FORWARD0(name) \
    if (as_queue(self)->engine) return forward(self, name, nullptr, 0, nullptr)
#define EF_FORWARD1(name, argument) \
    if (as_queue(self)->engine) return forward(self, name, &(argument), 1, nullptr)

PyObject* queue_put(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    static const char* const names[] = {"item", "block", "timeout"};
    EF_FORWARD("put");
    if (nargs == 1 && !kwnames) {
        EF_LOCKED(PyObject*, put_one(as_queue(self), args[0], ef::kForever));
    }
    PyObject* slots[3];
    int64_t deadline;
    if (!parse("put", args, nargs, kwnames, names, 3, 3, 1, slots)) return nullptr;
    if (!parse_blocking(slots[1], slots[2], &deadline)) return nullptr;
    EF_LOCKED(PyObject*, put_one(as_queue(self), slots[0], deadline));
}

PyObject* queue_put_nowait(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    static const char* const names[] = {"item"};
    EF_FORWARD("put_nowait");
    PyObject* item;
    if (nargs == 1 && !kwnames) {
        item = args[0];
    } else if (!parse("put_nowait", args, nargs, kwnames, names, 1, 1, 1, &item)) {
        return nullptr;
    }
    EF_LOCKED(PyObject*, put_one(as_queue(self), item, kDontBlock));
}

PyObject* queue_get(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    static const char* const names[] = {"block", "timeout"};
    EF_FORWARD("get");
    if (nargs == 0 && !kwnames) {
        EF_LOCKED(PyObject*, get_one(as_queue(self), ef::kForever));
    }
    PyObject* slots[2];
    int64_t deadline;
    if (!parse("get", args, nargs, kwnames, names, 2, 2, 0, slots)) return nullptr;
    if (!parse_blocking(slots[0], slots[1], &deadline)) return nullptr;
    EF_LOCKED(PyObject*, get_one(as_queue(self), deadline));
}

PyObject* queue_get_nowait(PyObject* self, PyObject*) {
    EF_FORWARD0("get_nowait");
    EF_LOCKED(PyObject*, get_one(as_queue(self), kDontBlock));
}

// Puts as many items of a tuple as it can until the deadline and returns how many; -1 on an exception.
int64_t put_items(Queue* q, PyObject* items, const int64_t* sizes, int64_t deadline) {
    const int64_t count = PyTuple_GET_SIZE(items);
    int64_t accepted = 0;
    for (int64_t i = 0; i < count;) {
        if (q->special == 0 && q->ring.room() > 0) {
            const int64_t n = q->ring.room() < count - i ? q->ring.room() : count - i;
            if (!q->ring.reserve(n)) {
                PyErr_NoMemory();
                return -1;
            }
            push_many(q, &PyTuple_GET_ITEM(items, i), n);
            i += n;
            settle(q);
            wake_getters(q, n);
            accepted += n;
            continue;
        }
        const Put put = put_by_policy(q, PyTuple_GET_ITEM(items, i), sizes ? sizes[i] : 0, deadline);
        if (put == Put::failed) {
            // What was accepted stays accepted: time-out and shutdown end the call with their number.
            if (!PyErr_ExceptionMatches(g_full) && !(i > 0 && PyErr_ExceptionMatches(g_shut_down))) return -1;
            PyErr_Clear();
            break;
        }
        ++i;
        if (put == Put::accepted) ++accepted;
    }
    return accepted;
}

PyObject* put_tuple(Queue* q, PyObject* items, int64_t deadline) {
    int64_t* sizes = nullptr;
    int64_t done = -1;
    if (q->counts_bytes) {
        const Py_ssize_t count = PyTuple_GET_SIZE(items);
        sizes = static_cast<int64_t*>(PyMem_RawMalloc(static_cast<size_t>(count + 1) * sizeof(int64_t)));
        if (!sizes) return PyErr_NoMemory();
        for (Py_ssize_t i = 0; i < count; ++i) {
            sizes[i] = size_of(q, PyTuple_GET_ITEM(items, i));
            if (sizes[i] < 0) {
                PyMem_RawFree(sizes);
                return nullptr;
            }
        }
    }
    done = put_items(q, items, sizes, deadline);
    PyMem_RawFree(sizes);
    return done < 0 ? nullptr : PyLong_FromLongLong(done);
}

PyObject* put_locked(PyObject* self, PyObject* items, int64_t deadline) {
    EF_LOCKED(PyObject*, put_tuple(as_queue(self), items, deadline));
}

PyObject* queue_put_many(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    static const char* const names[] = {"items", "block", "timeout"};
    PyObject* slots[3];
    int64_t deadline;
    EF_FORWARD("put_many");
    if (!parse("put_many", args, nargs, kwnames, names, 3, 3, 1, slots)) return nullptr;
    if (!parse_blocking(slots[1], slots[2], &deadline)) return nullptr;
    if (!PySequence_Check(slots[0]) || PyUnicode_Check(slots[0]) || PyBytes_Check(slots[0])) {
        return PyErr_Format(PyExc_TypeError,
                            "items: expected a sequence such as a list, got %.100s (an iterator would lose what does not fit)",
                            Py_TYPE(slots[0])->tp_name);
    }
    // A copy: the caller's list may change while this thread sleeps.
    PyObject* items = PySequence_Tuple(slots[0]);
    if (!items) return nullptr;
    PyObject* result = put_locked(self, items, deadline);
    Py_DECREF(items);
    return result;
}

// Up to n items as a list; the list is allocated before the ring is touched.
PyObject* take(Queue* q, int64_t n) {
    for (;;) {
        if (q->max_age) expire(q);
        const int64_t count = q->ring.size() < n ? q->ring.size() : n;
        PyObject* list = PyList_New(count);
        if (!list) return nullptr;
        if (q->ring.size() < count) {  // a finalizer run by the allocation took some
            Py_DECREF(list);
            continue;
        }
        pop_many(q, reinterpret_cast<PyListObject*>(list)->ob_item, count);
        settle(q);
        q->gets += count;
        after_take(q);
        return list;
    }
}

PyObject* get_items(Queue* q, int64_t most, int64_t least, int64_t deadline, double linger) {
    for (;;) {
        if (!wait_for_items(q, 1, deadline)) return nullptr;
        if (q->ring.size() < least && linger > 0 && !wait_for_items(q, least, deadline_in(linger))) {
            // Somebody else took the first item meanwhile: start again, unless this was a signal or the end.
            if (!PyErr_ExceptionMatches(g_empty)) return nullptr;
            PyErr_Clear();
            continue;
        }
        PyObject* list = take(q, most);
        if (!list) return nullptr;
        if (PyList_GET_SIZE(list) == 0) {  // the last one expired
            Py_DECREF(list);
            continue;
        }
        // While this thread lingered it may have been woken for items it leaves to others.
        if (least > 1) wake(q, kGetters, q->ring.size());
        return list;
    }
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
    EF_FORWARD("get_many");
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

PyObject* queue_drain(PyObject* self, PyObject*) {
    EF_FORWARD0("drain");
    EF_LOCKED(PyObject*, take(as_queue(self), INT64_MAX));
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
PyObject* queue_clear_items(PyObject* self, PyObject*) {
    EF_FORWARD0("clear");
    EF_LOCKED(PyObject*, clear_items(as_queue(self)));
}

PyObject* peek(Queue* q) {
    if (q->max_age) expire(q);
    if (q->ring.empty()) return raise(q->shut_down() ? g_shut_down : g_empty);
    return Py_NewRef(q->ring.at(0));
}
PyObject* queue_peek(PyObject* self, PyObject*) {
    EF_FORWARD0("peek");
    EF_LOCKED(PyObject*, peek(as_queue(self)));
}

PyObject* task_done(Queue* q) {
    if (q->unfinished <= 0) {
        PyErr_SetString(PyExc_ValueError, "task_done() called too many times");
        return nullptr;
    }
    finish_tasks(q, 1);
    Py_RETURN_NONE;
}
PyObject* queue_task_done(PyObject* self, PyObject*) {
    EF_FORWARD0("task_done");
    EF_LOCKED(PyObject*, task_done(as_queue(self)));
}

PyObject* join(Queue* q) {
    for (;;) {
        if (q->max_age) expire(q);
        if (q->unfinished <= 0) Py_RETURN_NONE;
        if (q->after) {
            finish(q);
            continue;
        }
        if (sleep_on(q, kJoiners, next_expiry(q, ef::kForever)) == Woken::error) return nullptr;
    }
}
PyObject* queue_join(PyObject* self, PyObject*) {
    EF_FORWARD0("join");
    EF_LOCKED(PyObject*, join(as_queue(self)));
}

PyObject* shut_down(Queue* q, bool immediate) {
    PyObject* left = nullptr;
    if (immediate) {
        left = take(q, INT64_MAX);
        if (!left) return nullptr;
        const int64_t n = PyList_GET_SIZE(left);
        q->gets -= n;
        q->cleared += n;
        finish_tasks(q, n);
        wake(q, kJoiners, INT64_MAX);
    }
    q->special |= kShutDown;
    for (const Kind kind : {kGetters, kPutters, kWriters}) wake(q, kind, INT64_MAX);
    Py_XDECREF(left);
    Py_RETURN_NONE;
}
PyObject* queue_shutdown(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    static const char* const names[] = {"immediate"};
    PyObject* slots[1];
    EF_FORWARD("shutdown");
    if (!parse("shutdown", args, nargs, kwnames, names, 1, 1, 0, slots)) return nullptr;
    const int immediate = slots[0] ? PyObject_IsTrue(slots[0]) : 0;
    if (immediate < 0) return nullptr;
    EF_LOCKED(PyObject*, shut_down(as_queue(self), immediate != 0));
}

PyObject* size(Queue* q) {
    if (q->max_age) expire(q);
    return PyLong_FromLongLong(q->ring.size());
}
PyObject* queue_qsize(PyObject* self, PyObject*) {
    EF_FORWARD0("qsize");
    EF_LOCKED(PyObject*, size(as_queue(self)));
}
PyObject* is_empty(Queue* q) {
    if (q->max_age) expire(q);
    return PyBool_FromLong(q->ring.empty());
}
PyObject* queue_empty(PyObject* self, PyObject*) {
    EF_FORWARD0("empty");
    EF_LOCKED(PyObject*, is_empty(as_queue(self)));
}
PyObject* is_full(Queue* q) {
    if (q->max_age) expire(q);
    return PyBool_FromLong(!q->ring.fits(q->ring.max_bytes() > 0));
}
PyObject* queue_full(PyObject* self, PyObject*) {
    EF_FORWARD0("full");
    EF_LOCKED(PyObject*, is_full(as_queue(self)));
}

PyObject* wait_writable(Queue* q, int64_t deadline) {
    for (;;) {
        if (q->max_age) expire(q);
        if (q->shut_down()) return raise(g_shut_down);
        if (!q->ring.closed()) Py_RETURN_TRUE;
        if (past(deadline)) Py_RETURN_FALSE;
        if (q->after) {
            finish(q);
            continue;
        }
        if (sleep_on(q, kWriters, next_expiry(q, deadline)) == Woken::error) return nullptr;
    }
}
PyObject* queue_wait_writable(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    static const char* const names[] = {"timeout"};
    PyObject* slots[1];
    int64_t deadline;
    EF_FORWARD("wait_writable");
    if (!parse("wait_writable", args, nargs, kwnames, names, 1, 1, 0, slots)) return nullptr;
    if (!parse_blocking(nullptr, slots[0], &deadline)) return nullptr;
    EF_LOCKED(PyObject*, wait_writable(as_queue(self), deadline));
}

// ---- for asyncio ---------------------------------------------------------------------------------------------------

// _offer(item, woken): puts by the policy without waiting: -1 accepted, -2 dropped, else the bytes to wait for.
PyObject* offer(Queue* q, PyObject* item, bool woken) {
    const int64_t bytes = q->counts_bytes ? size_of(q, item) : 0;
    if (bytes < 0) return nullptr;
    if (q->policy == Policy::block) {
        if (q->max_age) expire(q);
        const bool in_turn = woken || q->ring.max_bytes() == 0 || q->lists[kPutters].empty();
        if (!q->shut_down() && !(in_turn && q->ring.fits(bytes))) return PyLong_FromLongLong(bytes);
    }
    const Put put = put_by_policy(q, item, bytes, kDontBlock);
    return put == Put::failed ? nullptr : PyLong_FromLong(put == Put::accepted ? -1 : -2);
}
PyObject* queue_offer(PyObject* self, PyObject* const* args, Py_ssize_t nargs) {
    PyObject* const kwnames = nullptr;
    EF_FORWARD("_offer");
    if (nargs != 2) return PyErr_Format(PyExc_TypeError, "_offer(item, woken)");
    EF_LOCKED(PyObject*, offer(as_queue(self), args[0], args[1] == Py_True));
}

// _size_of(item): raises what a put of it would raise.
PyObject* queue_size_of(PyObject* self, PyObject* item) {
    EF_FORWARD1("_size_of", item);
    const int64_t bytes = as_queue(self)->counts_bytes ? size_of(as_queue(self), item) : 0;
    return bytes < 0 ? nullptr : PyLong_FromLongLong(bytes);
}

bool ready(Queue* q, Kind kind, int64_t need, bool woken) {
    if (q->max_age) expire(q);
    if (q->shut_down() && kind != kJoiners) return true;
    switch (kind) {
        case kGetters: return q->ring.size() >= need;
        case kPutters:
            return q->ring.fits(need) && (woken || q->ring.max_bytes() == 0 || q->lists[kPutters].empty());
        case kJoiners: return q->unfinished <= 0;
        default: return !q->ring.closed();
    }
}

// _enlist(kind, need, woken, callback, future): a waiter whose turn is told by callback(future); None when there is
// nothing to wait for. need: items of a getter, bytes of a putter. woken: it was, in vain, and keeps its place.
PyObject* enlist(Queue* q, Kind kind, int64_t need, bool woken, PyObject* callback, PyObject* future) {
    // Allocated before the check: a collection may run finalizers.
    Waiter* w = PyObject_GC_New(Waiter, g_waiter_type);
    if (!w) return nullptr;
    new (&w->parker) ef::Parker();
    w->parker.owner = w;
    w->parker.need = need;
    w->kind = kind;
    w->callback = Py_NewRef(callback);
    w->future = Py_NewRef(future);
    PyObject_GC_Track(reinterpret_cast<PyObject*>(w));
    if (ready(q, kind, need, woken)) {
        Py_DECREF(reinterpret_cast<PyObject*>(w));
        Py_RETURN_NONE;
    }
    check_fork(q);
    w->generation = q->generation;
    if (!woken && kind == kGetters) ++q->empty_waits;
    if (!woken && kind == kPutters) ++q->full_waits;
    woken ? q->lists[kind].add_first(&w->parker) : q->lists[kind].add(&w->parker);
    return Py_NewRef(reinterpret_cast<PyObject*>(w));  // the other reference is the list's
}
PyObject* queue_enlist(PyObject* self, PyObject* const* args, Py_ssize_t nargs) {
    PyObject* const kwnames = nullptr;
    EF_FORWARD("_enlist");
    if (nargs != 5) return PyErr_Format(PyExc_TypeError, "_enlist(kind, need, woken, callback, future)");
    const long kind = PyLong_AsLong(args[0]);
    const long long need = PyLong_AsLongLong(args[1]);
    if ((kind == -1 || need == -1) && PyErr_Occurred()) return nullptr;
    if (kind < 0 || kind >= kKinds) return PyErr_Format(PyExc_ValueError, "kind: expected 0 to %d, got %ld", kKinds - 1, kind);
    EF_LOCKED(PyObject*, enlist(as_queue(self), static_cast<Kind>(kind), need, args[2] == Py_True, args[3], args[4]));
}

// _leave(waiter, gives_up): takes it off its list. True when it was not on it any more, that is, had been woken.
PyObject* leave(Queue* q, Waiter* w, bool gives_up) {
    check_fork(q);
    if (w->generation != q->generation) Py_RETURN_FALSE;
    const bool listed = w->parker.listed;
    if (listed) {
        q->lists[w->kind].remove(&w->parker);
        Py_DECREF(reinterpret_cast<PyObject*>(w));
    }
    // Also when it was still listed: it may have stood before one that fits, or been woken in vain before.
    if (gives_up || (listed && w->kind == kPutters)) pass_on(q, w->kind);
    return PyBool_FromLong(!listed);
}
PyObject* queue_leave(PyObject* self, PyObject* const* args, Py_ssize_t nargs) {
    PyObject* const kwnames = nullptr;
    EF_FORWARD("_leave");
    if (nargs != 2 || Py_TYPE(args[0]) != g_waiter_type) return PyErr_Format(PyExc_TypeError, "_leave(waiter, gives_up)");
    EF_LOCKED(PyObject*, leave(as_queue(self), reinterpret_cast<Waiter*>(args[0]), args[1] == Py_True));
}

// _expires_in(): seconds until the oldest item expires; negative when none does.
PyObject* queue_expires_in(PyObject* self, PyObject*) {
    EF_FORWARD0("_expires_in");
    int64_t at;
    Py_BEGIN_CRITICAL_SECTION(self);
    at = next_expiry(as_queue(self), ef::kForever);
    Py_END_CRITICAL_SECTION();
    if (at == ef::kForever) return PyFloat_FromDouble(-1.0);
    const int64_t left = at - ef::now_ns();
    return PyFloat_FromDouble(left > 0 ? static_cast<double>(left) * 1e-9 : 0.0);
}

// _freeze(ns): tests: the clock by which items age; a negative one is the real clock again.
PyObject* queue_freeze(PyObject* self, PyObject* now) {
    EF_FORWARD1("_freeze", now);
    const long long ns = PyLong_AsLongLong(now);
    if (ns == -1 && PyErr_Occurred()) return nullptr;
    Py_BEGIN_CRITICAL_SECTION(self);
    as_queue(self)->frozen_at = ns;
    Py_END_CRITICAL_SECTION();
    Py_RETURN_NONE;
}

// What aput and aget return: a coroutine that is done at its first step when there is nothing to wait for, and
// otherwise hands over to the Python one, _aput or _aget. Nothing happens before the first step.
struct Call {
    PyObject_HEAD
    PyObject* queue;
    PyObject* item;   // null: a get
    PyObject* inner;  // the Python coroutine
    bool started;
};

PyTypeObject* g_call_type;
constexpr int kStreak = 64;  // as _STREAK in _loops.py

Call* as_call(PyObject* self) { return reinterpret_cast<Call*>(self); }

// The item of a get, None of a put; null without an exception when this needs the slow way.
PyObject* at_once(Queue* q, PyObject* item) {
    if (q->engine || q->special != 0 || (item ? q->ring.room() <= 0 : q->ring.empty())) return nullptr;
    return item ? put_one(q, item, kDontBlock) : get_one(q, kDontBlock);
}
PyObject* at_once_locked(PyObject* self, PyObject* item) { EF_LOCKED(PyObject*, at_once(as_queue(self), item)); }

// Creates the Python coroutine.
bool hand_over(Call* c, bool gives_way) {
    c->started = true;
    PyObject* const yes = gives_way ? Py_True : Py_False;
    c->inner = c->item ? PyObject_CallMethod(c->queue, "_aput", "OO", c->item, yes)
                       : PyObject_CallMethod(c->queue, "_aget", "O", yes);
    return c->inner != nullptr;
}

PySendResult call_step(PyObject* self, PyObject* value, PyObject** result) {
    Call* c = as_call(self);
    if (!c->inner) {
        if (c->started) {
            PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
            *result = nullptr;
            return PYGEN_ERROR;
        }
        Queue* q = as_queue(c->queue);
        const bool gives_way = q->streak >= kStreak;
        if (!gives_way) {
            *result = at_once_locked(c->queue, c->item);
            if (*result || PyErr_Occurred()) {
                ++q->streak;
                c->started = true;
                return *result ? PYGEN_RETURN : PYGEN_ERROR;
            }
        }
        q->streak = 0;
        if (!hand_over(c, gives_way)) {
            *result = nullptr;
            return PYGEN_ERROR;
        }
    }
    PyObject* inner = Py_NewRef(c->inner);
    const PySendResult state = PyIter_Send(inner, value, result);
    if (state != PYGEN_NEXT) Py_CLEAR(c->inner);
    Py_DECREF(inner);
    return state;
}

PyObject* call_send(PyObject* self, PyObject* value) {
    PyObject* result;
    const PySendResult state = call_step(self, value, &result);
    if (state != PYGEN_RETURN) return result;
    PyObject* stop = PyObject_CallOneArg(PyExc_StopIteration, result);
    Py_DECREF(result);
    if (stop) PyErr_SetObject(PyExc_StopIteration, stop);
    Py_XDECREF(stop);
    return nullptr;
}

PyObject* call_next(PyObject* self) { return call_send(self, Py_None); }
PyObject* call_await(PyObject* self) { return Py_NewRef(self); }
PyObject* call_await_method(PyObject* self, PyObject*) { return Py_NewRef(self); }

PyObject* call_throw(PyObject* self, PyObject* args) {
    Call* c = as_call(self);
    if (!c->inner) {
        if (c->started) {
            PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
            return nullptr;
        }
        if (!hand_over(c, false)) return nullptr;  // it has not begun either: the exception comes straight back
    }
    PyObject* inner = Py_NewRef(c->inner);
    PyObject* method = PyObject_GetAttrString(inner, "throw");
    PyObject* result = method ? PyObject_CallObject(method, args) : nullptr;
    Py_XDECREF(method);
    if (!result) Py_CLEAR(c->inner);
    Py_DECREF(inner);
    return result;
}

PyObject* call_close(PyObject* self, PyObject*) {
    Call* c = as_call(self);
    c->started = true;
    PyObject* inner = c->inner;
    c->inner = nullptr;
    if (!inner) Py_RETURN_NONE;
    PyObject* result = PyObject_CallMethod(inner, "close", nullptr);
    Py_DECREF(inner);
    return result;
}

int call_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(as_call(self)->queue);
    Py_VISIT(as_call(self)->item);
    Py_VISIT(as_call(self)->inner);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

void call_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Call* c = as_call(self);
    if (!c->started) {
        PyObject *error, *value, *traceback;
        PyErr_Fetch(&error, &value, &traceback);
        if (PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "coroutine 'Queue.%s' was never awaited", c->item ? "aput" : "aget") < 0)
            PyErr_WriteUnraisable(nullptr);
        PyErr_Restore(error, value, traceback);
    }
    Py_CLEAR(c->inner);
    Py_CLEAR(c->item);
    Py_CLEAR(c->queue);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

PyMethodDef call_methods[] = {
    {"send", call_send, METH_O, nullptr},
    {"throw", call_throw, METH_VARARGS, nullptr},
    {"close", call_close, METH_NOARGS, nullptr},
    {"__await__", call_await_method, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot call_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(call_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(call_traverse)},
    {Py_tp_iter, reinterpret_cast<void*>(PyObject_SelfIter)},
    {Py_tp_iternext, reinterpret_cast<void*>(call_next)},
    {Py_tp_methods, call_methods},
    {Py_am_await, reinterpret_cast<void*>(call_await)},
    {Py_am_send, reinterpret_cast<void*>(call_step)},
    {0, nullptr},
};

PyType_Spec call_spec = {"edgefast.queues._native.Call", sizeof(Call), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, call_slots};

PyObject* new_call(PyObject* queue, PyObject* item) {
    Call* c = PyObject_GC_New(Call, g_call_type);
    if (!c) return nullptr;
    c->queue = Py_NewRef(queue);
    c->item = Py_XNewRef(item);
    c->inner = nullptr;
    c->started = false;
    PyObject_GC_Track(reinterpret_cast<PyObject*>(c));
    return reinterpret_cast<PyObject*>(c);
}

PyObject* queue_aput(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
    static const char* const names[] = {"item"};
    PyObject* item;
    if (!parse("aput", args, nargs, kwnames, names, 1, 1, 1, &item)) return nullptr;
    return new_call(self, item);
}
PyObject* queue_aget(PyObject* self, PyObject*) { return new_call(self, nullptr); }

// ---- for the Python layer ------------------------------------------------------------------------------------------

// _setup(policy, counts_bytes, max_bytes, sizer, max_age, engine): once, values checked in Python; 0 and None for "none".
PyObject* setup(Queue* q, int policy, bool counts_bytes, long long max_bytes, PyObject* sizer, long long max_age, PyObject* engine) {
    if (!q->ring.empty() || q->engine) {
        PyErr_SetString(PyExc_RuntimeError, "__init__() of a queue in use");
        return nullptr;
    }
    q->policy = static_cast<Policy>(policy);
    q->counts_bytes = counts_bytes;
    if (counts_bytes || max_age > 0) {
        q->ring.meter(max_bytes);
        q->special |= kMetered;
    }
    if (q->policy == Policy::latest) q->special |= kLatest;
    q->max_age = max_age;
    PyObject* old = q->sizer;
    q->sizer = sizer == Py_None ? nullptr : Py_NewRef(sizer);
    q->engine = engine == Py_None ? nullptr : Py_NewRef(engine);
    Py_XDECREF(old);
    Py_RETURN_NONE;
}
PyObject* queue_setup(PyObject* self, PyObject* args) {
    int policy, counts_bytes;
    long long max_bytes, max_age;
    PyObject *sizer, *engine;
    if (!PyArg_ParseTuple(args, "ipLOLO", &policy, &counts_bytes, &max_bytes, &sizer, &max_age, &engine)) return nullptr;
    EF_LOCKED(PyObject*, setup(as_queue(self), policy, counts_bytes != 0, max_bytes, sizer, max_age, engine));
}

// _configure(maxsize, high, low): values checked in Python; 0 for "none".
PyObject* configure(Queue* q, long long maxsize, long long high, long long low) {
    q->ring.configure(maxsize, high, low);
    after_take(q);
    Py_RETURN_NONE;
}
PyObject* queue_configure(PyObject* self, PyObject* const* args, Py_ssize_t nargs) {
    PyObject* const kwnames = nullptr;
    EF_FORWARD("_configure");
    if (nargs != 3) return PyErr_Format(PyExc_TypeError, "_configure(maxsize, high, low)");
    long long values[3];
    for (int i = 0; i < 3; ++i) {
        values[i] = PyLong_AsLongLong(args[i]);
        if (values[i] == -1 && PyErr_Occurred()) return nullptr;
    }
    EF_LOCKED(PyObject*, configure(as_queue(self), values[0], values[1], values[2]));
}

PyObject* queue_listen(PyObject* self, PyObject* on) {
    EF_FORWARD1("_listen", on);
    const int yes = PyObject_IsTrue(on);
    if (yes < 0) return nullptr;
    Py_BEGIN_CRITICAL_SECTION(self);
    as_queue(self)->listening = yes != 0;
    Py_END_CRITICAL_SECTION();
    Py_RETURN_NONE;
}

PyObject* counters(Queue* q) {
    check_fork(q);
    if (q->max_age) expire(q);
    const int64_t values[] = {q->ring.size(),      q->lists[kPutters].size(), q->lists[kGetters].size(),
                              q->puts,             q->gets,                   q->cleared,
                              q->refused,          q->full_waits,             q->empty_waits,
                              q->wakeups,          q->high_events,            q->peak,
                              q->unfinished,       q->ring.closed(),          q->dropped_newest,
                              q->dropped_oldest,   q->expired,                q->ring.bytes(),
                              q->peak_bytes};
    constexpr Py_ssize_t kCount = sizeof(values) / sizeof(values[0]);
    PyObject* tuple = PyTuple_New(kCount + 1);
    if (!tuple) return nullptr;
    for (Py_ssize_t i = 0; i <= kCount; ++i) {
        PyObject* value = i < kCount ? PyLong_FromLongLong(values[i]) : PyFloat_FromDouble(q->sojourn);
        if (!value) {
            Py_DECREF(tuple);
            return nullptr;
        }
        PyTuple_SET_ITEM(tuple, i, value);
    }
    return tuple;
}
PyObject* queue_counters(PyObject* self, PyObject*) {
    EF_FORWARD0("_counters");
    EF_LOCKED(PyObject*, counters(as_queue(self)));
}

PyObject* queue_get_unfinished(PyObject* self, void*) {
    if (PyObject* engine = as_queue(self)->engine) return PyObject_GetAttrString(engine, "unfinished_tasks");
    int64_t n;
    Py_BEGIN_CRITICAL_SECTION(self);
    n = as_queue(self)->unfinished;
    Py_END_CRITICAL_SECTION();
    return PyLong_FromLongLong(n);
}
PyObject* queue_get_is_shutdown(PyObject* self, void*) {
    if (PyObject* engine = as_queue(self)->engine) return PyObject_GetAttrString(engine, "is_shutdown");
    bool yes;
    Py_BEGIN_CRITICAL_SECTION(self);
    yes = as_queue(self)->shut_down();
    Py_END_CRITICAL_SECTION();
    return PyBool_FromLong(yes);
}
PyObject* is_writable(Queue* q) {
    if (q->max_age) expire(q);
    return PyBool_FromLong(!q->ring.closed());
}
PyObject* queue_get_writable(PyObject* self, void*) {
    if (PyObject* engine = as_queue(self)->engine) return PyObject_GetAttrString(engine, "writable");
    EF_LOCKED(PyObject*, is_writable(as_queue(self)));
}

// ---- the type ------------------------------------------------------------------------------------------------------

PyObject* queue_new(PyTypeObject* type, PyObject*, PyObject*) {
    auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
    PyObject* self = allocate(type, 0);
    if (!self) return nullptr;
    Queue* q = as_queue(self);
    new (&q->ring) ef::GatedRing<PyObject*>();
    for (auto& list : q->lists) new (&list) ef::WaitList();
    new (&q->yielded) std::atomic<uint32_t>(0);
    q->generation = g_generation.load(std::memory_order_relaxed);
    for (int64_t& n : q->ahead) n = 256;
    q->sojourn = -1;
    q->frozen_at = -1;
    q->created_at = ef::now_ns();
    return self;
}

int queue_traverse(PyObject* self, visitproc visit, void* arg) {
    const Queue* q = as_queue(self);
    for (int64_t i = 0; i < q->ring.size(); ++i) Py_VISIT(q->ring.at(i));
    for (const auto& list : q->lists)
        for (const ef::Parker* p = list.first(); p; p = p->next) Py_VISIT(static_cast<PyObject*>(p->owner));
    for (const ef::Parker* p = q->told_first; p; p = p->next) Py_VISIT(static_cast<PyObject*>(p->owner));
    Py_VISIT(q->sizer);
    Py_VISIT(q->engine);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

int queue_clear(PyObject* self) {
    Queue* q = as_queue(self);
    while (!q->ring.empty()) Py_DECREF(q->ring.remove());
    check_fork(q);
    for (auto& list : q->lists) {
        while (ef::Parker* p = list.first()) {
            list.remove(p);
            Py_XDECREF(static_cast<PyObject*>(p->owner));
        }
    }
    while (ef::Parker* p = q->told_first) {
        q->told_first = p->next;
        if (!q->told_first) q->told_last = nullptr;
        Py_DECREF(static_cast<PyObject*>(p->owner));
    }
    Py_CLEAR(q->sizer);
    Py_CLEAR(q->engine);
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

int waiter_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(reinterpret_cast<Waiter*>(self)->callback);
    Py_VISIT(reinterpret_cast<Waiter*>(self)->future);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

int waiter_clear(PyObject* self) {
    Py_CLEAR(reinterpret_cast<Waiter*>(self)->callback);
    Py_CLEAR(reinterpret_cast<Waiter*>(self)->future);
    return 0;
}

void waiter_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    waiter_clear(self);
    reinterpret_cast<Waiter*>(self)->parker.~Parker();
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

PyType_Slot waiter_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(waiter_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(waiter_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(waiter_clear)},
    {0, nullptr},
};

PyType_Spec waiter_spec = {"edgefast.queues._native.Waiter", sizeof(Waiter), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, waiter_slots};

PyCFunction fast(PyObject* (*f)(PyObject*, PyObject* const*, Py_ssize_t)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}
PyCFunction fast(PyObject* (*f)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}

PyMethodDef queue_methods[] = {
    {"put", fast(queue_put), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"put_nowait", fast(queue_put_nowait), METH_FASTCALL | METH_KEYWORDS, nullptr},
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
    {"_setup", queue_setup, METH_VARARGS, nullptr},
    {"_configure", fast(queue_configure), METH_FASTCALL, nullptr},
    {"aput", fast(queue_aput), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"aget", queue_aget, METH_NOARGS, nullptr},
    {"_offer", fast(queue_offer), METH_FASTCALL, nullptr},
    {"_size_of", queue_size_of, METH_O, nullptr},
    {"_enlist", fast(queue_enlist), METH_FASTCALL, nullptr},
    {"_leave", fast(queue_leave), METH_FASTCALL, nullptr},
    {"_expires_in", queue_expires_in, METH_NOARGS, nullptr},
    {"_freeze", queue_freeze, METH_O, nullptr},
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
    g_waiter_type = reinterpret_cast<PyTypeObject*>(PyType_FromModuleAndSpec(module, &waiter_spec, nullptr));
    g_call_type = reinterpret_cast<PyTypeObject*>(PyType_FromModuleAndSpec(module, &call_spec, nullptr));
    if (!g_waiter_type || !g_call_type) return -1;
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
