// The kernels, as addresses to launch.
#pragma once

namespace fusedopt::cuda {

// By its parameter, a Table<kSmallTable> or a Table<kLargeTable>; or that for launches in which
// some tensor has operands of different formats, so that the usual ones need not know of any. Its
// parameter is a Table<kSmallTable>.
enum class KernelKind { kSmall, kLarge, kMixedFormats };

// The kernel of a rule (its index in AllRules).
const void* kernel_of(unsigned rule, KernelKind kind);

}  // namespace fusedopt::cuda
