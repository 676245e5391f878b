// Vector types of the level being compiled, over the compilers' vector extension (GCC and clang, any target).
// Included inside a body's `namespace ef { namespace EF_ISA {`; no include guard on purpose.

typedef float vf32 __attribute__((vector_size(EF_VECTOR_BYTES)));
typedef double vf64 __attribute__((vector_size(EF_VECTOR_BYTES)));
typedef int32_t vi32 __attribute__((vector_size(EF_VECTOR_BYTES)));
typedef uint32_t vu32 __attribute__((vector_size(EF_VECTOR_BYTES)));
typedef float vf32_half __attribute__((vector_size(EF_VECTOR_BYTES / 2)));  // as many lanes as vf64

constexpr int kLanesF32 = EF_VECTOR_BYTES / 4;
constexpr int kLanesF64 = EF_VECTOR_BYTES / 8;

// Unaligned access: numpy promises element alignment only, and bytes from the wire not even that.
template <class V, class T>
static inline __attribute__((always_inline)) V load_as(const T* p) {
    V v;
    __builtin_memcpy(&v, p, sizeof(V));
    return v;
}
template <class V, class T>
static inline __attribute__((always_inline)) void store_as(T* p, V v) {
    __builtin_memcpy(p, &v, sizeof(V));
}
