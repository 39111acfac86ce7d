#include "bindings/native/native.h"
namespace hfcore { void bind_loss(nb::module_&) {} }
