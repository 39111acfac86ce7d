#include "bindings/native/native.h"
namespace hfcore { void bind_conjugate_gradient(nb::module_&) {} }
