// Prints the widest instruction set of this machine, for builds that serve no other.
#include <cstdio>

#include "isa.h"

int main() {
    std::fputs(hfcore::name_of(hfcore::widest_isa()), stdout);
    return 0;
}
