// The kernels, as addresses to launch.
#pragma once

namespace fusedopt::cuda {

// The kernel of a rule (its index in AllRules). Its parameter is a Table<kSmallTable> or a
// Table<kLargeTable>.
const void* kernel_of(unsigned rule, bool has_large_table);

}  // namespace fusedopt::cuda
