// Vec<T>: one register of the SIMD level being compiled, over the compilers' vector extension (GCC >= 12 and clang).
// Included inside a body's `namespace ef { namespace EF_ISA {`, once per body; no include guard on purpose.

template <class T>
struct Vec;
template <>
struct Vec<float> {
    typedef float type __attribute__((vector_size(EF_VECTOR_BYTES)));
    typedef uint32_t bits __attribute__((vector_size(EF_VECTOR_BYTES)));
    typedef uint32_t word;
    static constexpr int lanes = EF_VECTOR_BYTES / 4;
    static constexpr uint32_t sign = 0x80000000u;
};
template <>
struct Vec<double> {
    typedef double type __attribute__((vector_size(EF_VECTOR_BYTES)));
    typedef uint64_t bits __attribute__((vector_size(EF_VECTOR_BYTES)));
    typedef uint64_t word;
    static constexpr int lanes = EF_VECTOR_BYTES / 8;
    static constexpr uint64_t sign = 0x8000000000000000ull;
};

#define EF_INLINE static inline __attribute__((always_inline))

// Unaligned access: numpy promises element alignment only, and bytes from the wire not even that.
template <class V, class T>
EF_INLINE V load(const T* p) {
    V v;
    __builtin_memcpy(&v, p, sizeof(V));
    return v;
}
template <class V, class T>
EF_INLINE void store(T* p, V v) {
    __builtin_memcpy(p, &v, sizeof(V));
}
template <class T>
EF_INLINE T load_scalar(const char* p) {
    T v;
    __builtin_memcpy(&v, p, sizeof(T));
    return v;
}

// x with its sign flipped where the mask has the sign bit: exact, NaN included.
template <class T>
EF_INLINE typename Vec<T>::type flip(typename Vec<T>::type x, typename Vec<T>::bits mask) {
    return (typename Vec<T>::type)((typename Vec<T>::bits)x ^ mask);
}

// Lane numbers as a parameter pack, to write shuffles once for every width.
template <int... I>
struct Lanes {};
template <int N, int... I>
struct MakeLanes : MakeLanes<N - 1, N - 1, I...> {};
template <int... I>
struct MakeLanes<0, I...> {
    typedef Lanes<I...> type;
};

template <int S, class V, int... I>
EF_INLINE V shuffle_xor(V v, Lanes<I...>) {
    return __builtin_shufflevector(v, v, (I ^ S)...);
}
// The two halves of one exchange step of a matrix transpose: blocks of S lanes swap across the diagonal.
template <int S, class V, int... I>
EF_INLINE V exchange_low(V a, V b, Lanes<I...>) {
    constexpr int n = sizeof...(I);
    return __builtin_shufflevector(a, b, ((I & S) ? n + I - S : I)...);
}
template <int S, class V, int... I>
EF_INLINE V exchange_high(V a, V b, Lanes<I...>) {
    constexpr int n = sizeof...(I);
    return __builtin_shufflevector(a, b, ((I & S) ? n + I : I + S)...);
}

template <class T, int S>
struct TransposeStep {
    EF_INLINE void run(typename Vec<T>::type* v) {
        constexpr int n = Vec<T>::lanes;
        typename MakeLanes<n>::type lanes;
        for (int i = 0; i < n; ++i) {
            if (i & S) continue;
            const typename Vec<T>::type a = v[i], b = v[i + S];
            v[i] = exchange_low<S>(a, b, lanes);
            v[i + S] = exchange_high<S>(a, b, lanes);
        }
        TransposeStep<T, S / 2>::run(v);
    }
};
template <class T>
struct TransposeStep<T, 0> {
    EF_INLINE void run(typename Vec<T>::type*) {}
};

// In-register transpose of lanes x lanes elements.
template <class T>
EF_INLINE void transpose(typename Vec<T>::type* v) {
    TransposeStep<T, Vec<T>::lanes / 2>::run(v);
}
