// The kernels, as addresses to launch.
#pragma once

namespace fusedopt::cuda {

// By its parameter, a Table<kSmallTable> or a Table<kLargeTable>; or those for launches in which
// the operands of some tensor are not all in one format of torch's, so that the usual ones need not
// know of any other. Of these the first computes in float alone, which leaves room for more
// threads. Their parameter is a Table<kSmallTable>.
enum class KernelKind { kSmall, kLarge, kAnyFormats, kAnyFormatsInDouble };

constexpr bool takes_any_formats(KernelKind kind) { return kind >= KernelKind::kAnyFormats; }

// The kernel of a rule (its index in AllRules).
const void* kernel_of(unsigned rule, KernelKind kind);

// The kernel of the measuring pass, by the table that is its parameter.
const void* square_kernel_of(bool has_large_table);

}  // namespace fusedopt::cuda
