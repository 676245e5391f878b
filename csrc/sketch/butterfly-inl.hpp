// The Hadamard butterflies over one contiguous vector, shared by fwht and srht. Needs common/vector-inl.hpp.

template <class T, int S>
EF_INLINE typename Vec<T>::type lane_stage(typename Vec<T>::type v) {
    typedef typename Vec<T>::bits Bits;
    constexpr int n = Vec<T>::lanes;
    Bits mask = {};
    for (int i = 0; i < n; ++i) mask[i] = (i & S) ? Vec<T>::sign : 0;
    // Lower lane: b + a, upper lane: a + (-b): the same roundings as the scalar butterfly.
    return shuffle_xor<S>(v, typename MakeLanes<n>::type()) + flip<T>(v, mask);
}

template <class T, int S, int N>
struct LaneStages {
    EF_INLINE typename Vec<T>::type run(typename Vec<T>::type v) {
        return LaneStages<T, S * 2, N>::run(lane_stage<T, S>(v));
    }
};
template <class T, int N>
struct LaneStages<T, N, N> {
    EF_INLINE typename Vec<T>::type run(typename Vec<T>::type v) { return v; }
};

// One pass of log2(R) stages with strides h, 2h, ..: R registers at distance h, R/2 * log2(R) butterflies.
template <class T, int R>
EF_INLINE void radix(T* p, int64_t h) {
    typedef typename Vec<T>::type V;
    V v[R];
    for (int i = 0; i < R; ++i) v[i] = load<V>(p + i * h);
    for (int s = 1; s < R; s *= 2) {
        for (int i = 0; i < R; ++i) {
            if (i & s) continue;
            const V a = v[i], b = v[i + s];
            v[i] = a + b;
            v[i + s] = a - b;
        }
    }
    for (int i = 0; i < R; ++i) store(p + i * h, v[i]);
}

template <class T, int R>
static void pass(T* a, int64_t n, int64_t h) {
    constexpr int lanes = Vec<T>::lanes;
    for (int64_t base = 0; base < n; base += R * h)
        for (int64_t i = 0; i < h; i += lanes) radix<T, R>(a + base + i, h);
}

// Stages with strides h, 2h, .., n/2, in ascending order: the order fixes the bits.
template <class T>
static void strided_stages(T* a, int64_t n, int64_t h) {
    while (h * 8 <= n) {
        pass<T, 8>(a, n, h);
        h *= 8;
    }
    if (h * 4 <= n) {
        pass<T, 4>(a, n, h);
        h *= 4;
    }
    if (h * 2 <= n) pass<T, 2>(a, n, h);
}

template <class T>
static void butterflies(T* a, int64_t n) {
    typedef typename Vec<T>::type V;
    constexpr int lanes = Vec<T>::lanes;
    if (n < lanes) {
        for (int64_t h = 1; h < n; h *= 2)
            for (int64_t base = 0; base < n; base += 2 * h)
                for (int64_t i = base; i < base + h; ++i) {
                    const T x = a[i], y = a[i + h];
                    a[i] = x + y;
                    a[i + h] = x - y;
                }
        return;
    }
    // A block that fits the first-level cache goes through all its stages before the next one is touched.
    constexpr int64_t kBlock = (16 << 10) / sizeof(T);
    const int64_t block = n < kBlock ? n : kBlock;
    for (int64_t base = 0; base < n; base += block) {
        for (int64_t i = 0; i < block; i += lanes)
            store(a + base + i, LaneStages<T, 1, lanes>::run(load<V>(a + base + i)));
        strided_stages<T>(a + base, block, lanes);
    }
    strided_stages<T>(a, n, block);
}

template <class T>
static void multiply(T* a, int64_t n, T scale) {
    typedef typename Vec<T>::type V;
    int64_t i = 0;
    for (; i + Vec<T>::lanes <= n; i += Vec<T>::lanes) store(a + i, load<V>(a + i) * scale);
    for (; i < n; ++i) a[i] *= scale;
}
