// What the parts of the compiled module share: the instruction set in use and argument checks.
//
// The module trusts nobody: every array is checked here again, so that no call can crash it.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/cpu/isa.h"

namespace hfcore {

namespace nb = nanobind;

// The widest set that this machine has and this build contains, or the one that HFCORE_ISA asks for;
// ValueError for one that is not served here.
Isa active_isa();

void bind_recurrence(nb::module_& m);
void bind_gated(nb::module_& m);
void bind_loss(nb::module_& m);
void bind_dense(nb::module_& m);
void bind_net(nb::module_& m);
void bind_contrastive(nb::module_& m);
void bind_sparse(nb::module_& m);
void bind_conjugate_gradient(nb::module_& m);
void bind_momentum(nb::module_& m);
void bind_draws(nb::module_& m);
void bind_math(nb::module_& m);

// Any C-contiguous array in CPU memory.
using Array = nb::ndarray<nb::c_contig, nb::device::cpu>;

// The shape of an array as text, for messages: [2,3,4].
std::string shape_text(const Array& a);

// Checks rank and shape; a wanted length of -1 stands for any. Throws ValueError.
void check_shape(const char* name, const Array& a, std::initializer_list<std::int64_t> want);

// Checks an array whose first axis is the group: length 1 or G. Throws ValueError.
void check_grouped(const char* name, const Array& a, std::int64_t G,
                   std::initializer_list<std::int64_t> want_behind_group);

// Checks that an array holds T. Throws TypeError.
template <class T>
void check_dtype(const char* name, const Array& a) {
    if (a.dtype() != nb::dtype<T>())
        throw nb::type_error((std::string(name) + ": wrong dtype, need " +
                              (sizeof(T) == 4 ? "float32" : "float64") + " like the others")
                                 .c_str());
}

// Stride of the group axis in elements; 0 shares a length of 1 among the group.
inline std::int64_t group_stride(const Array& a) {
    if (a.shape(0) == 1) return 0;
    std::int64_t stride = 1;
    for (std::size_t i = 1; i < a.ndim(); ++i) stride *= static_cast<std::int64_t>(a.shape(i));
    return stride;
}

// Calls f with a null pointer of the array's element type. Throws TypeError for anything else.
template <class F>
void with_float_type(const char* name, const Array& a, F&& f) {
    if (a.dtype() == nb::dtype<float>())
        f(static_cast<float*>(nullptr));
    else if (a.dtype() == nb::dtype<double>())
        f(static_cast<double*>(nullptr));
    else
        throw nb::type_error((std::string(name) + ": need float32 or float64").c_str());
}

[[noreturn]] inline void value_error(const std::string& text) {
    throw nb::value_error(text.c_str());
}

// Picks the kernels of the active instruction set: HFCORE_PICK(recurrence_kernels<float>()).
#if defined(HFCORE_ONLY)
#define HFCORE_PICK(call) (static_cast<void>(::hfcore::active_isa()), HFCORE_ONLY::call)
#elif defined(HFCORE_HAS_avx512)
#define HFCORE_PICK(call)                                                \
    (::hfcore::active_isa() == ::hfcore::Isa::avx512 ? avx512::call      \
     : ::hfcore::active_isa() == ::hfcore::Isa::avx2 ? avx2::call        \
                                                     : baseline::call)
#else
#define HFCORE_PICK(call) (static_cast<void>(::hfcore::active_isa()), baseline::call)
#endif

}  // namespace hfcore
