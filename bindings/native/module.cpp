#include <cstdlib>
#include <cstring>

#include "bindings/native/native.h"
#include "kernels/cpu/parallel.h"

namespace hfcore {
namespace {

// Whether this build has kernels for the set; one for a single machine has no others.
bool is_built(Isa isa) {
#ifdef HFCORE_ONLY
    return isa == Isa::HFCORE_ONLY;
#else
    static_cast<void>(isa);
    return true;
#endif
}

// HFCORE_ISA asks for a narrower set than the machine has, for tests; it must be one that it has.
Isa chosen_isa() {
    const Isa widest = widest_isa();
    const char* asked = std::getenv("HFCORE_ISA");
    if (asked == nullptr || *asked == '\0') {
        if (is_built(widest)) return widest;
        value_error(std::string("hfcore was built for another machine alone, this one serves ") +
                    name_of(widest) + ": install it again here");
    }
    std::string served;
    for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
        if (isa > widest) break;
        if (!is_built(isa)) continue;
        if (std::strcmp(asked, name_of(isa)) == 0) return isa;
        served += (served.empty() ? "" : ", ") + std::string(name_of(isa));
    }
    value_error(std::string("HFCORE_ISA: got '") + asked + "', this machine serves " + served);
}

const char* isa_name() { return name_of(active_isa()); }

}  // namespace

Isa active_isa() {
    static const Isa isa = chosen_isa();
    return isa;
}

std::string shape_text(const Array& a) {
    std::string text = "[";
    for (std::size_t i = 0; i < a.ndim(); ++i)
        text += (i ? "," : "") + std::to_string(a.shape(i));
    return text + "]";
}

void check_shape(const char* name, const Array& a, std::initializer_list<std::int64_t> want) {
    bool fits = a.ndim() == want.size();
    std::string text = "[";
    std::size_t i = 0;
    for (const std::int64_t length : want) {
        fits = fits && (length < 0 || static_cast<std::int64_t>(a.shape(i)) == length);
        text += (i ? "," : "") + (length < 0 ? std::string("any") : std::to_string(length));
        ++i;
    }
    if (!fits)
        value_error(std::string(name) + ": got shape " + shape_text(a) + ", need " + text + "]");
}

void check_grouped(const char* name, const Array& a, std::int64_t G,
                   std::initializer_list<std::int64_t> want_behind_group) {
    std::string text = "[1 or " + std::to_string(G);
    bool fits = a.ndim() == want_behind_group.size() + 1 &&
                (a.shape(0) == 1 || static_cast<std::int64_t>(a.shape(0)) == G);
    std::size_t i = 1;
    for (const std::int64_t length : want_behind_group) {
        fits = fits && (length < 0 || static_cast<std::int64_t>(a.shape(i)) == length);
        text += "," + (length < 0 ? std::string("any") : std::to_string(length));
        ++i;
    }
    if (!fits)
        value_error(std::string(name) + ": got shape " + shape_text(a) + ", need " + text + "]");
}

}  // namespace hfcore

NB_MODULE(_native, m) {
    m.doc() = "Compiled CPU kernels of hfcore. Call them through hfcore.bindings.";
    m.def("isa", &hfcore::isa_name, "Instruction set in use: avx512, avx2 or baseline.");
    m.def("scratch_bytes", &hfcore::scratch_bytes, "Bytes of working memory held between calls.");
    m.def("release_scratch", &hfcore::release_scratch, "Give that memory back.");
    hfcore::bind_recurrence(m);
    hfcore::bind_gated(m);
    hfcore::bind_loss(m);
    hfcore::bind_dense(m);
    hfcore::bind_net(m);
    hfcore::bind_contrastive(m);
    hfcore::bind_sparse(m);
    hfcore::bind_conjugate_gradient(m);
    hfcore::bind_momentum(m);
    hfcore::bind_draws(m);
    hfcore::bind_math(m);
}
