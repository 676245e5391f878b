// Robust aggregation kernels over lists of arrays; see kernels_aggregate.cpp for what is checked where.
#include <cstdint>
#include <new>
#include <optional>
#include <vector>

#include "aggregate/gram.hpp"
#include "aggregate/order.hpp"
#include "bindings/arrays.hpp"
#include "bindings/kernels.hpp"

namespace py = pybind11;

namespace ef {

namespace {

void check(bool done) {
    if (!done) throw std::bad_alloc();
}

py::list first_row(const py::list& rows) {
    if (rows.empty() || !PyList_Check(rows[0].ptr())) throw py::value_error("expected a list of lists of arrays");
    if (static_cast<int64_t>(rows.size()) >= kMaxClients) throw py::value_error("too many updates");
    return rows[0];
}

bool order_mean(const Kernels& self, const py::list& rows, int rule, int64_t low, int64_t high, int nan,
                const py::list& outputs, int threads) {
    first_row(rows);
    const auto clients = static_cast<int64_t>(rows.size());
    if (low < 0 || high > clients || low >= high) throw py::value_error("expected ranks among the updates");
    const auto specs = model_specs(outputs);
    const auto out = model_targets(outputs, specs);
    const auto inputs = model_inputs(rows, outputs, specs);
    const OrderJob job = {inputs.data(), clients, specs.data(), static_cast<int64_t>(specs.size()),
                          static_cast<OrderRule>(rule), low, high, static_cast<NanPolicy>(nan), nullptr, nullptr};
    RunStatus status;
    {
        py::gil_scoped_release release;
        status = order_run(self.isa, job, out.data(), threads);
    }
    check(status != RunStatus::no_memory);
    return status == RunStatus::suspicious;
}

double* square_matrix(const std::optional<py::array_t<double>>& matrix, py::ssize_t clients) {
    if (!matrix) return nullptr;
    if (matrix->ndim() != 2 || matrix->shape(0) != clients || matrix->shape(1) != clients ||
        !(matrix->flags() & py::array::c_style) || !matrix->writeable())
        throw py::value_error("expected a square matrix, one row per update");
    return const_cast<double*>(matrix->data());
}

void pair_sums_of(const Kernels& self, const py::list& rows, const std::optional<py::array_t<double>>& distances,
                  const std::optional<py::array_t<double>>& products, int threads) {
    const py::list model = first_row(rows);
    const auto clients = static_cast<py::ssize_t>(rows.size());
    double* const d = square_matrix(distances, clients);
    double* const p = square_matrix(products, clients);
    const auto specs = model_specs(model);
    const auto inputs = model_inputs(rows, model, specs);
    bool done;
    {
        py::gil_scoped_release release;
        done = pair_sums(self.isa, inputs.data(), clients, specs.data(), static_cast<int64_t>(specs.size()), d, p, threads);
    }
    check(done);
}

void square_norms_of(const Kernels& self, const py::list& rows, const std::optional<py::list>& center,
                     py::array_t<double> sums, int threads) {
    const py::list model = first_row(rows);
    const auto clients = static_cast<py::ssize_t>(rows.size());
    if (sums.ndim() != 1 || sums.shape(0) != clients) throw py::value_error("expected one sum per update");
    const auto specs = model_specs(model);
    const auto inputs = model_inputs(rows, model, specs);
    std::vector<const void*> middle;
    if (center) {
        py::list one;
        one.append(*center);
        middle = model_inputs(one, model, specs);
    }
    double* const out = sums.mutable_data();
    bool done;
    {
        py::gil_scoped_release release;
        done = square_norms(self.isa, inputs.data(), clients, center ? middle.data() : nullptr, specs.data(),
                            static_cast<int64_t>(specs.size()), out, threads);
    }
    check(done);
}

void mix_of(const Kernels& self, const py::list& rows, const std::vector<std::vector<int64_t>>& members,
            const std::vector<std::vector<double>>& weights, const std::vector<double>& totals, const py::list& outputs,
            int threads) {
    const py::list model = first_row(rows);
    const auto clients = static_cast<int64_t>(rows.size());
    const size_t sets = members.size();
    if (weights.size() != sets || totals.size() != sets || outputs.size() != sets)
        throw py::value_error("expected weights, a total and outputs for every set");
    const auto specs = model_specs(model);
    const auto inputs = model_inputs(rows, model, specs);
    std::vector<void*> out;
    std::vector<int64_t> flat, starts = {0};
    std::vector<double> flat_weights;
    for (size_t m = 0; m < sets; ++m) {
        if (members[m].empty() || members[m].size() != weights[m].size() || members[m].size() > rows.size())
            throw py::value_error("expected one weight per member");
        for (size_t k = 0; k < members[m].size(); ++k) {
            if (members[m][k] < 0 || members[m][k] >= clients) throw py::value_error("no such update");
            flat.push_back(members[m][k]);
            flat_weights.push_back(weights[m][k]);
        }
        starts.push_back(static_cast<int64_t>(flat.size()));
        for (void* p : model_targets(py::reinterpret_borrow<py::list>(outputs[m]), specs)) out.push_back(p);
    }
    bool done;
    {
        py::gil_scoped_release release;
        done = mix(self.isa, inputs.data(), clients, flat.data(), flat_weights.data(), starts.data(), totals.data(),
                   static_cast<int64_t>(sets), specs.data(), static_cast<int64_t>(specs.size()), out.data(), threads);
    }
    check(done);
}

// Writeable contiguous arrays of `rows` times the bytes of every tensor's images.
std::vector<void*> image_arrays(const py::list& arrays, const std::vector<TensorSpec>& specs, int64_t rows) {
    if (arrays.size() != specs.size()) throw py::value_error("expected as many arrays as tensors");
    std::vector<void*> out;
    for (size_t t = 0; t < specs.size(); ++t) {
        const auto a = py::cast<py::array>(arrays[t]);
        if (!(a.flags() & py::array::c_style) || a.itemsize() != image_size(specs[t].dtype) ||
            a.size() != rows * specs[t].size)
            throw py::value_error("state does not fit the model");
        out.push_back(const_cast<void*>(a.data()));
    }
    return out;
}

void trim_push_of(const Kernels& self, const py::list& row, bool from_images, const py::list& model, const py::list& low,
                  const py::list& high, const py::list& sums, int64_t trim, int stage, int threads) {
    const auto specs = model_specs(model);
    std::vector<const void*> inputs;
    if (from_images) {
        for (void* p : image_arrays(row, specs, 1)) inputs.push_back(p);
    } else {
        py::list rows;
        rows.append(row);
        inputs = model_inputs(rows, model, specs);
    }
    const auto least = image_arrays(low, specs, trim), most = image_arrays(high, specs, trim);
    std::vector<TensorSpec> doubles = specs;
    for (TensorSpec& s : doubles) s.dtype = DType::f64;
    std::vector<double*> totals;
    for (void* p : model_targets(sums, doubles)) totals.push_back(static_cast<double*>(p));
    py::gil_scoped_release release;
    trim_push(self.isa, inputs.data(), from_images, specs.data(), static_cast<int64_t>(specs.size()), least.data(),
              most.data(), totals.data(), trim, stage, threads);
}

}  // namespace

void register_aggregate_robust(KernelsClass& kernels) {
    kernels.def("order_mean", &order_mean);
    kernels.def("pair_sums", &pair_sums_of);
    kernels.def("square_norms", &square_norms_of);
    kernels.def("mix", &mix_of);
    kernels.def("trim_push", &trim_push_of);
}

}  // namespace ef
