// Aggregation kernels over lists of arrays. The Python layer has validated the arrays with first_mismatch; what
// memory safety needs (dtype, size, contiguity) is checked again here, at the price of a few loads per array.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "aggregate/binned.hpp"
#include "aggregate/mean.hpp"
#include "aggregate/server.hpp"
#include "bindings/arrays.hpp"
#include "bindings/kernels.hpp"

namespace py = pybind11;

namespace ef {

namespace {

// Fresh memory comes page by page: for a large block, 2 MiB at a time cost a fraction of 4 KiB at a time.
void use_huge_pages(char* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kPage = 4096;
    if (bytes < (size_t{4} << 20)) return;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: failure changes nothing
#else
    (void)data, (void)bytes;
#endif
}

DType dtype_of(const py::array& a) {
    const py::dtype dt = a.dtype();
    const char kind = dt.kind();
    const auto size = dt.itemsize();
    if (dt.byteorder() != '>') {
        switch (kind) {
            case 'f':
                if (size == 2) return DType::f16;
                if (size == 4) return DType::f32;
                if (size == 8) return DType::f64;
                break;
            case 'i':
                if (size == 1) return DType::i8;
                if (size == 2) return DType::i16;
                if (size == 4) return DType::i32;
                if (size == 8) return DType::i64;
                break;
            case 'u':
                if (size == 1) return DType::u8;
                if (size == 2) return DType::u16;
                if (size == 4) return DType::u32;
                if (size == 8) return DType::u64;
                break;
            case 'b':
                return DType::boolean;
            case 'V':
                if (size == 2) return DType::bf16;  // numpy has no bfloat16: two bytes without a type
                break;
            default:
                break;
        }
    }
    throw py::value_error("unsupported dtype");
}

const py::detail::PyArray_Proxy* proxy(PyObject* object) {
    if (!py::isinstance<py::array>(py::handle(object))) throw py::type_error("expected a list of numpy arrays");
    return py::detail::array_proxy(object);
}

bool c_contiguous(const py::detail::PyArray_Proxy* a) {
    return (a->flags & py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_) != 0;
}

std::vector<TensorSpec> specs_of(const py::list& arrays) {
    std::vector<TensorSpec> specs;
    specs.reserve(arrays.size());
    for (py::handle h : arrays) {
        proxy(h.ptr());
        const auto a = py::reinterpret_borrow<py::array>(h);
        specs.push_back({dtype_of(a), static_cast<int64_t>(a.size())});
    }
    return specs;
}

int64_t size_of(const py::detail::PyArray_Proxy* a) {
    int64_t n = 1;
    for (int i = 0; i < a->nd; ++i) n *= a->dimensions[i];
    return n;
}

// Data pointers of `arrays`, each contiguous and of the spec's size and the model's dtype.
void pointers(const py::list& arrays, const py::list& model, const std::vector<TensorSpec>& specs,
              std::vector<const void*>& out) {
    if (arrays.size() != specs.size()) throw py::value_error("expected as many arrays as the model has");
    for (size_t t = 0; t < specs.size(); ++t) {
        PyObject* const object = PyList_GET_ITEM(arrays.ptr(), static_cast<Py_ssize_t>(t));
        const auto* a = proxy(object);
        const auto* m = py::detail::array_proxy(PyList_GET_ITEM(model.ptr(), static_cast<Py_ssize_t>(t)));
        if (!c_contiguous(a) || size_of(a) != specs[t].size ||
            (a->descr != m->descr && dtype_of(py::reinterpret_borrow<py::array>(object)) != specs[t].dtype))
            throw py::value_error("array does not fit the model");
        out.push_back(a->data);
    }
}

std::vector<void*> targets(const py::list& arrays, const std::vector<TensorSpec>& specs) {
    if (arrays.size() != specs.size()) throw py::value_error("expected as many outputs as tensors");
    std::vector<void*> out;
    for (size_t t = 0; t < specs.size(); ++t) {
        PyObject* const object = PyList_GET_ITEM(arrays.ptr(), static_cast<Py_ssize_t>(t));
        const auto* a = proxy(object);
        const auto array = py::reinterpret_borrow<py::array>(object);
        if (!c_contiguous(a) || size_of(a) != specs[t].size || dtype_of(array) != specs[t].dtype || !array.writeable())
            throw py::value_error("output does not fit the model");
        out.push_back(const_cast<char*>(a->data));
    }
    return out;
}

std::vector<void*> sums_of(const py::list& arrays, std::vector<TensorSpec> specs, bool single) {
    for (TensorSpec& s : specs) s.dtype = single && holds_single(s.dtype) ? DType::f32 : DType::f64;
    return targets(arrays, specs);
}

std::vector<BinnedState> states_of(const py::list& bins, const py::list& index, const std::vector<TensorSpec>& specs) {
    std::vector<TensorSpec> wide = specs, narrow = specs;
    for (size_t t = 0; t < specs.size(); ++t) {
        wide[t] = {DType::i64, specs[t].size * binned_folds(specs[t].dtype)};
        narrow[t].dtype = DType::u8;
    }
    const auto a = targets(bins, wide), b = targets(index, narrow);
    std::vector<BinnedState> states;
    for (size_t t = 0; t < specs.size(); ++t)
        states.push_back({static_cast<int64_t*>(a[t]), static_cast<uint8_t*>(b[t])});
    return states;
}

// Pointers of every update's arrays, update by update.
std::vector<const void*> inputs_of(const py::list& rows, const py::list& model, const std::vector<TensorSpec>& specs) {
    std::vector<const void*> inputs;
    inputs.reserve(rows.size() * specs.size());
    for (py::handle row : rows) {
        if (!PyList_Check(row.ptr())) throw py::type_error("expected a list of lists of arrays");
        pointers(py::reinterpret_borrow<py::list>(row), model, specs, inputs);
    }
    return inputs;
}

bool weighted_mean(const Kernels& self, const py::list& rows, const std::vector<double>& weights, double total,
                   bool single, const py::list& outputs, int threads) {
    if (rows.empty() || rows.size() != weights.size()) throw py::value_error("expected one weight per update");
    const auto specs = specs_of(outputs);
    const auto out = targets(outputs, specs);
    const auto inputs = inputs_of(rows, outputs, specs);
    py::gil_scoped_release release;
    return mean_kernels(self.isa).mean(inputs.data(), weights.data(), static_cast<int64_t>(weights.size()), total,
                                       specs.data(), static_cast<int64_t>(specs.size()), single, out.data(), threads);
}

void add_weighted(const Kernels& self, const py::list& rows, const std::vector<double>& weights, bool single,
                  bool fresh, const py::list& sums, int threads) {
    if (rows.empty() || rows.size() != weights.size()) throw py::value_error("expected one weight per update");
    if (!PyList_Check(py::handle(rows[0]).ptr())) throw py::type_error("expected a list of lists of arrays");
    const auto model = py::reinterpret_borrow<py::list>(py::handle(rows[0]));
    const auto specs = specs_of(model);
    const auto inputs = inputs_of(rows, model, specs);
    const auto out = sums_of(sums, specs, single);
    py::gil_scoped_release release;
    mean_kernels(self.isa).add(inputs.data(), weights.data(), static_cast<int64_t>(weights.size()), specs.data(),
                               static_cast<int64_t>(specs.size()), single, fresh, out.data(), threads);
}

void finish_mean(const Kernels& self, const py::list& sums, double total, bool single, const py::list& outputs,
                 int threads) {
    const auto specs = specs_of(outputs);
    const auto out = targets(outputs, specs);
    const auto in = sums_of(sums, specs, single);
    py::gil_scoped_release release;
    mean_kernels(self.isa).finish(in.data(), total, specs.data(), static_cast<int64_t>(specs.size()), single,
                                  out.data(), threads);
}

// `source` holds sums where total > 0, else the mean; m and v hold an array a tensor, or nothing where the rule has none.
void server_step(const Kernels& self, int rule, const std::vector<double>& numbers, bool tau_inside, const py::list& x,
                 const py::list& source, double total, const py::list& m, const py::list& v, const py::list& outputs,
                 int threads) {
    if (rule < 0 || rule > static_cast<int>(ServerRule::yogi) || numbers.size() != 6)
        throw py::value_error("expected a rule and six numbers");
    const ServerStep step = {static_cast<ServerRule>(rule), numbers[0], numbers[1], numbers[2],
                             numbers[3], numbers[4], numbers[5], tau_inside};
    const auto specs = specs_of(outputs);
    auto states = specs;
    for (TensorSpec& s : states) s.dtype = s.dtype == DType::f64 ? DType::f64 : DType::f32;
    std::vector<const void*> from, sums;
    pointers(x, outputs, specs, from);
    if (total > 0) {
        for (void* p : sums_of(source, specs, false)) sums.push_back(p);
    } else {
        pointers(source, outputs, specs, sums);
    }
    const auto out = targets(outputs, specs);
    const std::vector<void*> none(specs.size(), nullptr);
    const bool adaptive = step.rule >= ServerRule::adagrad;
    const auto first = adaptive ? targets(m, states) : none;
    const auto second = step.rule == ServerRule::average ? none : targets(v, states);
    std::vector<ServerTensor> tensors;
    for (size_t t = 0; t < specs.size(); ++t) tensors.push_back({from[t], sums[t], first[t], second[t], out[t]});
    py::gil_scoped_release release;
    server_kernels(self.isa).step(step, total, tensors.data(), specs.data(), static_cast<int64_t>(specs.size()), threads);
}

bool all_finite(const Kernels& self, const py::list& update, int threads) {
    const auto specs = specs_of(update);
    std::vector<const void*> inputs;
    pointers(update, update, specs, inputs);
    py::gil_scoped_release release;
    return mean_kernels(self.isa).all_finite(inputs.data(), specs.data(), static_cast<int64_t>(specs.size()), threads);
}

bool binned_mean(const Kernels& self, const py::list& rows, const std::vector<double>& weights, double total,
                 const py::list& outputs, int threads) {
    if (rows.empty() || rows.size() != weights.size()) throw py::value_error("expected one weight per update");
    if (static_cast<int64_t>(rows.size()) > kBinnedTerms) throw py::value_error("expected fewer updates");
    const auto specs = specs_of(outputs);
    const auto out = targets(outputs, specs);
    const auto inputs = inputs_of(rows, outputs, specs);
    py::gil_scoped_release release;
    return binned_kernels(self.isa).mean(inputs.data(), weights.data(), static_cast<int64_t>(weights.size()), total,
                                         specs.data(), static_cast<int64_t>(specs.size()), out.data(), threads);
}

void binned_add(const Kernels& self, const py::list& update, double weight, const py::list& bins, const py::list& index,
                int threads) {
    const auto specs = specs_of(update);
    std::vector<const void*> inputs;
    pointers(update, update, specs, inputs);
    const auto states = states_of(bins, index, specs);
    py::gil_scoped_release release;
    binned_kernels(self.isa).add(inputs.data(), weight, specs.data(), static_cast<int64_t>(specs.size()), states.data(),
                                 threads);
}

// `model`: arrays of the model's dtypes and sizes, of which only those are looked at.
void binned_merge(const Kernels& self, const py::list& other_bins, const py::list& other_index, const py::list& bins,
                  const py::list& index, const py::list& model, int threads) {
    const auto specs = specs_of(model);
    const auto others = states_of(other_bins, other_index, specs), states = states_of(bins, index, specs);
    py::gil_scoped_release release;
    binned_kernels(self.isa).merge(others.data(), specs.data(), static_cast<int64_t>(specs.size()), states.data(),
                                   threads);
}

void binned_finish(const Kernels& self, const py::list& bins, const py::list& index, double total,
                   const py::list& outputs, int threads) {
    const auto specs = specs_of(outputs);
    const auto out = targets(outputs, specs);
    const auto states = states_of(bins, index, specs);
    py::gil_scoped_release release;
    binned_kernels(self.isa).finish(states.data(), total, specs.data(), static_cast<int64_t>(specs.size()), out.data(),
                                    threads);
}

// An array whose memory is the tail of a new bytes object that starts with `header`, and whose base is that object: what
// a kernel writes there is a message without another copy. The caller hands the bytes out only once they are written.
py::array npy_empty(const py::bytes& header, const std::vector<py::ssize_t>& shape, const py::dtype& dtype) {
    char* text = nullptr;
    Py_ssize_t length = 0;
    if (PyBytes_AsStringAndSize(header.ptr(), &text, &length) != 0) throw py::error_already_set();
    py::ssize_t size = dtype.itemsize();
    for (py::ssize_t n : shape) size *= n;
    auto whole = py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, length + size));
    if (!whole) throw py::error_already_set();
    char* const data = PyBytes_AS_STRING(whole.ptr());
    use_huge_pages(data, static_cast<size_t>(length + size));
    std::memcpy(data, text, static_cast<size_t>(length));
    return py::array(dtype, shape, data + length, whole);
}

// The values of .npy messages as read-only arrays in place, where each is an object whose `stype` is "numpy.ndarray" and
// whose `data` is a bytes object that starts with the model's header and has the model's length; None where one is not.
// A federated round brings tens of thousands of them, so nothing is parsed: headers are compared.
py::object npy_views(const py::list& messages, const py::list& headers, const py::list& model) {
    if (messages.size() != model.size() || headers.size() != model.size())
        throw py::value_error("expected as many messages and headers as the model has arrays");
    static PyObject* const stype = PyUnicode_InternFromString("stype");
    static PyObject* const name = PyUnicode_InternFromString("data");
    if (stype == nullptr || name == nullptr) throw py::error_already_set();
    py::list views(model.size());
    for (size_t t = 0; t < model.size(); ++t) {
        const auto at = static_cast<Py_ssize_t>(t);
        PyObject* const message = PyList_GET_ITEM(messages.ptr(), at);
        PyObject* const header = PyList_GET_ITEM(headers.ptr(), at);
        const auto* m = proxy(PyList_GET_ITEM(model.ptr(), at));
        if (!PyBytes_Check(header)) throw py::type_error("expected a list of bytes");
        const auto kind = py::reinterpret_steal<py::object>(PyObject_GetAttr(message, stype));
        const auto data = py::reinterpret_steal<py::object>(kind ? PyObject_GetAttr(message, name) : nullptr);
        if (!kind || !data) {
            if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw py::error_already_set();
            PyErr_Clear();
            return py::none();
        }
        const auto array = py::reinterpret_borrow<py::array>(PyList_GET_ITEM(model.ptr(), at));
        const Py_ssize_t begin = PyBytes_GET_SIZE(header);
        if (!PyUnicode_Check(kind.ptr()) || PyUnicode_CompareWithASCIIString(kind.ptr(), "numpy.ndarray") != 0 ||
            !PyBytes_CheckExact(data.ptr()) ||
            PyBytes_GET_SIZE(data.ptr()) != begin + static_cast<Py_ssize_t>(size_of(m)) * array.itemsize() ||
            std::memcmp(PyBytes_AS_STRING(data.ptr()), PyBytes_AS_STRING(header), static_cast<size_t>(begin)) != 0)
            return py::none();
        py::array view(array.dtype(), std::vector<py::ssize_t>(m->dimensions, m->dimensions + m->nd),
                       PyBytes_AS_STRING(data.ptr()) + begin, data);
        py::detail::array_proxy(view.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
        views[t] = std::move(view);
    }
    return views;
}

// Index of the first array that is not a C-contiguous numpy array of the model's dtype and shape, or -1.
int64_t first_mismatch(const Kernels&, const py::list& arrays, const py::list& model) {
    if (arrays.size() != model.size()) throw py::value_error("expected as many arrays as the model has");
    for (size_t t = 0; t < model.size(); ++t) {
        PyObject* const object = PyList_GET_ITEM(arrays.ptr(), static_cast<Py_ssize_t>(t));
        if (!py::isinstance<py::array>(py::handle(object))) return static_cast<int64_t>(t);
        const auto* a = py::detail::array_proxy(object);
        const auto* m = proxy(PyList_GET_ITEM(model.ptr(), static_cast<Py_ssize_t>(t)));
        if (a->descr != m->descr || a->nd != m->nd || !c_contiguous(a) ||
            !std::equal(a->dimensions, a->dimensions + a->nd, m->dimensions))
            return static_cast<int64_t>(t);
    }
    return -1;
}

// Indices of the C-contiguous targets that share bytes with some array of the rows.
std::vector<int64_t> overlapping(const Kernels&, const py::list& targets_list, const py::list& rows) {
    struct Range {
        const char* begin;
        const char* end;  // of every range up to this one
    };
    std::vector<Range> ranges;
    for (py::handle row : rows) {
        for (py::handle h : py::reinterpret_borrow<py::list>(row)) {
            const auto* a = proxy(h.ptr());
            const int64_t bytes = size_of(a) * py::reinterpret_borrow<py::array>(h).itemsize();
            if (bytes > 0) ranges.push_back({a->data, a->data + bytes});
        }
    }
    const auto before = [](const Range& a, const Range& b) { return a.begin < b.begin; };
    std::sort(ranges.begin(), ranges.end(), before);
    for (size_t i = 1; i < ranges.size(); ++i) ranges[i].end = std::max(ranges[i].end, ranges[i - 1].end);
    std::vector<int64_t> found;
    for (size_t t = 0; t < targets_list.size(); ++t) {
        PyObject* const object = PyList_GET_ITEM(targets_list.ptr(), static_cast<Py_ssize_t>(t));
        const auto* a = proxy(object);
        const int64_t bytes = size_of(a) * py::reinterpret_borrow<py::array>(object).itemsize();
        // The last range that begins before the target ends reaches furthest of all that do.
        const auto after = std::lower_bound(ranges.begin(), ranges.end(), Range{a->data + bytes, nullptr}, before);
        if (bytes > 0 && after != ranges.begin() && (after - 1)->end > a->data) found.push_back(static_cast<int64_t>(t));
    }
    return found;
}

}  // namespace

std::vector<TensorSpec> model_specs(const py::list& model) { return specs_of(model); }

std::vector<const void*> model_inputs(const py::list& rows, const py::list& model, const std::vector<TensorSpec>& specs) {
    return inputs_of(rows, model, specs);
}

std::vector<void*> model_targets(const py::list& arrays, const std::vector<TensorSpec>& specs) {
    return targets(arrays, specs);
}

void register_aggregate(py::module_& module, KernelsClass& kernels) {
    module.def("npy_empty", &npy_empty);
    module.def("npy_views", &npy_views);
    kernels.def("weighted_mean", &weighted_mean);
    kernels.def("add_weighted", &add_weighted);
    kernels.def("finish_mean", &finish_mean);
    kernels.def("all_finite", &all_finite);
    kernels.def("server_step", &server_step);
    kernels.def("binned_mean", &binned_mean);
    kernels.def("binned_add", &binned_add);
    kernels.def("binned_merge", &binned_merge);
    kernels.def("binned_finish", &binned_finish);
    kernels.def("first_mismatch", &first_mismatch);
    kernels.def("overlapping", &overlapping);
}

}  // namespace ef
