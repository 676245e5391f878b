// Sketch kernels on arrays. Shapes and dtypes were validated in Python; here only what memory safety needs is checked.
#include <cstdint>

#include "bindings/kernels.hpp"
#include "common/philox.hpp"
#include "sketch/hadamard.hpp"
#include "sketch/operators.hpp"

namespace py = pybind11;

namespace ef {

namespace {

bool is_double(const py::array& a) { return a.itemsize() == 8; }

void require(bool condition, const char* message) {
    if (!condition) throw py::value_error(message);
}

// x (n, d) float32/float64 with any strides, y (n, k) of the same type, C-contiguous and writeable.
MatrixView view(const py::array& x, const py::array& y) {
    require(x.ndim() == 2 && y.ndim() == 2 && x.shape(0) == y.shape(0), "expected two matrices of as many rows");
    require(x.dtype().kind() == 'f' && y.dtype().kind() == 'f' && x.itemsize() == y.itemsize() &&
                (x.itemsize() == 4 || x.itemsize() == 8),
            "expected two float32 or two float64 arrays");
    require((y.flags() & py::array::c_style) && y.writeable(), "expected a writeable C-contiguous output");
    return {static_cast<const char*>(x.data()), x.shape(0), x.shape(1), x.strides(0), x.strides(1)};
}

template <class Call32, class Call64>
void run(const py::array& y, Call32 call32, Call64 call64) {
    void* out = const_cast<void*>(y.data());
    bool done;
    {
        py::gil_scoped_release release;
        done = is_double(y) ? call64(static_cast<double*>(out)) : call32(static_cast<float*>(out));
    }
    if (!done) throw std::bad_alloc();
}

void sparse_stack_transform(const Kernels& self, const py::array& x, const py::array& y, uint64_t seed, int nnz,
                            double scale, int threads) {
    const MatrixView v = view(x, y);
    const int64_t k = y.shape(1);
    require(nnz >= 1 && nnz <= k && k < (int64_t(1) << 31), "expected 1 <= nnz <= k < 2**31");
    run(
        y,
        [&](float* p) {
            return operator_kernels_f32(self.isa).sparse_stack(v, p, k, nnz, seed, static_cast<float>(scale), threads);
        },
        [&](double* p) { return operator_kernels_f64(self.isa).sparse_stack(v, p, k, nnz, seed, scale, threads); });
}

void srht_transform(const Kernels& self, const py::array& x, const py::array& y, uint64_t seed,
                    const py::array_t<int64_t, py::array::c_style>& rows, double scale, int threads) {
    const MatrixView v = view(x, y);
    const int64_t k = y.shape(1);
    int64_t padded = 1;
    while (padded < v.columns) padded *= 2;
    require(rows.ndim() == 1 && rows.shape(0) == k, "expected one Hadamard row per output");
    for (int64_t i = 0; i < k; ++i) require(rows.at(i) >= 0 && rows.at(i) < padded, "Hadamard row out of range");
    const int64_t* r = rows.data();
    run(
        y,
        [&](float* p) {
            return operator_kernels_f32(self.isa).srht(v, p, r, k, padded, seed, static_cast<float>(scale), threads);
        },
        [&](double* p) { return operator_kernels_f64(self.isa).srht(v, p, r, k, padded, seed, scale, threads); });
}

void rademacher_transform(const Kernels& self, const py::array& x, const py::array& y, uint64_t seed, double scale,
                          int threads) {
    const MatrixView v = view(x, y);
    const int64_t k = y.shape(1);
    run(
        y,
        [&](float* p) {
            return operator_kernels_f32(self.isa).rademacher(v, p, k, seed, static_cast<float>(scale), threads);
        },
        [&](double* p) { return operator_kernels_f64(self.isa).rademacher(v, p, k, seed, scale, threads); });
}

void fwht_rows(const Kernels& self, const py::array& a, double scale, int threads) {
    require(a.ndim() == 2 && a.dtype().kind() == 'f' && (a.itemsize() == 4 || a.itemsize() == 8),
            "expected a float32 or float64 matrix");
    require((a.flags() & py::array::c_style) && a.writeable(), "expected a writeable C-contiguous array");
    const int64_t rows = a.shape(0), n = a.shape(1);
    require(n > 0 && (n & (n - 1)) == 0, "expected a power of two");
    run(
        a,
        [&](float* p) {
            hadamard_kernels(self.isa).f32(p, rows, n, static_cast<float>(scale), threads);
            return true;
        },
        [&](double* p) {
            hadamard_kernels(self.isa).f64(p, rows, n, scale, threads);
            return true;
        });
}

}  // namespace

void register_sketch(KernelsClass& kernels) {
    kernels.def("sparse_stack_transform", &sparse_stack_transform);
    kernels.def("srht_transform", &srht_transform);
    kernels.def("rademacher_transform", &rademacher_transform);
    kernels.def("fwht_rows", &fwht_rows);
    // For the known-answer tests; the kernels generate their blocks in place.
    kernels.def("philox_block", [](const Kernels&, uint64_t c0, uint64_t c1, uint64_t c2, uint64_t c3, uint64_t k0, uint64_t k1) {
        const PhiloxBlock b = philox4x64(c0, c1, c2, c3, k0, k1);
        return py::make_tuple(b.word[0], b.word[1], b.word[2], b.word[3]);
    });
}

}  // namespace ef
