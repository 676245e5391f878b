// Kernels of the stateful half of edgefast.sketch: row sketches, count sketches, codes. Arguments were validated by the
// public layer; strides are passed on as they are.
#include <new>

#include "bindings/kernels.hpp"
#include "sketch/row_sketch.hpp"

namespace py = pybind11;

namespace ef {

namespace {

void check(bool done) {
    if (!done) throw std::bad_alloc();
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
    RowSketchTypes types = RowSketchTypes::i64;
    if (acc.dtype().kind() == 'f')
        types = acc.itemsize() == 4 ? RowSketchTypes::f32
                : x.itemsize() == 4 ? RowSketchTypes::f32_to_f64
                                    : RowSketchTypes::f64;
    bool done;
    {
        py::gil_scoped_release release;
        done = row_sketch_add(self.isa, job, types, num_threads);
    }
    check(done);
}

}  // namespace

void register_sketch_state(KernelsClass& kernels) { kernels.def("row_sketch_add", &row_sketch_array); }

}  // namespace ef
