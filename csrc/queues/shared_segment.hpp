// The memory of a SharedQueue: a file in /dev/shm with a validated header, and the table of its participants.
//
// The header never changes after creation. Who attaches copies it once, checks the copy, and uses nothing but the copy;
// offsets are computed, not read. A participant is a handle: it holds an entry of the table, and an open-file-description
// lock on one byte of the file (beyond its end), which the kernel releases when the process is gone, however it went. So
// an entry in use whose lock can be taken belongs to the dead. Descriptors are not inherited by exec; a forked child
// must give its copy up (renew), or the lock outlives the parent. A mapping keeps its open file description, and with it
// the locks, so what is mapped is one description and what is locked another.
//
// What this does not cover: a process of the same user may truncate the file, and who touches its memory then gets SIGBUS,
// as with every mapped file. One that closes descriptors that are not its own (closefrom, os.closerange) takes its lock away
// and is taken for dead; it then finds its slots gone when it lets go of them, and others may have reused them before.
#pragma once

#if defined(__linux__)

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "queues/shared_ring.hpp"

namespace ef {

enum class SharedError {
    none,
    exists,        // create: there is a file of that name
    missing,       // attach: there is none
    not_allowed,   // the file is another user's, or its mode does not let us
    not_ready,     // being created, or its creator died over it
    not_a_queue,   // not a segment of this kind
    version,       // of another layout version or byte order
    corrupted,     // the header makes no sense
    bad_config,    // create: a value out of range
    no_space,      // create: the file system has no room for it
    crowded,       // every participant's entry is in use
    system,        // a system call failed otherwise: see os_error
};

struct SharedFailure {
    SharedError error = SharedError::none;
    int os_error = 0;
    char text[232] = {};  // what was expected and what came
};

enum SharedKind : uint32_t { shared_bytes, shared_records };

// What a queue is, for its whole life.
struct SharedConfig {
    uint32_t kind = shared_bytes;  // records all have itemsize bytes and lie without gaps; bytes have lengths
    uint32_t policy = 0;           // RecordQueue::Policy
    uint32_t drop_of_dead = 0;     // 1: what a dead consumer held is dropped, not put again
    uint32_t serializer = 0;       // the binding's
    uint64_t capacity = 0;         // the most records
    uint64_t itemsize = 0;         // the most bytes of one
    uint64_t participants = 64;
    uint64_t spare = 0;  // slots beyond the capacity, for those that stopped or slow processes hold; 0: chosen by create
    uint64_t nonce = 0;  // chosen by create
    uint32_t dimensions = 0;
    uint32_t reserved = 0;
    uint64_t shape[8] = {};
    char dtype[256] = {};  // ends with a zero byte
};

struct SharedHeader {
    uint64_t magic;  // written last
    uint32_t byte_order;
    uint16_t major, minor;
    uint64_t size;  // of the file
    SharedConfig config;
    uint32_t checksum;  // of all the above after magic
    uint32_t zero;
};
static_assert(sizeof(SharedConfig) == 384 && sizeof(SharedHeader) == 416, "the layout of version 1");

static_assert(sizeof(off_t) == 8, "locks lie beyond every file");

// Alone on their lines: written all the time, by one side each; and hardly ever.
template <class A>
struct SharedControl {
    template <class T>
    using Atomic = typename A::template atomic<T>;
    alignas(128) Atomic<uint64_t> tail;
    alignas(128) Atomic<uint64_t> head;
    alignas(128) Atomic<uint64_t> down;
    Atomic<int64_t> limit, high, low, peak;
    Atomic<uint64_t> sample;    // {microseconds : 40 | position : 24} of a record under way, or 0
    Atomic<uint64_t> sojourn;   // exponential average, in nanoseconds; 0: not known yet
    Atomic<int64_t> looked;     // when somebody last looked for the dead, CLOCK_MONOTONIC in nanoseconds
    alignas(128) SharedEvent<A> items;
    alignas(128) SharedEvent<A> room;
    char pad[124];
};

struct SharedEntry {
    using A = StdAtomics;
    template <class T>
    using Atomic = std::atomic<T>;
    // {incarnation : 32 | in use : 1}
    alignas(128) Atomic<uint64_t> state;
    Atomic<int64_t> pid, start_time, waiting_put, waiting_get;
    // Of all who ever had this entry.
    alignas(128) SharedJournal<A> journal;
    Atomic<int64_t> dropped_newest, passed_over, refused, full_waits, empty_waits, wakeups, high_events, recoveries;
};
static_assert(sizeof(SharedEntry) == 256 && sizeof(SharedControl<StdAtomics>) == 640, "the layout of version 1");
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free, "between processes");

// Where everything is, from the configuration alone.
struct SharedLayout {
    uint64_t slots, ring_size, stride;
    uint64_t control, entries, ring, state, dropped, cleared, lengths, payload, size;
};

class SharedSegment {
public:
    using Control = SharedControl<StdAtomics>;
    static constexpr uint64_t kMagic = 0x31657565755166ef;  // ef f Q u e u e 1
    static constexpr uint32_t kByteOrder = 0x01020304;
    static constexpr uint16_t kMajor = 1, kMinor = 0;
    static constexpr uint64_t kMaxSize = uint64_t{1} << 46;
    static constexpr unsigned kAnyOwner = 1;  // attach: flags
    // Slots one participant may claim at a time for a batch.
    static constexpr uint64_t kMostAtOnce = 64;

    SharedSegment() = default;
    ~SharedSegment() { drop(); }
    SharedSegment(const SharedSegment&) = delete;
    SharedSegment& operator=(const SharedSegment&) = delete;

    bool create(const char* path, SharedConfig config, mode_t mode, SharedFailure* failure) {
        if (config.spare == 0) config.spare = default_spare(config);
        config.nonce = nonce();
        config.reserved = 0;
        config.dtype[sizeof config.dtype - 1] = 0;
        if (!layout_of(config, &layout_, failure)) {
            failure->error = SharedError::bad_config;
            return false;
        }
        const int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0) {
            fail(failure, "create", path);
            if (failure->error == SharedError::missing) failure->error = SharedError::system;  // the folder is
            return false;
        }
        EDGEFAST_CRASH_POINT("create.opened");
        config_ = config;
        // The umask may have taken away what reopen needs.
        const bool done = (fchmod(fd, 0600) == 0 || fail(failure, "chmod", path)) && reopen(fd, path, failure) &&
                          fill(fd, path, mode, failure);
        ::close(fd);
        if (done) return true;
        unlink(path);
        drop();
        return false;
    }

    bool attach(const char* path, unsigned flags, SharedFailure* failure) {
        const int fd = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
        if (fd < 0) return fail(failure, "attach", path);
        EDGEFAST_CRASH_POINT("attach.opened");
        const bool mapped = examine(fd, path, flags, &config_, &layout_, failure) && map(fd, path, failure) &&
                            reopen(fd, path, failure);
        ::close(fd);
        if (mapped) {
            EDGEFAST_CRASH_POINT("attach.mapped");
            // The creator's last step: what it wrote before is visible.
            if (at<std::atomic<uint64_t>>(0)->load(std::memory_order_acquire) == kMagic) return true;
            failure->error = SharedError::corrupted;
            std::snprintf(failure->text, sizeof failure->text, "expected a header that does not change");
        }
        drop();
        return false;
    }
    // After attach and renew: takes an entry of the table.
    bool join(SharedFailure* failure) {
        bool locked_out = true;
        for (int tries = 0; locked_out && tries < kJoinTries; ++tries) {
            if (tries > 0) usleep(1000);
            locked_out = false;
            for (uint64_t i = 0; i < config_.participants; ++i) {
                if (in_use(i)) continue;
                if (!lock(i, F_WRLCK)) {
                    locked_out = true;  // for a moment: by one who joins or leaves, or by a cleanup of unused segments
                    continue;
                }
                if (in_use(i)) {
                    lock(i, F_UNLCK);
                    continue;
                }
                EDGEFAST_CRASH_POINT("attach.locked");
                enter(i);
                EDGEFAST_CRASH_POINT("attach.entered");
                return true;
            }
        }
        failure->error = SharedError::crowded;
        std::snprintf(failure->text, sizeof failure->text, "expected at most %" PRIu64 " participants at a time",
                      config_.participants);
        return false;
    }

    // In a forked child: gives up what it inherited, to become a participant of its own by join.
    bool renew(SharedFailure* failure) {
        if (fd_ < 0) return true;
        const int inherited = fd_;
        forget_entry();
        const bool done = reopen(inherited, nullptr, failure);
        ::close(inherited);
        return done;
    }
    void forget() {
        if (fd_ >= 0) ::close(fd_);
        forget_entry();
    }
    // Before: nothing of this participant's is in the ring.
    void leave() {
        if (joined()) {
            SharedEntry& e = entry(me());
            e.waiting_put.store(0, std::memory_order_relaxed);
            e.waiting_get.store(0, std::memory_order_relaxed);
            e.state.fetch_and(~uint64_t{1}, std::memory_order_release);
            EDGEFAST_CRASH_POINT("close.entry_free");
            lock(me(), F_UNLCK);  // whoever inherited the description
            me_ = kNobody;
        }
        if (fd_ >= 0) ::close(fd_);
        fd_ = -1;
        EDGEFAST_CRASH_POINT("close.unlocked");
    }

    void drop() {
        leave();
        if (memory_) munmap(memory_, static_cast<size_t>(layout_.size));
        memory_ = nullptr;
    }

    // Looks at a file without becoming a participant. *in_use: whether some process is one, or is creating it.
    static bool inspect(const char* path, unsigned flags, SharedConfig* config, bool* in_use, SharedFailure* failure) {
        SharedSegment s;
        s.fd_ = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
        if (s.fd_ < 0) return fail(failure, "inspect", path);
        *in_use = s.locked(0, kLocks);
        return examine(s.fd_, path, flags, config, &s.layout_, failure);
    }

    const SharedConfig& config() const { return config_; }
    const SharedLayout& layout() const { return layout_; }
    int descriptor() const { return fd_; }
    bool joined() const { return me() != kNobody; }
    uint64_t me() const { return me_.load(std::memory_order_relaxed); }
    Control& control() const { return *at<Control>(layout_.control); }
    SharedEntry& entry(uint64_t i) const { return at<SharedEntry>(layout_.entries)[i]; }
    char* payload(uint64_t slot) const { return memory_ + layout_.payload + slot * layout_.stride; }
    std::atomic<uint32_t>& length(uint64_t slot) const { return at<std::atomic<uint32_t>>(layout_.lengths)[slot]; }
    SharedRing<StdAtomics>::Memory ring_memory(std::atomic<uint64_t>* cursor) const {
        Control& c = control();
        using Word = std::atomic<uint64_t>;
        return {&c.head,
                &c.tail,
                &c.down,
                &c.limit,
                &c.high,
                &c.low,
                at<Word>(layout_.ring),
                at<Word>(layout_.state),
                at<Word>(layout_.dropped),
                at<Word>(layout_.cleared),
                cursor};
    }

    bool in_use(uint64_t i) const { return entry(i).state.load(std::memory_order_acquire) & 1; }
    bool alive(uint64_t i) const { return i == me() || locked(i, 1); }
    // True when the owner of entry i is dead, and nobody else finds that out until let_go(i).
    bool seize(uint64_t i) const {
        if (!lock(i, F_WRLCK)) return false;
        if (in_use(i)) return true;
        lock(i, F_UNLCK);
        return false;
    }
    // After recovery: the entry is anybody's.
    void bury(uint64_t i) const {
        SharedEntry& e = entry(i);
        e.waiting_put.store(0, std::memory_order_relaxed);
        e.waiting_get.store(0, std::memory_order_relaxed);
        e.state.fetch_and(~uint64_t{1}, std::memory_order_release);
        EDGEFAST_CRASH_POINT("recover.entry_free");
        let_go(i);
    }
    void let_go(uint64_t i) const { lock(i, F_UNLCK); }

    // Overflow-checked; what a header says that attach reads is as foreign as any other bytes.
    static bool layout_of(const SharedConfig& c, SharedLayout* layout, SharedFailure* failure) {
        const auto out_of_range = [&](const char* name, uint64_t value, uint64_t least, uint64_t most) {
            failure->error = SharedError::corrupted;
            std::snprintf(failure->text, sizeof failure->text, "expected %s between %" PRIu64 " and %" PRIu64 ", got %" PRIu64,
                          name, least, most, value);
            return false;
        };
        const auto within = [](uint64_t value, uint64_t least, uint64_t most) { return value >= least && value <= most; };
        using Ring = SharedRing<StdAtomics>;
        if (!within(c.kind, 0, 1)) return out_of_range("kind", c.kind, 0, 1);
        if (!within(c.policy, 0, 4)) return out_of_range("policy", c.policy, 0, 4);
        if (!within(c.drop_of_dead, 0, 1)) return out_of_range("drop_of_dead", c.drop_of_dead, 0, 1);
        if (!within(c.participants, 1, Ring::kMaxOwners))
            return out_of_range("participants", c.participants, 1, Ring::kMaxOwners);
        if (!within(c.capacity, 1, Ring::kMaxSlots - 1)) return out_of_range("capacity", c.capacity, 1, Ring::kMaxSlots - 1);
        const uint64_t most_spare = Ring::kMaxSlots - c.capacity;
        if (!within(c.spare, 1, most_spare)) return out_of_range("spare", c.spare, 1, most_spare);
        if (!within(c.itemsize, 1, UINT32_MAX)) return out_of_range("itemsize", c.itemsize, 1, UINT32_MAX);
        if (!within(c.dimensions, 0, 8)) return out_of_range("dimensions", c.dimensions, 0, 8);
        if (std::memchr(c.dtype, 0, sizeof c.dtype) == nullptr)
            return out_of_range("length of dtype", sizeof c.dtype, 0, sizeof c.dtype - 1);
        // slots < 2^24 and stride < 2^33: no sum below exceeds 2^58.
        SharedLayout l{};
        l.slots = c.capacity + c.spare;
        l.ring_size = 64;
        while (l.ring_size < l.slots) l.ring_size *= 2;
        l.stride = c.kind == shared_records ? c.itemsize : (c.itemsize + 7) / 8 * 8;
        uint64_t end = 1024;
        const auto place = [&](uint64_t bytes) {
            const uint64_t begin = end;
            end = (end + bytes + 127) / 128 * 128;
            return begin;
        };
        l.control = place(sizeof(Control));
        l.entries = place(c.participants * sizeof(SharedEntry));
        l.ring = place(l.ring_size * 8);
        l.state = place(l.slots * 8);
        l.dropped = place(l.slots * 8);
        l.cleared = place(l.slots * 8);
        l.lengths = place(c.kind == shared_records ? 0 : l.slots * 4);
        // In the middle of a page: see RecordQueue::allocate.
        l.payload = (end + kPage - 1) / kPage * kPage + kPage / 2;
        l.size = (l.payload + l.slots * l.stride + kPage - 1) / kPage * kPage;
        if (l.size > kMaxSize || l.size > SIZE_MAX / 2) return out_of_range("size in bytes", l.size, 1, kMaxSize);
        *layout = l;
        return true;
    }

    // CRC-32 of all after the magic number.
    static uint32_t checksum(const SharedHeader& h) {
        const auto* bytes = reinterpret_cast<const unsigned char*>(&h);
        uint32_t crc = ~uint32_t{0};
        for (size_t i = sizeof h.magic; i < offsetof(SharedHeader, checksum); ++i) {
            crc ^= bytes[i];
            for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
        }
        return ~crc;
    }

private:
    static constexpr uint64_t kPage = 4096, kNobody = UINT64_MAX;
    // Bytes at a time after a signal, which undoes a whole call before Linux 6.8: under a frequent one it would never end.
    static constexpr uint64_t kAllocate = uint64_t{4} << 20;
    static constexpr int kJoinTries = 200;  // milliseconds
    static constexpr off_t kLockBase = off_t{1} << 62;
    static constexpr uint64_t kLocks = SharedRing<StdAtomics>::kMaxOwners;

    template <class T>
    T* at(uint64_t offset) const {
        return reinterpret_cast<T*>(memory_ + offset);
    }

    // A slot for each that may stop with a batch in its hands, as far as 1 MiB goes, and for some single ones.
    static uint64_t default_spare(const SharedConfig& c) {
        const uint64_t bytes = c.itemsize > UINT32_MAX ? UINT32_MAX : c.itemsize + 32;
        const uint64_t affordable = (uint64_t{1} << 20) / bytes;
        uint64_t spare = c.participants * kMostAtOnce;
        if (spare > affordable) spare = affordable;
        if (spare < 4) spare = 4;
        if (c.capacity < SharedRing<StdAtomics>::kMaxSlots && spare > SharedRing<StdAtomics>::kMaxSlots - c.capacity)
            spare = SharedRing<StdAtomics>::kMaxSlots - c.capacity;
        return spare;
    }
    static uint64_t nonce() {
        timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        uint64_t x = static_cast<uint64_t>(t.tv_sec) * 1000000000 + static_cast<uint64_t>(t.tv_nsec);
        x ^= static_cast<uint64_t>(getpid()) << 40;
        // A bijection (splitmix64): different moments give different numbers.
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9, x = (x ^ x >> 27) * 0x94d049bb133111eb;
        return x ^ x >> 31;
    }
    static bool fail(SharedFailure* failure, const char* what, const char* path) {
        const int error = errno;
        failure->os_error = error;
        switch (error) {
            case EEXIST: failure->error = SharedError::exists; break;
            case ENOENT: failure->error = SharedError::missing; break;
            case EACCES:
            case EPERM:
            case ELOOP: failure->error = SharedError::not_allowed; break;
            case ENOSPC:
            case ENOMEM:
            case EFBIG: failure->error = SharedError::no_space; break;
            default: failure->error = SharedError::system;
        }
        std::snprintf(failure->text, sizeof failure->text, "%s %.150s: %s", what, path, std::strerror(error));
        return false;
    }

    // Another description of the same file, for the locks.
    bool reopen(int fd, const char* path, SharedFailure* failure) {
        char self[40];
        std::snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
        fd_ = open(self, O_RDWR | O_CLOEXEC);
        if (fd_ < 0 && path) {
            // Without /proc: by name, if it still means the same file.
            struct stat a, b;
            fd_ = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
            if (fd_ >= 0 && (fstat(fd, &a) != 0 || fstat(fd_, &b) != 0 || a.st_dev != b.st_dev || a.st_ino != b.st_ino)) {
                ::close(fd_);
                fd_ = -1;
                errno = ENOENT;
            }
        }
        return fd_ >= 0 || fail(failure, "reopen", path ? path : self);
    }
    void forget_entry() {
        fd_ = -1;
        me_ = kNobody;
    }

    bool fill(int fd, const char* path, mode_t mode, SharedFailure* failure) {
        // Locked first: whoever finds the file unfinished and unlocked knows that its creator is dead.
        if (!lock(0, F_WRLCK)) return fail(failure, "lock", path);
        EDGEFAST_CRASH_POINT("create.locked");
        // All pages now: an error here instead of SIGBUS later.
        // At once, so that too much is refused before anything is taken.
        const auto allocate = [&](uint64_t at, uint64_t bytes) {
            return posix_fallocate(fd_, static_cast<off_t>(at), static_cast<off_t>(bytes));
        };
        int error = allocate(0, layout_.size);
        if (error == EINTR) {
            error = 0;
            for (uint64_t at = 0; error == 0 && at < layout_.size; at += kAllocate) {
                const uint64_t left = layout_.size - at;
                do error = allocate(at, left < kAllocate ? left : kAllocate);
                while (error == EINTR);
            }
        }
        if (error != 0) {
            errno = error;
            return fail(failure, "allocate", path);
        }
        EDGEFAST_CRASH_POINT("create.allocated");
        if (!map(fd, path, failure)) return false;
        auto& header = *at<SharedHeader>(0);
        header.byte_order = kByteOrder;
        header.major = kMajor;
        header.minor = kMinor;
        header.size = layout_.size;
        header.config = config_;
        header.checksum = checksum(header);
        EDGEFAST_CRASH_POINT("create.header");
        std::atomic<uint64_t> cursor{0};
        SharedRing<StdAtomics> ring;
        ring.bind(ring_memory(&cursor), layout_.slots, layout_.ring_size);
        ring.start(static_cast<int64_t>(config_.capacity));
        enter(0);
        EDGEFAST_CRASH_POINT("create.entered");
        if ((mode & 0777) != 0600 && fchmod(fd_, mode & 0777) != 0) return fail(failure, "chmod", path);
        at<std::atomic<uint64_t>>(0)->store(kMagic, std::memory_order_release);
        EDGEFAST_CRASH_POINT("create.magic");
        return true;
    }

    static bool examine(int fd, const char* path, unsigned flags, SharedConfig* config, SharedLayout* layout,
                        SharedFailure* failure) {
        struct stat s;
        if (fstat(fd, &s) != 0) return fail(failure, "stat", path);
        const auto because = [&](SharedError error, const char* format, auto... values) {
            failure->error = error;
            std::snprintf(failure->text, sizeof failure->text, format, values...);
            return false;
        };
        if (!S_ISREG(s.st_mode)) return because(SharedError::not_a_queue, "%s", "expected a regular file");
        if (s.st_uid != geteuid() && !(flags & kAnyOwner))
            return because(SharedError::not_allowed, "expected a file of user %u, got one of user %u",
                           static_cast<unsigned>(geteuid()), static_cast<unsigned>(s.st_uid));
        SharedHeader h;
        const ssize_t n = pread(fd, &h, sizeof h, 0);
        if (n < 0) return fail(failure, "read", path);
        if (n == 0) return because(SharedError::not_ready, "%s", "the queue is not finished: no bytes yet");
        if (n < static_cast<ssize_t>(sizeof h))
            return because(SharedError::not_a_queue, "expected a header of %zu bytes, got %zd", sizeof h, n);
        if (h.magic == 0) return because(SharedError::not_ready, "%s", "the queue is not finished: no magic number yet");
        if (h.magic != kMagic)
            return because(SharedError::not_a_queue, "expected magic number %016" PRIx64 ", got %016" PRIx64, kMagic, h.magic);
        if (h.byte_order != kByteOrder || h.major != kMajor)
            return because(SharedError::version, "expected version %u in byte order %08x, got %u in %08x", unsigned{kMajor},
                           kByteOrder, unsigned{h.major}, h.byte_order);
        const uint32_t sum = checksum(h);
        if (h.checksum != sum) return because(SharedError::corrupted, "expected header checksum %08x, got %08x", sum, h.checksum);
        if (!layout_of(h.config, layout, failure)) return false;
        if (h.size != layout->size)
            return because(SharedError::corrupted, "expected size %" PRIu64 ", got %" PRIu64 " in the header", layout->size, h.size);
        if (static_cast<uint64_t>(s.st_size) != layout->size)
            return because(SharedError::corrupted, "expected a file of %" PRIu64 " bytes, got %" PRIu64, layout->size,
                           static_cast<uint64_t>(s.st_size));
        *config = h.config;
        return true;
    }

    bool map(int fd, const char* path, SharedFailure* failure) {
        const int flags = MAP_SHARED | (layout_.size <= kPopulate ? MAP_POPULATE : 0);
        void* memory = mmap(nullptr, static_cast<size_t>(layout_.size), PROT_READ | PROT_WRITE, flags, fd, 0);
        if (memory == MAP_FAILED) return fail(failure, "map", path);
        memory_ = static_cast<char*>(memory);
        return true;
    }
    static constexpr uint64_t kPopulate = uint64_t{256} << 20;

    void enter(uint64_t i) {
        SharedEntry& e = entry(i);
        e.pid.store(getpid(), std::memory_order_relaxed);
        e.start_time.store(start_time(), std::memory_order_relaxed);
        e.waiting_put.store(0, std::memory_order_relaxed);
        e.waiting_get.store(0, std::memory_order_relaxed);
        const uint64_t before = e.state.load(std::memory_order_relaxed);
        e.state.store(((before >> 32) + 1) << 32 | 1, std::memory_order_release);
        me_ = i;
    }
    // Of this process, in clock ticks since boot: with the pid it names a process for ever. 0: not known.
    static int64_t start_time() {
        char text[1024];
        const int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
        if (fd < 0) return 0;
        const ssize_t n = read(fd, text, sizeof text - 1);
        ::close(fd);
        if (n <= 0) return 0;
        text[n] = 0;
        const char* p = std::strrchr(text, ')');  // the command's name may hold anything
        for (int field = 2; p && field < 22; ++field) p = std::strchr(p + 1, ' ');
        long long ticks = 0;
        return p && std::sscanf(p, "%lld", &ticks) == 1 ? ticks : 0;
    }

    bool lock(uint64_t i, short type) const {
        struct flock l {};
        l.l_type = type;
        l.l_whence = SEEK_SET;
        l.l_start = kLockBase + static_cast<off_t>(i);
        l.l_len = 1;
        return fcntl(fd_, F_OFD_SETLK, &l) == 0;
    }
    // Whether another open file holds one of n locks.
    bool locked(uint64_t i, uint64_t n) const {
        struct flock l {};
        l.l_type = F_WRLCK;
        l.l_whence = SEEK_SET;
        l.l_start = kLockBase + static_cast<off_t>(i);
        l.l_len = static_cast<off_t>(n);
        return fcntl(fd_, F_OFD_GETLK, &l) == 0 && l.l_type != F_UNLCK;
    }

    int fd_ = -1;
    std::atomic<uint64_t> me_{kNobody};  // threads that sleep while the handle is closed read it
    char* memory_ = nullptr;
    SharedConfig config_{};
    SharedLayout layout_{};
};

}  // namespace ef

#endif
