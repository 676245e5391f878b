// Sparse inputs and the adjoint of edgefast.sketch. Arguments were validated by the public layer.
#include <new>

#include "bindings/kernels.hpp"
#include "sketch/adjoint.hpp"
#include "sketch/compressed.hpp"
#include "sketch/csr.hpp"

namespace py = pybind11;

namespace ef {

ElementType element_type(const py::array& x, int64_t same) {
    const char kind = x.dtype().kind();
    const auto size = static_cast<int64_t>(x.itemsize());
    if (kind == 'f') return size == same ? ElementType::same : ElementType::f16;
    if (kind == 'i')
        return size == 1 ? ElementType::i8 : size == 2 ? ElementType::i16 : size == 4 ? ElementType::i32 : ElementType::i64;
    return size == 1 ? ElementType::u8 : size == 2 ? ElementType::u16 : size == 4 ? ElementType::u32 : ElementType::u64;
}

namespace {

void check(bool done) {
    if (!done) throw std::bad_alloc();
}

CompressedMatrix matrix_of(const py::array& data, const py::array& indices, const py::array_t<int64_t>& indptr,
                           int64_t columns, int64_t same) {
    return {static_cast<const char*>(data.data()), element_type(data, same), indices.data(), indices.itemsize() == 8,
            indptr.data(), indptr.shape(0) - 1, columns};
}

py::tuple check_compressed_array(const Kernels&, const py::array& indices, const py::array_t<int64_t>& indptr,
                                 int64_t columns, int num_threads) {
    const CompressedMatrix x = {nullptr, ElementType::same, indices.data(), indices.itemsize() == 8,
                                indptr.data(), indptr.shape(0) - 1, columns};
    const int64_t entries = indices.shape(0);
    int64_t row = 0;
    Compressed found;
    {
        py::gil_scoped_release release;
        found = check_compressed(x, entries, num_threads, &row);
    }
    return py::make_tuple(static_cast<int>(found), row);
}

void count_columns_array(const Kernels&, const py::array& indices, const py::array_t<int64_t>& indptr,
                         py::array_t<int64_t> counts) {
    const CompressedMatrix x = {nullptr, ElementType::same, indices.data(), indices.itemsize() == 8,
                                indptr.data(), indptr.shape(0) - 1, counts.shape(0)};
    int64_t* to = counts.mutable_data();
    py::gil_scoped_release release;
    count_columns(x, to);
}

void take_columns_array(const Kernels&, const py::array& data, const py::array& indices,
                        const py::array_t<int64_t>& indptr, int64_t begin, int64_t end, py::array_t<int64_t> cursors,
                        py::array_t<int64_t> places, py::array out_rows, py::array out_data) {
    const CompressedMatrix x = matrix_of(data, indices, indptr, end, 0);
    const auto size = static_cast<int64_t>(data.itemsize());
    int64_t* cursor = cursors.mutable_data();
    int64_t* place = places.mutable_data();
    void* rows = out_rows.mutable_data();
    char* values = static_cast<char*>(out_data.mutable_data());
    const bool wide = out_rows.itemsize() == 8;
    py::gil_scoped_release release;
    if (wide)
        take_columns(x, begin, end, size, cursor, place, static_cast<int64_t*>(rows), values);
    else
        take_columns(x, begin, end, size, cursor, place, static_cast<int32_t*>(rows), values);
}

HashEntries entries_of(const py::object& entries, const py::object& starts, int nnz) {
    HashEntries result{nullptr, nullptr, nnz};
    if (!entries.is_none()) result.packed = static_cast<const uint32_t*>(py::reinterpret_borrow<py::array>(entries).data());
    if (!starts.is_none()) result.starts = static_cast<const int64_t*>(py::reinterpret_borrow<py::array>(starts).data());
    return result;
}

void csr_hash_array(const Kernels& self, const py::array& data, const py::array& indices,
                    const py::array_t<int64_t>& indptr, int64_t columns, int64_t begin, int64_t end,
                    const py::object& entries, const py::object& starts, int kind, uint64_t seed, int nnz, int64_t first,
                    double scale, bool accumulate, bool finish, py::array out, int num_threads) {
    const CsrHashJob job{matrix_of(data, indices, indptr, columns, out.itemsize()), begin, end,
                         entries_of(entries, starts, nnz), kind, seed, first, out.shape(1), scale,
                         static_cast<char*>(out.mutable_data()), accumulate, finish};
    const bool single = out.itemsize() == 4;
    bool done;
    {
        py::gil_scoped_release release;
        done = single ? csr_hash_transform<float>(self.isa, job, num_threads)
                      : csr_hash_transform<double>(self.isa, job, num_threads);
    }
    check(done);
}

void csr_srht_array(const Kernels& self, const py::array& data, const py::array& indices,
                    const py::array_t<int64_t>& indptr, int64_t columns, int64_t first,
                    const py::array_t<uint64_t>& signs, const py::array_t<int64_t>& index, int64_t length, double scale,
                    py::array out, int num_threads) {
    const CsrSrhtJob job{matrix_of(data, indices, indptr, columns, out.itemsize()), first, signs.data(), index.data(),
                         out.shape(1), length, scale, static_cast<char*>(out.mutable_data())};
    const bool single = out.itemsize() == 4;
    bool done;
    {
        py::gil_scoped_release release;
        done = single ? csr_srht_transform<float>(self.isa, job, num_threads)
                      : csr_srht_transform<double>(self.isa, job, num_threads);
    }
    check(done);
}

void csr_rademacher_array(const Kernels& self, const py::array& data, const py::array& indices,
                          const py::array_t<int64_t>& indptr, int64_t columns, int64_t first, uint64_t seed, double scale,
                          bool accumulate, py::array out, int num_threads) {
    const CsrRademacherJob job{matrix_of(data, indices, indptr, columns, out.itemsize()), seed, first, out.shape(1), scale,
                               static_cast<char*>(out.mutable_data()), accumulate};
    const bool single = out.itemsize() == 4;
    bool done;
    {
        py::gil_scoped_release release;
        done = single ? csr_rademacher_transform<float>(self.isa, job, num_threads)
                      : csr_rademacher_transform<double>(self.isa, job, num_threads);
    }
    check(done);
}

AdjointJob adjoint_of(const py::array& y, double scale, py::array& out) {
    return {{static_cast<const char*>(y.data()), y.shape(0), y.shape(1), y.strides(0), y.strides(1)},
            element_type(y, out.itemsize()), out.shape(1), scale, static_cast<char*>(out.mutable_data())};
}

void hash_adjoint_array(const Kernels& self, const py::array& y, int64_t begin, int64_t end, const py::object& entries,
                        const py::object& starts, int nnz, double scale, py::array out, int num_threads) {
    const HashAdjointJob job{adjoint_of(y, scale, out), entries_of(entries, starts, nnz), begin, end};
    const bool single = out.itemsize() == 4;
    bool done;
    {
        py::gil_scoped_release release;
        done = single ? hash_adjoint<float>(self.isa, job, num_threads) : hash_adjoint<double>(self.isa, job, num_threads);
    }
    check(done);
}

void srht_adjoint_array(const Kernels& self, const py::array& y, const py::array_t<uint64_t>& signs,
                        const py::array_t<int64_t>& index, int64_t length, double scale, py::array out,
                        int num_threads) {
    const SrhtAdjointJob job{adjoint_of(y, scale, out), signs.data(), index.data(), length};
    const bool single = out.itemsize() == 4;
    bool done;
    {
        py::gil_scoped_release release;
        done = single ? srht_adjoint<float>(self.isa, job, num_threads) : srht_adjoint<double>(self.isa, job, num_threads);
    }
    check(done);
}

void dense_adjoint_array(const Kernels& self, const py::array& y, uint64_t seed, const py::object& gaussian, double scale,
                         py::array out, int num_threads) {
    DenseAdjointJob job{adjoint_of(y, scale, out), seed, nullptr};
    if (!gaussian.is_none()) job.gaussian = static_cast<const int32_t*>(py::reinterpret_borrow<py::array>(gaussian).data());
    const bool single = out.itemsize() == 4;
    bool done;
    {
        py::gil_scoped_release release;
        done = single ? dense_adjoint<float>(self.isa, job, num_threads)
                      : dense_adjoint<double>(self.isa, job, num_threads);
    }
    check(done);
}

void csr_gaussian_array(const Kernels& self, const py::array& data, const py::array& indices,
                        const py::array_t<int64_t>& indptr, int64_t columns, int64_t first,
                        const py::array_t<int32_t>& table, uint64_t seed, double scale, bool accumulate, py::array out,
                        int num_threads) {
    const CsrGaussianJob job{matrix_of(data, indices, indptr, columns, out.itemsize()), table.data(), seed, first,
                             out.shape(1), scale, static_cast<char*>(out.mutable_data()), accumulate};
    const bool single = out.itemsize() == 4;
    bool done;
    {
        py::gil_scoped_release release;
        done = single ? csr_gaussian_transform<float>(self.isa, job, num_threads)
                      : csr_gaussian_transform<double>(self.isa, job, num_threads);
    }
    check(done);
}

}  // namespace

void register_sketch_inputs(KernelsClass& kernels) {
    kernels.def("check_compressed", &check_compressed_array);
    kernels.def("count_columns", &count_columns_array);
    kernels.def("take_columns", &take_columns_array);
    kernels.def("csr_hash_transform", &csr_hash_array);
    kernels.def("csr_srht_transform", &csr_srht_array);
    kernels.def("csr_rademacher_transform", &csr_rademacher_array);
    kernels.def("hash_adjoint", &hash_adjoint_array);
    kernels.def("srht_adjoint", &srht_adjoint_array);
    kernels.def("csr_gaussian_transform", &csr_gaussian_array);
    kernels.def("dense_adjoint", &dense_adjoint_array);
}

}  // namespace ef
