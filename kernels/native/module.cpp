// What Python sees: functions of plain integers, where a pointer is the address that `Tensor.data_ptr()` gives.
//
// Nothing is checked here; pipezoo_core's backends do. Each function lets other Python threads run meanwhile.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <array>
#include <tuple>
#include <utility>

#include "attention.h"
#include "layers.h"
#include "linear.h"

namespace {

using pipezoo::bfloat16;

template <typename T>
T from_python(PyObject* value) {
    if constexpr (std::is_pointer_v<T>)
        return static_cast<T>(PyLong_AsVoidPtr(value));
    else if constexpr (std::is_floating_point_v<T>)
        return static_cast<T>(PyFloat_AsDouble(value));
    else
        return static_cast<T>(PyLong_AsLongLong(value));
}

// Makes a Python function of a C++ one: its arguments' types say how each is read.
template <auto function>
struct Binding;

template <typename Result, typename... Arguments, Result (*function)(Arguments...)>
struct Binding<function> {
    template <std::size_t... index>
    static PyObject* run(PyObject* const* values, std::index_sequence<index...>) {
        std::tuple<Arguments...> arguments{from_python<Arguments>(values[index])...};
        if (PyErr_Occurred()) return nullptr;
        if constexpr (std::is_void_v<Result>) {
            Py_BEGIN_ALLOW_THREADS
            std::apply(function, arguments);
            Py_END_ALLOW_THREADS
            Py_RETURN_NONE;
        } else {
            return PyLong_FromLongLong(std::apply(function, arguments));
        }
    }

    static PyObject* call(PyObject*, PyObject* const* values, Py_ssize_t count) {
        if (count != sizeof...(Arguments)) {
            PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", Py_ssize_t(sizeof...(Arguments)), count);
            return nullptr;
        }
        return run(values, std::index_sequence_for<Arguments...>{});
    }
};

template <typename T>
void attend(const void* q, std::int64_t q_stride, const void* k, std::int64_t k_stride, const void* v,
            std::int64_t v_stride, const void* cos, const void* sin, void* key_pages, void* value_pages, void* out,
            std::int64_t num_rows, const void* row_pages, const void* row_slots, std::int64_t num_items,
            const void* items, const void* page_table, std::int64_t num_splits, const void* splits, void* partials,
            std::int64_t num_heads, std::int64_t num_kv_heads, std::int64_t head_dim, std::int64_t page_size,
            std::int64_t window, const void* slopes, double scale) {
    const auto* const pages = static_cast<const std::int32_t*>(row_pages);
    const auto* const slots = static_cast<const std::int32_t*>(row_slots);
    const pipezoo::Step step{num_rows,
                             pages,
                             slots,
                             num_items,
                             static_cast<const pipezoo::Item*>(items),
                             static_cast<const std::int32_t*>(page_table),
                             num_splits,
                             static_cast<const pipezoo::Split*>(splits),
                             static_cast<float*>(partials),
                             num_heads,
                             num_kv_heads,
                             head_dim,
                             page_size,
                             window,
                             static_cast<const float*>(slopes),
                             float(scale)};
    pipezoo::attend(static_cast<const T*>(q), q_stride, static_cast<const T*>(k), k_stride, static_cast<const T*>(v),
                    v_stride, static_cast<const T*>(cos), static_cast<const T*>(sin), static_cast<T*>(key_pages),
                    static_cast<T*>(value_pages), static_cast<T*>(out), step);
}

template <typename T>
void pack(const void* weight, void* packed, std::int64_t out, std::int64_t in) {
    pipezoo::pack(static_cast<const T*>(weight), static_cast<T*>(packed), out, in);
}

template <typename T>
void linear(const void* x, const void* packed, const void* bias, void* y, std::int64_t rows, std::int64_t in,
            std::int64_t out) {
    pipezoo::linear(static_cast<const T*>(x), static_cast<const T*>(packed), static_cast<const T*>(bias),
                    static_cast<T*>(y), rows, in, out);
}

template <typename T>
void rms_norm(const void* x, const void* weight, void* y, std::int64_t rows, std::int64_t size, double eps) {
    pipezoo::rms_norm(static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<T*>(y), rows, size,
                      float(eps));
}

template <typename T>
void silu_multiply(const void* gate_up, void* y, std::int64_t rows, std::int64_t size) {
    pipezoo::silu_multiply(static_cast<const T*>(gate_up), static_cast<T*>(y), rows, size);
}

#define PIPEZOO_FUNCTION(name, function) \
    {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&Binding<&function>::call)), METH_FASTCALL, nullptr}
#define PIPEZOO_BOTH(name) \
    PIPEZOO_FUNCTION(#name "_float32", name<float>), PIPEZOO_FUNCTION(#name "_bfloat16", name<bfloat16>)

PyMethodDef methods[] = {PIPEZOO_BOTH(pack),          PIPEZOO_BOTH(linear), PIPEZOO_BOTH(rms_norm),
                         PIPEZOO_BOTH(silu_multiply), PIPEZOO_BOTH(attend), {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native() { return PyModuleDef_Init(&definition); }
