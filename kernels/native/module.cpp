// What Python sees: functions of plain integers, where a pointer is the address that `Tensor.data_ptr()` gives.
//
// Nothing is checked here; pipezoo_core does. `replay` and the functions that pack weights let other Python threads run
// meanwhile. The others keep the interpreter's lock, because to get it back takes up to 5 ms, which is longer than they
// compute. All raise MemoryError where memory is short. `addresses` says where each lies, for `replay`, which runs many
// with one call.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <new>
#include <tuple>
#include <utility>

#include "attention.h"
#include "e4m3.h"
#include "experts.h"
#include "heads.h"
#include "layers.h"
#include "linear.h"
#include "quantized.h"
#include "recurrence.h"
#include "routing.h"
#include "stored.h"
#include "team.h"

namespace {

using pipezoo::bfloat16;
using pipezoo::Packing;

// What pipezoo_core has to know of these functions: their arguments, the fields of `Step`, `StateStep`, `Layer`,
// `Item`, `ExpertsLayer` and `RouterLayer`, the layout of packed weights. Another number for every change; pipezoo_core uses no
// kernels of another number than its own.
constexpr long kInterface = 12;

template <typename T>
T from_python(PyObject* value) {
    if constexpr (std::is_pointer_v<T>)
        return static_cast<T>(PyLong_AsVoidPtr(value));
    else if constexpr (std::is_floating_point_v<T>)
        return static_cast<T>(PyFloat_AsDouble(value));
    else
        return static_cast<T>(PyLong_AsLongLong(value));
}

template <typename T>
T from_number(std::int64_t value) {
    T result;
    static_assert(sizeof result == sizeof value);
    std::memcpy(&result, &value, sizeof value);
    return result;
}

// Makes a Python function of a C++ one, and one that takes its arguments from memory, 8 bytes each.
template <auto function>
struct Binding;

template <typename... Arguments, void (*function)(Arguments...)>
struct Binding<function> {
    template <bool keeps_lock, std::size_t... index>
    static PyObject* run(PyObject* const* values, std::index_sequence<index...>) {
        const std::tuple<Arguments...> arguments{from_python<Arguments>(values[index])...};
        if (PyErr_Occurred()) return nullptr;
        PyThreadState* released = keeps_lock ? nullptr : PyEval_SaveThread();
        bool has_memory = true;
        try {
            std::apply(function, arguments);
        } catch (const std::bad_alloc&) {
            has_memory = false;
        }
        if (released) PyEval_RestoreThread(released);
        if (!has_memory) return PyErr_NoMemory();
        Py_RETURN_NONE;
    }

    template <std::size_t... index>
    static void run(const std::int64_t* values, std::index_sequence<index...>) {
        function(from_number<Arguments>(values[index])...);
    }

    static void replay(const std::int64_t* values) { run(values, std::index_sequence_for<Arguments...>{}); }

    template <bool keeps_lock>
    static PyObject* call(PyObject*, PyObject* const* values, Py_ssize_t count) {
        if (count != sizeof...(Arguments)) {
            PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", Py_ssize_t(sizeof...(Arguments)), count);
            return nullptr;
        }
        return run<keeps_lock>(values, std::index_sequence_for<Arguments...>{});
    }
};

template <typename T>
void attend(const void* q, std::int64_t q_stride, const void* k, std::int64_t k_stride, const void* v,
            std::int64_t v_stride, const void* cos, const void* sin, std::int64_t rotary_dim, void* key_pages,
            void* value_pages, void* out, const void* step, const void* layer, const void* sinks) {
    // Values that lie in the keys are not rotated, but what is behind them.
    const std::int64_t first_rotated = value_pages ? 0 : static_cast<const pipezoo::Step*>(step)->value_dim;
    pipezoo::attend<T>({static_cast<const T*>(q), q_stride}, {static_cast<const T*>(k), k_stride},
                       {static_cast<const T*>(v), v_stride},
                       {static_cast<const T*>(cos), static_cast<const T*>(sin), rotary_dim, first_rotated},
                       static_cast<T*>(key_pages), static_cast<T*>(value_pages), static_cast<T*>(out),
                       *static_cast<const pipezoo::Step*>(step), *static_cast<const pipezoo::Layer*>(layer),
                       static_cast<const T*>(sinks));
}

template <typename T>
void pack(const void* weight, void* packed, std::int64_t out, std::int64_t in, std::int64_t form) {
    pipezoo::pack(static_cast<const T*>(weight), static_cast<T*>(packed), out, in, pipezoo::Form(form));
}

template <typename T, Packing packing>
void pack_quantized(const void* weight, void* packed, std::int64_t out, std::int64_t in, std::int64_t form) {
    pipezoo::pack_quantized<T, packing>(static_cast<const T*>(weight), static_cast<std::uint8_t*>(packed), out, in,
                                     pipezoo::Form(form));
}

template <typename T, Packing packing>
void linear_packed(const void* x, const void* packed, const void* bias, void* y, std::int64_t rows, std::int64_t in,
                   std::int64_t out, std::int64_t form, std::int64_t activation) {
    pipezoo::linear(packing, static_cast<const T*>(x), packed, static_cast<const T*>(bias), y, rows, in, out,
                    pipezoo::Form(form), pipezoo::Activation(activation));
}

template <typename T>
void multiply_heads(const void* x, std::int64_t row_stride, std::int64_t head_stride, const void* packed, void* y,
                    std::int64_t rows, std::int64_t heads, std::int64_t in, std::int64_t out) {
    pipezoo::multiply_heads(static_cast<const T*>(x), row_stride, head_stride, static_cast<const T*>(packed),
                            static_cast<T*>(y), rows, heads, in, out);
}

template <typename T>
void packed_rows(const void* tokens, const void* packed, void* y, std::int64_t rows, std::int64_t in, std::int64_t out) {
    pipezoo::packed_rows(static_cast<const std::int64_t*>(tokens), static_cast<const T*>(packed), static_cast<T*>(y),
                         rows, in, out);
}

template <typename T, Packing packing>
void packed_rows_quantized(const void* tokens, const void* packed, void* y, std::int64_t rows, std::int64_t in,
                           std::int64_t out) {
    pipezoo::packed_rows_quantized(packing, static_cast<const std::int64_t*>(tokens),
                                   static_cast<const std::uint8_t*>(packed), static_cast<T*>(y), rows, in, out);
}

template <Packing packing>
void pack_stored(const void* rows, void* packed, std::int64_t out, std::int64_t in, std::int64_t form) {
    pipezoo::pack_stored<packing>(static_cast<const std::uint8_t*>(rows), static_cast<std::uint8_t*>(packed), out, in,
                                pipezoo::Form(form));
}

template <std::int64_t block>
void pack_e4m3(const void* rows, void* packed, std::int64_t out, std::int64_t in, std::int64_t form) {
    pipezoo::pack_e4m3<block>(static_cast<const std::uint8_t*>(rows), static_cast<std::uint8_t*>(packed), out, in,
                              pipezoo::Form(form));
}

template <typename T>
void packed_rows_e4m3(const void* tokens, const void* packed, void* y, std::int64_t rows, std::int64_t in,
                      std::int64_t out) {
    pipezoo::packed_rows_e4m3(static_cast<const std::int64_t*>(tokens), static_cast<const std::uint8_t*>(packed),
                              static_cast<T*>(y), rows, in, out);
}

template <typename T>
constexpr auto pack_int8 = pack_quantized<T, Packing::int8>;
template <typename T>
constexpr auto pack_int4 = pack_quantized<T, Packing::int4>;

template <typename T>
constexpr auto linear = linear_packed<T, Packing::none>;
template <typename T>
constexpr auto linear_e4m3 = linear_packed<T, Packing::e4m3>;

#define PIPEZOO_OF_PACKING(packing)                                                \
    template <typename T>                                                          \
    constexpr auto linear_##packing = linear_packed<T, Packing::packing>;          \
    template <typename T>                                                          \
    constexpr auto packed_rows_##packing = packed_rows_quantized<T, Packing::packing>;
PIPEZOO_OF_PACKING(int8)
PIPEZOO_OF_PACKING(int4)
PIPEZOO_OF_PACKING(q4_0)
PIPEZOO_OF_PACKING(q4_1)
PIPEZOO_OF_PACKING(q4_k)
PIPEZOO_OF_PACKING(q5_k)
PIPEZOO_OF_PACKING(q6_k)
PIPEZOO_OF_PACKING(affine4_32)
PIPEZOO_OF_PACKING(affine4_64)
PIPEZOO_OF_PACKING(affine4_128)
PIPEZOO_OF_PACKING(affine8_32)
PIPEZOO_OF_PACKING(affine8_64)
PIPEZOO_OF_PACKING(mxfp4)

template <typename T>
void experts(const void* x, const void* indices, const void* weights, void* inside, void* products, void* y,
             std::int64_t rows, const void* layer) {
    pipezoo::experts<T>(static_cast<const T*>(x), static_cast<const std::int64_t*>(indices),
                        static_cast<const float*>(weights), static_cast<T*>(inside), static_cast<T*>(products),
                        static_cast<T*>(y), rows, *static_cast<const pipezoo::ExpertsLayer*>(layer));
}

template <typename T>
void route(const void* x, void* logits, void* indices, void* weights, std::int64_t rows, const void* layer) {
    pipezoo::route<T>(static_cast<const T*>(x), static_cast<float*>(logits), static_cast<std::int64_t*>(indices),
                      static_cast<float*>(weights), rows, *static_cast<const pipezoo::RouterLayer*>(layer));
}

template <typename T>
void rms_norm(const void* x, const void* weight, void* y, std::int64_t rows, std::int64_t size, std::int64_t heads,
              std::int64_t stride, double eps, double offset) {
    pipezoo::rms_norm(static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<T*>(y), rows, size, heads,
                      stride, float(eps), float(offset));
}

template <typename T>
void layer_norm(const void* x, const void* weight, const void* bias, void* y, std::int64_t rows, std::int64_t size,
                std::int64_t heads, std::int64_t stride, double eps) {
    pipezoo::layer_norm(static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<const T*>(bias),
                        static_cast<T*>(y), rows, size, heads, stride, float(eps));
}

template <typename T>
void gated(const void* gate_up, void* y, std::int64_t rows, std::int64_t size, std::int64_t activation) {
    pipezoo::gated(static_cast<const T*>(gate_up), static_cast<T*>(y), rows, size, pipezoo::Activation(activation));
}

template <typename T>
void activate(const void* x, void* y, std::int64_t rows, std::int64_t size, std::int64_t stride,
              std::int64_t activation) {
    pipezoo::activate(static_cast<const T*>(x), static_cast<T*>(y), rows, size, stride,
                      pipezoo::Activation(activation));
}

template <typename T>
void add(const void* x, const void* y, void* sum, std::int64_t rows, std::int64_t size, std::int64_t x_stride,
         std::int64_t y_stride, double factor) {
    pipezoo::add(static_cast<const T*>(x), static_cast<const T*>(y), static_cast<T*>(sum), rows, size, x_stride,
                 y_stride, float(factor));
}

template <typename T>
void multiply(const void* x, const void* y, void* product, std::int64_t rows, std::int64_t size, std::int64_t x_stride,
              std::int64_t y_stride) {
    pipezoo::multiply(static_cast<const T*>(x), static_cast<const T*>(y), static_cast<T*>(product), rows, size,
                      x_stride, y_stride);
}

template <typename T>
void scale(const void* x, void* y, std::int64_t rows, std::int64_t size, std::int64_t stride, double factor) {
    pipezoo::scale(static_cast<const T*>(x), static_cast<T*>(y), rows, size, stride, float(factor));
}

template <typename T>
void clamp(const void* x, void* y, std::int64_t rows, std::int64_t size, std::int64_t stride, double low, double high) {
    pipezoo::clamp(static_cast<const T*>(x), static_cast<T*>(y), rows, size, stride, float(low), float(high));
}

template <typename T>
void embedding(const void* tokens, const void* weight, void* y, std::int64_t rows, std::int64_t size,
               std::int64_t vocabulary) {
    pipezoo::embedding(static_cast<const std::int64_t*>(tokens), static_cast<const T*>(weight), static_cast<T*>(y),
                       rows, size, vocabulary);
}

template <typename T>
void rotary_angles(const void* positions, const void* frequencies, void* cos, void* sin, std::int64_t rows,
                   std::int64_t half, double scaling) {
    pipezoo::rotary_angles(static_cast<const std::int64_t*>(positions), static_cast<const float*>(frequencies),
                           static_cast<T*>(cos), static_cast<T*>(sin), rows, half, float(scaling));
}

template <typename T>
void short_convolution(const void* x, std::int64_t stride, const void* weight, const void* bias, void* state, void* y,
                       std::int64_t size, std::int64_t taps, std::int64_t is_activated, const void* step) {
    pipezoo::short_convolution(static_cast<const T*>(x), stride, static_cast<const T*>(weight),
                               static_cast<const T*>(bias), static_cast<float*>(state), static_cast<T*>(y), size, taps,
                               is_activated != 0, *static_cast<const pipezoo::StateStep*>(step));
}

template <typename T>
void gated_delta_rule(const void* qkv, std::int64_t qkv_stride, const void* a, std::int64_t a_stride, const void* b,
                      std::int64_t b_stride, const void* decay_log, const void* decay_bias, void* state, void* y,
                      const void* step, std::int64_t key_heads, std::int64_t heads, std::int64_t key_size,
                      std::int64_t value_size) {
    pipezoo::gated_delta_rule<T>({static_cast<const T*>(qkv), qkv_stride, static_cast<const T*>(a), a_stride,
                                  static_cast<const T*>(b), b_stride},
                                 static_cast<const float*>(decay_log), static_cast<const float*>(decay_bias),
                                 static_cast<float*>(state), static_cast<T*>(y),
                                 *static_cast<const pipezoo::StateStep*>(step),
                                 {key_heads, heads, key_size, value_size});
}

template <typename T>
void selective_scan(const void* xbc, std::int64_t xbc_stride, const void* dt, std::int64_t dt_stride,
                    const void* of_heads, double shortest, double longest, void* state, void* y, const void* step,
                    std::int64_t groups, std::int64_t heads, std::int64_t state_size, std::int64_t head_size) {
    pipezoo::selective_scan<T>({static_cast<const T*>(xbc), xbc_stride, static_cast<const T*>(dt), dt_stride},
                               {static_cast<const float*>(of_heads), float(shortest), float(longest)},
                               static_cast<float*>(state), static_cast<T*>(y),
                               *static_cast<const pipezoo::StateStep*>(step), {groups, heads, state_size, head_size});
}

template <typename T>
void gated_rms_norm(const void* x, const void* weight, const void* gate, void* y, std::int64_t rows,
                    std::int64_t heads, std::int64_t size, std::int64_t weight_stride, std::int64_t gate_stride,
                    double eps, std::int64_t is_gated_first) {
    pipezoo::gated_rms_norm(static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<const T*>(gate),
                            static_cast<T*>(y), rows, heads, size, weight_stride, gate_stride, float(eps),
                            is_gated_first != 0);
}

// A program is `num_calls` rows of 16 numbers: the address of a kernel, then its arguments. All threads of one team run
// each row, so the kernel is one that works `on_team`; those that pack weights do not. Where a thread of the team is late,
// a smaller one goes on after the row.
void replay(const void* program, std::int64_t num_calls) {
    const auto* rows = static_cast<const std::int64_t*>(program);
    for (std::int64_t begin = 0, end = 0; begin < num_calls; begin = end)
        pipezoo::in_parallel([&](pipezoo::Team& team) {
            const pipezoo::Replaying replaying(team);
            std::int64_t i = begin;
            while (i < num_calls && !team.is_late()) {
                const std::int64_t* row = rows + 16 * i++;
                reinterpret_cast<void (*)(const std::int64_t*)>(row[0])(row + 1);
            }
            if (team.is_first()) end = i;
        });
}

#define PIPEZOO_PACKERS(apply) apply(pack) apply(pack_int8) apply(pack_int4)
#define PIPEZOO_KERNELS(apply)                                                                            \
    apply(linear) apply(linear_int8) apply(linear_int4) apply(linear_q4_0) apply(linear_q4_1)             \
        apply(linear_q4_k) apply(linear_q5_k) apply(linear_q6_k) apply(linear_affine4_32)                 \
        apply(linear_affine4_64) apply(linear_affine4_128) apply(linear_affine8_32)                       \
        apply(linear_affine8_64) apply(multiply_heads)                                                    \
        apply(packed_rows) apply(packed_rows_int8) apply(packed_rows_int4) apply(packed_rows_q4_0)        \
        apply(packed_rows_q4_1) apply(packed_rows_q4_k) apply(packed_rows_q5_k) apply(packed_rows_q6_k)   \
        apply(packed_rows_affine4_32) apply(packed_rows_affine4_64) apply(packed_rows_affine4_128)        \
        apply(packed_rows_affine8_32) apply(packed_rows_affine8_64)                                       \
        apply(linear_mxfp4) apply(packed_rows_mxfp4) apply(linear_e4m3) apply(packed_rows_e4m3)           \
        apply(experts) apply(route)                                                                       \
        apply(rms_norm) apply(layer_norm) apply(gated) apply(activate)                                    \
        apply(add) apply(multiply) apply(scale) apply(clamp)                                              \
        apply(attend) apply(embedding) apply(rotary_angles)                                               \
        apply(short_convolution) apply(gated_delta_rule) apply(selective_scan)                            \
        apply(gated_rms_norm)

template <auto function, bool keeps_lock>
PyCFunction python_function() {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&Binding<function>::template call<keeps_lock>));
}

#define PIPEZOO_METHODS(name, keeps_lock)                                                            \
    {#name "_float32", python_function<name<float>, keeps_lock>(), METH_FASTCALL, nullptr},         \
    {#name "_bfloat16", python_function<name<bfloat16>, keeps_lock>(), METH_FASTCALL, nullptr},
#define PIPEZOO_SHORT(name) PIPEZOO_METHODS(name, true)
#define PIPEZOO_LONG(name) PIPEZOO_METHODS(name, false)

#define PIPEZOO_OF_FILE(name, packing) \
    {name, python_function<&pack_stored<Packing::packing>, false>(), METH_FASTCALL, nullptr},

#define PIPEZOO_OF_E4M3(name, block) {name, python_function<&pack_e4m3<block>, false>(), METH_FASTCALL, nullptr},

PyMethodDef methods[] = {
    PIPEZOO_PACKERS(PIPEZOO_LONG) PIPEZOO_KERNELS(PIPEZOO_SHORT)
    PIPEZOO_OF_FILE("pack_rounded4", int4)
    PIPEZOO_OF_FILE("pack_q8_0", int8) PIPEZOO_OF_FILE("pack_q4_0", q4_0) PIPEZOO_OF_FILE("pack_q4_1", q4_1)
    PIPEZOO_OF_FILE("pack_q4_k", q4_k) PIPEZOO_OF_FILE("pack_q5_k", q5_k) PIPEZOO_OF_FILE("pack_q6_k", q6_k)
    PIPEZOO_OF_FILE("pack_affine4_32", affine4_32) PIPEZOO_OF_FILE("pack_affine4_64", affine4_64)
    PIPEZOO_OF_FILE("pack_affine4_128", affine4_128) PIPEZOO_OF_FILE("pack_affine8_32", affine8_32)
    PIPEZOO_OF_FILE("pack_affine8_64", affine8_64)
    PIPEZOO_OF_FILE("pack_mxfp4", mxfp4)
    PIPEZOO_OF_E4M3("pack_e4m3_128", 128) PIPEZOO_OF_E4M3("pack_e4m3_64", 64) PIPEZOO_OF_E4M3("pack_e4m3_32", 32)
    {"replay", python_function<&replay, false>(), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

int add_address(PyObject* addresses, const char* name, void (*function)(const std::int64_t*)) {
    PyObject* address = PyLong_FromVoidPtr(reinterpret_cast<void*>(function));
    const int failed = address == nullptr || PyDict_SetItemString(addresses, name, address) < 0;
    Py_XDECREF(address);
    return failed;
}

int fill_module(PyObject* module) {
    PyObject* addresses = PyDict_New();
    int failed = addresses == nullptr;
#define PIPEZOO_ADDRESSES(name)                                                                  \
    failed = failed || add_address(addresses, #name "_float32", &Binding<name<float>>::replay); \
    failed = failed || add_address(addresses, #name "_bfloat16", &Binding<name<bfloat16>>::replay);
    PIPEZOO_KERNELS(PIPEZOO_ADDRESSES)
    failed = failed || PyModule_AddObjectRef(module, "addresses", addresses) < 0;
    failed = failed || PyModule_AddIntConstant(module, "interface", kInterface) < 0;
    Py_XDECREF(addresses);
    return failed ? -1 : 0;
}

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void*>(&fill_module)}, {0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "native", nullptr, 0, methods, slots, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PIPEZOO_INIT() { return PyModuleDef_Init(&definition); }  // named by setup.py, for each kind of CPU
