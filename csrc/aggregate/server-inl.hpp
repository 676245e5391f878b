// Body of aggregate/server.hpp; see there for numerics.
namespace ef {
namespace EF_ISA {
namespace server {

#include "aggregate/element-inl.hpp"

template <class T>
struct State {
    typedef float type;
};
template <>
struct State<double> {
    typedef double type;
};

EF_INLINE V root(V v) {
#if defined(EF_TARGET_AVX512)
    return (V)_mm512_sqrt_pd((__m512d)v);
#elif defined(EF_TARGET_AVX2)
    return (V)_mm256_sqrt_pd((__m256d)v);
#elif defined(EF_TARGET_NEON)
    return (V)vsqrtq_f64((float64x2_t)v);
#else
    for (int i = 0; i < kLanes; ++i) v[i] = __builtin_sqrt(v[i]);
    return v;
#endif
}

// kLanes coordinates; Width 1 runs the same arithmetic on the first lane only, for the ends of tensors.
template <class T, ef::ServerRule Rule>
struct Step {
    typedef typename State<T>::type S;
    const ef::ServerStep& p;
    double total;
    const T* x;
    const void* sums;
    S* m;
    S* v;
    T* out;

    // The stored state: rounded to its type, and read back.
    EF_INLINE V keep(S* to, V value, bool all) {
        if (all) {
            Element<S>::write(to, value);
            return Element<S>::read(to);
        }
        Element<S>::write_one(to, value[0]);
        return V{} + Element<S>::read_one(to);
    }
    EF_INLINE V load(const S* from, bool all) { return all ? Element<S>::read(from) : V{} + Element<S>::read_one(from); }
    EF_INLINE V load_x(const T* from, bool all) {
        return all ? Element<T>::read(from) : V{} + Element<T>::read_one(from);
    }

    inline __attribute__((always_inline)) void at(int64_t i, bool all) const {
        const V old = load_x(x + i, all);
        V mean;
        if (total > 0) {
            const double* s = static_cast<const double*>(sums) + i;
            const V quotient = (all ? Element<double>::read(s) : V{} + Element<double>::read_one(s)) / total;
            T rounded[kLanes];
            if (all) {
                Element<T>::write(rounded, quotient);
            } else {
                Element<T>::write_one(rounded, quotient[0]);
            }
            mean = load_x(rounded, all);
        } else {
            mean = load_x(static_cast<const T*>(sums) + i, all);
        }
        V next;
        if constexpr (Rule == ef::ServerRule::average) {
            next = old + (mean - old) * p.lr;
        } else if constexpr (Rule == ef::ServerRule::momentum || Rule == ef::ServerRule::nesterov) {
            const V gradient = old - mean;
            const V velocity = keep(v + i, load(v + i, all) * p.beta1 + gradient, all);
            next = Rule == ef::ServerRule::momentum ? old - velocity * p.lr
                                                    : old - (gradient + velocity * p.beta1) * p.lr;
        } else {
            const V delta = mean - old;
            const V square = delta * delta;
            const V momentum = keep(m + i, load(m + i, all) * p.beta1 + delta * p.rest1, all);
            const V before = load(v + i, all);
            V after;
            if constexpr (Rule == ef::ServerRule::adagrad) {
                after = before + square;
            } else if constexpr (Rule == ef::ServerRule::adam) {
                after = before * p.beta2 + square * p.rest2;
            } else {
                const V amount = square * p.rest2;
                const V zero = {};
                after = before - (before == square ? zero : before < square ? -amount : amount);  // NaN stays
            }
            const V scale = keep(v + i, after, all);
            const V down = p.tau_inside ? root(scale + p.tau) : root(scale) + p.tau;
            next = old + momentum * p.lr / down;
        }
        if (all) {
            Element<T>::write(out + i, next);
        } else {
            Element<T>::write_one(out + i, next[0]);
        }
    }
};

template <class T, ef::ServerRule Rule>
static void run(const ef::ServerStep& p, double total, const ef::ServerTensor& t, int64_t offset, int64_t n) {
    typedef typename State<T>::type S;
    const Step<T, Rule> step = {p,
                                total,
                                static_cast<const T*>(t.x),
                                t.sums,
                                static_cast<S*>(t.m),
                                static_cast<S*>(t.v),
                                static_cast<T*>(t.out)};
    int64_t i = offset;
    for (; i + kLanes <= offset + n; i += kLanes) step.at(i, true);
    for (; i < offset + n; ++i) step.at(i, false);
}

template <class T>
static void run_rule(const ef::ServerStep& p, double total, const ef::ServerTensor& t, int64_t offset, int64_t n) {
    switch (p.rule) {
        case ef::ServerRule::average: return run<T, ef::ServerRule::average>(p, total, t, offset, n);
        case ef::ServerRule::momentum: return run<T, ef::ServerRule::momentum>(p, total, t, offset, n);
        case ef::ServerRule::nesterov: return run<T, ef::ServerRule::nesterov>(p, total, t, offset, n);
        case ef::ServerRule::adagrad: return run<T, ef::ServerRule::adagrad>(p, total, t, offset, n);
        case ef::ServerRule::adam: return run<T, ef::ServerRule::adam>(p, total, t, offset, n);
        case ef::ServerRule::yogi: return run<T, ef::ServerRule::yogi>(p, total, t, offset, n);
    }
}

struct Body {
    const ef::ServerStep& p;
    double total;
    const ef::ServerTensor* tensors;
    const ef::TensorSpec* specs;
    void operator()(int64_t t, int64_t offset, int64_t n) const {
        switch (specs[t].dtype) {
            case ef::DType::f16: return run_rule<Half>(p, total, tensors[t], offset, n);
            case ef::DType::bf16: return run_rule<Brain>(p, total, tensors[t], offset, n);
            case ef::DType::f32: return run_rule<float>(p, total, tensors[t], offset, n);
            case ef::DType::f64: return run_rule<double>(p, total, tensors[t], offset, n);
            default: return;
        }
    }
};

static void step(const ef::ServerStep& p, double total, const ef::ServerTensor* tensors, const ef::TensorSpec* specs,
                 int64_t count, int threads) noexcept {
    Body body = {p, total, tensors, specs};
    walk(specs, count, 4, threads, body);
}

}  // namespace server

static const ef::ServerKernels kServer = {server::step};
static const ef::ServerKernels* const kServerTable = &kServer;

}  // namespace EF_ISA
}  // namespace ef
