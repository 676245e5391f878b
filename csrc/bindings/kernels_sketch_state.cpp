// Kernels of the stateful half of edgefast.sketch: row sketches, count sketches, codes. Arguments were validated by the
// public layer; strides are passed on as they are.
#include <new>

#include "bindings/kernels.hpp"
#include "sketch/count_sketch.hpp"
#include "sketch/hadamard_axis.hpp"
#include "sketch/hamming.hpp"
#include "sketch/row_sketch.hpp"

namespace py = pybind11;

namespace ef {

namespace {

void check(bool done) {
    if (!done) throw std::bad_alloc();
}

// Enumerators of RowSketchTypes and CountTypes: the accumulator's type, and float32 terms into float64.
template <class Types>
Types types_of(const py::array& terms, const py::array& accumulator) {
    if (accumulator.dtype().kind() != 'f') return Types::i64;
    if (accumulator.itemsize() == 4) return Types::f32;
    return terms.itemsize() == 4 ? Types::f32_to_f64 : Types::f64;
}

void row_sketch_array(const Kernels& self, const py::array& x, int kind, uint64_t seed, int nnz, int64_t first_row,
                      py::array acc, int num_threads) {
    const RowSketchJob job{{static_cast<const char*>(x.data()), x.shape(0), x.shape(1), x.strides(0), x.strides(1)},
                           kind,
                           seed,
                           nnz,
                           acc.shape(0),
                           first_row,
                           acc.mutable_data()};
    const auto types = types_of<RowSketchTypes>(x, acc);
    bool done;
    {
        py::gil_scoped_release release;
        done = row_sketch_add(self.isa, job, types, num_threads);
    }
    check(done);
}

void count_add_array(const Kernels& self, const py::array& values, const py::object& indices, int64_t first,
                     uint64_t seed, py::array table, int num_threads) {
    const CountTable counters{table.mutable_data(), seed, static_cast<int>(table.shape(0)), table.shape(1)};
    const auto types = types_of<CountTypes>(values, table);
    const int64_t* where = nullptr;
    if (!indices.is_none()) where = static_cast<const int64_t*>(py::reinterpret_borrow<py::array>(indices).data());
    const void* terms = values.data();
    const int64_t count = values.shape(0);
    bool done;
    {
        py::gil_scoped_release release;
        done = count_sketch_add(self.isa, counters, types, terms, where, first, count, num_threads);
    }
    check(done);
}

void count_estimate_array(const Kernels& self, py::array table, const py::object& indices, int64_t first, uint64_t seed,
                          py::array out, int num_threads) {
    const CountTable counters{const_cast<void*>(table.data()), seed, static_cast<int>(table.shape(0)), table.shape(1)};
    const auto types = types_of<CountTypes>(table, table);
    const int64_t* where = nullptr;
    if (!indices.is_none()) where = static_cast<const int64_t*>(py::reinterpret_borrow<py::array>(indices).data());
    void* to = out.mutable_data();
    const int64_t count = out.shape(0);
    bool done;
    {
        py::gil_scoped_release release;
        done = count_sketch_estimate(self.isa, counters, types, where, first, count, to, num_threads);
    }
    check(done);
}

Codes codes_of(const py::array_t<uint8_t>& codes) { return {codes.data(), codes.shape(0), codes.strides(0)}; }

void sign_bits_array(const Kernels& self, const py::array& x, py::array_t<uint8_t> out) {
    const void* in = x.data();
    uint8_t* to = out.mutable_data();
    const int64_t rows = x.shape(0), columns = x.shape(1), stride = out.strides(0);
    const bool single = x.itemsize() == 4;
    py::gil_scoped_release release;
    if (single)
        sign_bits(self.isa, static_cast<const float*>(in), rows, columns, to, stride);
    else
        sign_bits(self.isa, static_cast<const double*>(in), rows, columns, to, stride);
}

void hamming_pairs_array(const Kernels& self, const py::array_t<uint8_t>& a, const py::array_t<uint8_t>& b,
                         py::array_t<uint16_t> out, int num_threads) {
    const Codes left = codes_of(a), right = codes_of(b);
    const int64_t bytes = a.shape(1);
    uint16_t* to = out.mutable_data();
    py::gil_scoped_release release;
    hamming_pairs(self.isa, left, right, bytes, to, num_threads);
}

void hamming_nearest_array(const Kernels& self, const py::array_t<uint8_t>& queries, const py::array_t<uint8_t>& codes,
                           py::array_t<int64_t> index, py::array_t<uint16_t> distance, int num_threads) {
    const Codes left = codes_of(queries), right = codes_of(codes);
    const int64_t bytes = queries.shape(1);
    int64_t* to_index = index.mutable_data();
    uint16_t* to_distance = distance.mutable_data();
    py::gil_scoped_release release;
    hamming_nearest(self.isa, left, right, bytes, to_index, to_distance, num_threads);
}

py::tuple hamming_within_array(const Kernels& self, const py::array_t<uint8_t>& query,
                               const py::array_t<uint8_t>& codes, int radius, int64_t begin,
                               py::array_t<int64_t> index, py::array_t<uint16_t> distance) {
    const Codes right = codes_of(codes);
    const uint8_t* own = query.data();
    const int64_t bytes = codes.shape(1), room = index.shape(0);
    int64_t* to_index = index.mutable_data();
    uint16_t* to_distance = distance.mutable_data();
    int64_t next = begin, found;
    {
        py::gil_scoped_release release;
        found = hamming_within(self.isa, own, right, bytes, radius, begin, right.count, room, to_index, to_distance, &next);
    }
    return py::make_tuple(found, next);
}

py::tuple hamming_filter_array(const Kernels& self, const py::array_t<uint8_t>& codes, int radius, int64_t window,
                               int64_t filled, int64_t next, py::array_t<uint64_t> ring, py::array_t<bool> keep) {
    Ring state{ring.mutable_data(), ring.shape(0), ring.shape(1), window, filled, next};
    const Codes incoming = codes_of(codes);
    const int64_t bytes = codes.shape(1);
    auto* to = reinterpret_cast<uint8_t*>(keep.mutable_data());
    {
        py::gil_scoped_release release;
        hamming_filter(self.isa, incoming, bytes, radius, &state, to);
    }
    return py::make_tuple(state.filled, state.next);
}

void fwht_axis_array(const Kernels& self, const py::array& x, double scale, py::array out, int num_threads) {
    const void* in = x.data();
    void* to = out.mutable_data();
    const int64_t outer = x.shape(0), length = x.shape(1), inner = x.shape(2);
    const bool single = x.itemsize() == 4;
    bool done;
    {
        py::gil_scoped_release release;
        done = single ? fwht_axis(self.isa, static_cast<const float*>(in), static_cast<float*>(to), outer, length, inner,
                                  scale, num_threads)
                      : fwht_axis(self.isa, static_cast<const double*>(in), static_cast<double*>(to), outer, length,
                                  inner, scale, num_threads);
    }
    check(done);
}

}  // namespace

void register_sketch_state(KernelsClass& kernels) {
    kernels.def("row_sketch_add", &row_sketch_array);
    kernels.def("count_sketch_add", &count_add_array);
    kernels.def("count_sketch_estimate", &count_estimate_array);
    kernels.def("sign_bits", &sign_bits_array);
    kernels.def("hamming_pairs", &hamming_pairs_array);
    kernels.def("hamming_nearest", &hamming_nearest_array);
    kernels.def("hamming_within", &hamming_within_array);
    kernels.def("hamming_filter", &hamming_filter_array);
    kernels.def("fwht_axis", &fwht_axis_array);
}

}  // namespace ef
