namespace ef {
namespace EF_ISA {
namespace {

EF_COUNT_INLINE float flipped(float x, uint32_t entry) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    bits ^= entry & 0x80000000u;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}
EF_COUNT_INLINE double flipped(double x, uint32_t entry) {
    uint64_t bits;
    __builtin_memcpy(&bits, &x, 8);
    bits ^= static_cast<uint64_t>(entry & 0x80000000u) << 32;
    __builtin_memcpy(&x, &bits, 8);
    return x;
}
EF_COUNT_INLINE int64_t flipped(int64_t x, uint32_t entry) {
    const uint64_t m = uint64_t{0} - (entry >> 31);
    return static_cast<int64_t>((static_cast<uint64_t>(x) ^ m) - m);
}
EF_COUNT_INLINE float sum(float a, float b) { return a + b; }
EF_COUNT_INLINE double sum(double a, double b) { return a + b; }
EF_COUNT_INLINE int64_t sum(int64_t a, int64_t b) {
    return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}

// Row `r` of the table for all values. entries[i * depth + r] belongs to value i.
template <class X, class A>
void add_to_row(const X* values, const uint32_t* entries, int64_t count, int depth, int r, A* counters) {
    const uint32_t* entry = entries + r;
    for (int64_t i = 0; i < count; ++i, entry += depth) {
        A* a = counters + (*entry & 0x7fffffffu);
        *a = sum(*a, flipped(static_cast<A>(values[i]), *entry));
    }
}

// Estimates of kGroup indices at a time: their counters side by side, sorted by exchanging neighbours.
template <class A, class Y>
void estimate(const A* counters, const uint32_t* entries, int64_t count, int depth, Y* out) {
    constexpr int kGroup = 16;
    alignas(64) Y v[256][kGroup];
    for (int64_t i = 0; i < count; i += kGroup) {
        const int group = count - i < kGroup ? static_cast<int>(count - i) : kGroup;
        for (int g = 0; g < group; ++g) {
            const uint32_t* entry = entries + (i + g) * depth;
            for (int r = 0; r < depth; ++r) v[r][g] = static_cast<Y>(flipped(counters[entry[r] & 0x7fffffffu], entry[r]));
        }
        for (int g = group; g < kGroup; ++g)
            for (int r = 0; r < depth; ++r) v[r][g] = 0;
        for (int round = 0; round < depth; ++round)
            for (int r = round & 1; r + 1 < depth; r += 2)
                for (int g = 0; g < kGroup; ++g) {
                    const Y a = v[r][g], b = v[r + 1][g];
                    v[r][g] = a < b ? a : b;
                    v[r + 1][g] = a < b ? b : a;
                }
        const Y *low = v[(depth - 1) / 2], *high = v[depth / 2];
        for (int g = 0; g < group; ++g)
            out[i + g] = (depth & 1 ? low[g] : low[g] * static_cast<Y>(0.5) + high[g] * static_cast<Y>(0.5)) + static_cast<Y>(0);
    }
}

}  // namespace

static void count_add_f32(const void* values, const uint32_t* entries, int64_t count, int depth, int r, void* counters) noexcept {
    add_to_row(static_cast<const float*>(values), entries, count, depth, r, static_cast<float*>(counters));
}
static void count_add_f32_to_f64(const void* values, const uint32_t* entries, int64_t count, int depth, int r, void* counters) noexcept {
    add_to_row(static_cast<const float*>(values), entries, count, depth, r, static_cast<double*>(counters));
}
static void count_add_f64(const void* values, const uint32_t* entries, int64_t count, int depth, int r, void* counters) noexcept {
    add_to_row(static_cast<const double*>(values), entries, count, depth, r, static_cast<double*>(counters));
}
static void count_add_i64(const void* values, const uint32_t* entries, int64_t count, int depth, int r, void* counters) noexcept {
    add_to_row(static_cast<const int64_t*>(values), entries, count, depth, r, static_cast<int64_t*>(counters));
}
static void count_estimate_f32(const void* counters, const uint32_t* entries, int64_t count, int depth, void* out) noexcept {
    estimate(static_cast<const float*>(counters), entries, count, depth, static_cast<float*>(out));
}
static void count_estimate_f64(const void* counters, const uint32_t* entries, int64_t count, int depth, void* out) noexcept {
    estimate(static_cast<const double*>(counters), entries, count, depth, static_cast<double*>(out));
}
static void count_estimate_i64(const void* counters, const uint32_t* entries, int64_t count, int depth, void* out) noexcept {
    estimate(static_cast<const int64_t*>(counters), entries, count, depth, static_cast<double*>(out));
}

}  // namespace EF_ISA
}  // namespace ef
