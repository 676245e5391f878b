// Kernels of edgefast.sketch. Arguments were validated by the public layer; strides are passed on as they are.
#include <new>

#include "bindings/kernels.hpp"
#include "common/philox.hpp"
#include "sketch/hadamard.hpp"
#include "sketch/hash.hpp"
#include "sketch/rademacher.hpp"

namespace py = pybind11;

namespace ef {

namespace {

StridedMatrix matrix_of(const py::array& x) {
    return {static_cast<const char*>(x.data()), x.shape(0), x.shape(1), x.strides(0), x.strides(1)};
}

void check(bool done) {
    if (!done) throw std::bad_alloc();
}

void philox_words(const Kernels&, uint64_t k0, uint64_t k1, uint64_t c0, uint64_t c1, uint64_t c2, uint64_t c3,
                  py::array_t<uint64_t> out) {
    uint64_t* words = out.mutable_data();
    for (py::ssize_t i = 0; i < out.shape(0); ++i) {
        const PhiloxBlock block = philox4x64(c0, c1, c2, c3, k0, k1);
        for (uint64_t word : block.word) *words++ = word;
        if (++c0 == 0 && ++c1 == 0 && ++c2 == 0) ++c3;
    }
}

void stack_table_array(const Kernels&, uint64_t seed, int64_t components, int64_t first, py::array_t<uint32_t> out) {
    uint32_t* entries = out.mutable_data();
    const int64_t count = out.shape(0);
    const int nnz = static_cast<int>(out.shape(1));
    py::gil_scoped_release release;
    stack_table(seed, components, nnz, first, count, entries);
}

void countsketch_table_array(const Kernels&, uint64_t seed, int64_t components, int64_t first,
                             py::array_t<uint32_t> out) {
    uint32_t* entries = out.mutable_data();
    const int64_t count = out.shape(0);
    py::gil_scoped_release release;
    countsketch_table(seed, components, first, count, entries);
}

void sparse_starts_array(const Kernels&, uint64_t seed, int64_t components, const py::array_t<uint64_t>& thresholds,
                         int64_t first, py::array_t<int64_t> out) {
    const uint64_t* limits = thresholds.data();
    const int64_t limit_count = thresholds.size(), count = out.size() - 1;
    int64_t* starts = out.mutable_data();
    py::gil_scoped_release release;
    sparse_table(seed, components, limits, limit_count, first, count, starts, nullptr);
}

void sparse_table_array(const Kernels&, uint64_t seed, int64_t components, const py::array_t<uint64_t>& thresholds,
                        int64_t first, py::array_t<int64_t> starts, py::array_t<uint32_t> out) {
    const uint64_t* limits = thresholds.data();
    const int64_t limit_count = thresholds.size(), count = starts.size() - 1;
    int64_t* begins = starts.mutable_data();
    uint32_t* entries = out.mutable_data();
    py::gil_scoped_release release;
    sparse_table(seed, components, limits, limit_count, first, count, begins, entries);
}

void hash_array(const Kernels& self, const py::array& x, const py::array_t<uint32_t>& entries, const py::object& starts,
                double scale, bool more, bool last, py::array out, int num_threads) {
    HashJob job{matrix_of(x), entries.data(), nullptr, 0, out.shape(1), scale, more, last,
                static_cast<char*>(out.mutable_data())};
    if (starts.is_none()) job.nnz = static_cast<int>(entries.shape(1));
    else job.starts = static_cast<const int64_t*>(py::reinterpret_borrow<py::array>(starts).data());
    const bool single = x.itemsize() == 4;
    bool done;
    {
        py::gil_scoped_release release;
        done = single ? hash_transform<float>(self.isa, job, num_threads)
                      : hash_transform<double>(self.isa, job, num_threads);
    }
    check(done);
}

void srht_array(const Kernels& self, const py::array& x, const py::array_t<uint64_t>& signs,
                const py::array_t<int64_t>& index, int64_t length, double scale, py::array out, int num_threads) {
    const SrhtJob job{matrix_of(x), signs.data(), index.data(), out.shape(1), length, scale,
                      static_cast<char*>(out.mutable_data())};
    const bool single = x.itemsize() == 4;
    bool done;
    {
        py::gil_scoped_release release;
        done = single ? srht_transform<float>(self.isa, job, num_threads)
                      : srht_transform<double>(self.isa, job, num_threads);
    }
    check(done);
}

void dense_array(const Kernels& self, const py::array& x, uint64_t seed, double scale, py::array& out, int num_threads,
                 bool gaussian) {
    const RademacherJob job{matrix_of(x), seed, out.shape(1), scale, static_cast<char*>(out.mutable_data()), gaussian};
    const bool single = x.itemsize() == 4;
    bool done;
    {
        py::gil_scoped_release release;
        done = single ? rademacher_transform<float>(self.isa, job, num_threads)
                      : rademacher_transform<double>(self.isa, job, num_threads);
    }
    check(done);
}

void rademacher_array(const Kernels& self, const py::array& x, uint64_t seed, double scale, py::array out,
                      int num_threads) {
    dense_array(self, x, seed, scale, out, num_threads, false);
}

void gaussian_array(const Kernels& self, const py::array& x, uint64_t seed, double scale, py::array out,
                    int num_threads) {
    dense_array(self, x, seed, scale, out, num_threads, true);
}

void rotate_array(const Kernels& self, const py::array& x, const py::array_t<uint64_t>& signs, bool inverse,
                  py::array out, int num_threads) {
    const RotationJob job{matrix_of(x), signs.data(), inverse, static_cast<char*>(out.mutable_data())};
    const bool single = x.itemsize() == 4;
    py::gil_scoped_release release;
    if (single) rotate<float>(self.isa, job, num_threads);
    else rotate<double>(self.isa, job, num_threads);
}

void fwht_array(const Kernels& self, const py::array& x, double scale, py::array out, int num_threads) {
    const void* in = x.data();
    void* to = out.mutable_data();
    const int64_t rows = x.shape(0), length = x.shape(1);
    const bool single = x.itemsize() == 4;
    py::gil_scoped_release release;
    if (single)
        fwht(self.isa, static_cast<const float*>(in), static_cast<float*>(to), rows, length, scale, num_threads);
    else
        fwht(self.isa, static_cast<const double*>(in), static_cast<double*>(to), rows, length, scale, num_threads);
}

}  // namespace

void register_sketch(KernelsClass& kernels) {
    kernels.def("philox_words", &philox_words);
    kernels.def("stack_table", &stack_table_array);
    kernels.def("countsketch_table", &countsketch_table_array);
    kernels.def("sparse_starts", &sparse_starts_array);
    kernels.def("sparse_table", &sparse_table_array);
    kernels.def("hash_transform", &hash_array);
    kernels.def("srht_transform", &srht_array);
    kernels.def("rademacher_transform", &rademacher_array);
    kernels.def("gaussian_transform", &gaussian_array);
    kernels.def("rotate", &rotate_array);
    kernels.def("fwht", &fwht_array);
}

}  // namespace ef
