#include "cpu/measure.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "cpu/gather.h"
#include "cpu/memory.h"
#include "cpu/pipeline.h"
#include "cpu/threads.h"

namespace fusedopt::cpu {
namespace {

// Reading takes a fraction of the time of an update, so that a thread needs more of it.
constexpr int64_t kReadsPerUpdate = 4;

// Elements that are gone through together where they are copied or divided first.
constexpr int64_t kBuffered = 256;

// The sums of squares of a tensor's blocks, of its elements divided by a number if there is one.
class BlockSums {
 public:
  BlockSums(const KernelTable& isa, const SquareList& list, std::optional<double> divisor)
      : isa_(isa), list_(list), divisor_(divisor) {}

  double sum(const Squared& tensor, int64_t block) const {
    const int64_t begin = block * kSquareBlock;
    const int64_t n = std::min(kSquareBlock, tensor.numel - begin);
    alignas(64) double lanes[kSquareLanes] = {};
    if (tensor.dim_count > 0) {
      add_strided(tensor, begin, n, lanes);
    } else if (divisor_) {
      for (int64_t i = 0; i < n; i += kBuffered) {
        add_divided(tensor, element(tensor, begin + i), std::min(kBuffered, n - i), lanes);
      }
    } else {
      add(tensor.format, element(tensor, begin), n, lanes);
    }
    return sum_of_lanes(lanes);
  }

 private:
  static const std::byte* element(const Squared& tensor, int64_t offset) {
    return static_cast<const std::byte*>(tensor.data) +
           offset * static_cast<int64_t>(size_of(tensor.format));
  }

  void add(Format format, const void* elements, int64_t n, double* lanes) const {
    isa_.add_squares[static_cast<size_t>(format)](elements, n, lanes);
  }

  // Few enough elements for a buffer; whole rows of lanes, but for the last ones.
  void add_divided(const Squared& tensor, const void* elements, int64_t n, double* lanes) const {
    alignas(64) std::byte numbers[kBuffered * sizeof(double)];
    const StoredBlock stored = {.elements = const_cast<void*>(elements)};  // which is read
    isa_.decode[tensor.in_double][static_cast<size_t>(tensor.format)](stored, numbers, n);
    isa_.unscale[tensor.in_double](numbers, *divisor_, n);
    add(arithmetic_format(tensor.in_double), numbers, n, lanes);
  }

  void add_strided(const Squared& tensor, int64_t begin, int64_t n, double* lanes) const {
    alignas(64) std::byte copies[kBuffered * sizeof(double)];
    const auto size = static_cast<int64_t>(size_of(tensor.format));
    ElementWalk walk(list_.walk(tensor), begin);
    for (int64_t i = 0; i < n; i += kBuffered) {
      const int64_t count = std::min(kBuffered, n - i);
      walk.next(count, [&](const int64_t* offsets, int64_t position, int64_t run) {
        copy_run(static_cast<size_t>(size), element(tensor, offsets[0]), walk.inner_stride(0),
                 copies + position * size, 1, run);
      });
      if (divisor_) {
        add_divided(tensor, copies, count, lanes);
      } else {
        add(tensor.format, copies, count, lanes);
      }
    }
  }

  const KernelTable& isa_;
  const SquareList& list_;
  std::optional<double> divisor_;
};

// Divided by this, the square of no double is infinite that is not itself.
constexpr double kLargestRoot = 0x1p600;

int parts_of(const SquareList& list, int max_threads) {
  const int64_t worthwhile = list.numel() / (kReadsPerUpdate * min_elements_per_thread());
  const int parts = static_cast<int>(std::clamp<int64_t>(worthwhile, 1, max_threads));
  return can_start_threads(parts) ? parts : 1;
}

// Calls visit(tensor, block) for each block of a part.
template <class Visit>
void for_each_block(const SquareList& list, int part, int parts, const Visit& visit) {
  const int64_t begin = list.cut(part, parts), end = list.cut(part + 1, parts);
  const auto& tensors = list.tensors();
  for (size_t t = list.tensor_at(begin); t < tensors.size() && tensors[t].first < end; ++t) {
    const int64_t before = std::max<int64_t>(begin - tensors[t].first, 0);
    for (int64_t b = square_blocks_of(before); b < square_blocks_of(tensors[t].numel); ++b) {
      if (tensors[t].first + b * kSquareBlock >= end) break;
      visit(tensors[t], b);
    }
  }
}

}  // namespace

void sum_squares(const KernelTable& isa, SquareList& list, const float* grad_scale, int max_threads,
                 std::span<ExactSum> sums) {
  std::vector<double>& block_sums = list.block_sums();
  const int parts = parts_of(list, max_threads);
  const std::optional<double> scale =
      grad_scale == nullptr ? std::nullopt : std::optional<double>(*grad_scale);
  const BlockSums blocks(isa, list, scale), divided(isa, list, scale.value_or(1) * kLargestRoot);
  run_parts(parts, [&](int part) noexcept {
    for_each_block(list, part, parts, [&](const Squared& tensor, int64_t block) {
      double sum = blocks.sum(tensor, block);
      if (tensor.in_double && std::isinf(sum)) {
        if (std::isfinite(divided.sum(tensor, block))) sum = kOverflow;
      }
      block_sums[static_cast<size_t>(tensor.first_block + block)] = sum;
    });
  });
  list.add_block_sums(sums);
}

void touch_lines(const SquareList& list, int max_threads) {
  const int parts = parts_of(list, max_threads);
  run_parts(parts, [&](int part) noexcept {
    for_each_block(list, part, parts, [&](const Squared& tensor, int64_t block) {
      const auto size = static_cast<int64_t>(size_of(tensor.format));
      const int64_t begin = block * kSquareBlock;
      const int64_t end = std::min(begin + kSquareBlock, tensor.numel);
      const auto* const bytes = static_cast<const volatile char*>(tensor.data);
      for (int64_t at = begin * size; at < end * size; at += kLine) (void)bytes[at];
    });
  });
}

}  // namespace fusedopt::cpu
