#include "cpu/staging.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "core/element.h"

namespace fusedopt::cpu {
namespace {

using Offsets = std::array<int64_t, kMaxOperands>;

// Walks the elements of all operands in step, as runs along the innermost dimension.
class StridedWalk {
 public:
  StridedWalk(std::span<const StridedDim> dims, int64_t begin) : dims_(dims) {
    for (size_t d = dims.size(); d-- > 0;) {
      index_[d] = begin % dims[d].size;
      begin /= dims[d].size;
      move(d, index_[d]);
    }
  }

  // Calls visit(offsets, position in the block, length) for runs that make up the next n elements.
  template <class Visit>
  void next(int64_t n, Visit visit) {
    const StridedDim& inner = dims_.back();
    for (int64_t done = 0; done < n;) {
      const int64_t run = std::min(n - done, inner.size - index_[dims_.size() - 1]);
      visit(offsets_, done, run);
      done += run;
      advance(run);
    }
  }

  int64_t inner_stride(int operand) const { return dims_.back().strides[operand]; }

 private:
  void move(size_t dim, int64_t by) {
    for (int k = 0; k < kMaxOperands; ++k) offsets_[k] += by * dims_[dim].strides[k];
  }

  void advance(int64_t run) {
    size_t d = dims_.size() - 1;
    index_[d] += run;
    move(d, run);
    for (; d > 0 && index_[d] == dims_[d].size; --d) {
      move(d, -index_[d]);
      index_[d] = 0;
      ++index_[d - 1];
      move(d - 1, 1);
    }
  }

  std::span<const StridedDim> dims_;
  std::array<int64_t, kMaxWalkDims> index_;
  Offsets offsets_{};
};

template <class Element>
void copy_run(const std::byte* from, int64_t from_stride, std::byte* to, int64_t to_stride,
              int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    std::memcpy(to + i * to_stride * sizeof(Element), from + i * from_stride * sizeof(Element),
                sizeof(Element));
  }
}

void copy_run(size_t element_size, const std::byte* from, int64_t from_stride, std::byte* to,
              int64_t to_stride, int64_t n) {
  switch (element_size) {
    case 2: return copy_run<uint16_t>(from, from_stride, to, to_stride, n);
    case 4: return copy_run<uint32_t>(from, from_stride, to, to_stride, n);
    default: return copy_run<uint64_t>(from, from_stride, to, to_stride, n);
  }
}

void widen(const KernelTable& isa, DType dtype, const void* from, void* to, int64_t n) {
  const auto convert = dtype == DType::kBFloat16 ? isa.widen_bfloat16 : isa.widen_float16;
  convert(static_cast<const uint16_t*>(from), static_cast<float*>(to), n);
}

void narrow(const KernelTable& isa, DType dtype, const void* from, void* to, int64_t n) {
  const auto convert = dtype == DType::kBFloat16 ? isa.narrow_bfloat16 : isa.narrow_float16;
  convert(static_cast<const float*>(from), static_cast<uint16_t*>(to), n);
}

template <class Element>
void fill(void* to, Element value, int64_t n) {
  std::fill_n(static_cast<Element*>(to), n, value);
}

void fill(DType dtype, void* to, double value, int64_t n) {
  const auto single = static_cast<float>(value);
  switch (dtype) {
    case DType::kFloat32: return fill(to, single, n);
    case DType::kFloat64: return fill(to, value, n);
    case DType::kBFloat16: return fill(to, fusedopt::narrow<BFloat16>(single), n);
    case DType::kFloat16: return fill(to, fusedopt::narrow<Float16>(single), n);
  }
}

// One block: where the elements of each operand are as stored, and where the kernel finds them.
struct Block {
  const KernelTable& isa;
  const Update& update;
  BlockBuffers& buffers;
  const float* grad_scale;  // null: the gradients are not scaled
  std::array<void*, kMaxOperands> stored{};
  std::array<void*, kMaxOperands> computed{};

  Block(const KernelTable& isa, const UpdateList& list, const Update& update, BlockBuffers& buffers)
      : isa(isa), update(update), buffers(buffers), grad_scale(list.amp().grad_scale) {}

  // Whether its memory holds something that may be read.
  bool is_there(int operand) const {
    const bool is_unwritten = operand >= kFirstState && is_unwritten_state(operand - kFirstState);
    return update.data[operand] != nullptr && !is_unwritten;
  }

  bool writes(int operand) const {
    return update.data[operand] != nullptr && (operand != kGrad || grad_scale != nullptr);
  }

  void load(int64_t n) {
    const DType compute = update.in_double ? DType::kFloat64 : DType::kFloat32;
    for (int k = 0; k < kMaxOperands; ++k) {
      if (update.data[k] == nullptr) continue;
      if (!is_there(k)) fill(update.dtypes[k], stored[k], update.initial[k - kFirstState], n);
      computed[k] = stored[k];
      if (update.dtypes[k] == compute) continue;
      computed[k] = buffers.widened[k];
      widen(isa, update.dtypes[k], stored[k], computed[k], n);
    }
    if (grad_scale != nullptr) isa.unscale[update.in_double](computed[kGrad], *grad_scale, n);
  }

  void store(int64_t n) {
    for (int k = 0; k < kMaxOperands; ++k) {
      if (!writes(k) || computed[k] == stored[k]) continue;
      narrow(isa, update.dtypes[k], computed[k], stored[k], n);
    }
  }

 private:
  bool is_unwritten_state(int state) const { return update.unwritten >> state & 1; }
};

std::byte* element_address(const Update& update, int operand, int64_t offset) {
  const auto size = static_cast<int64_t>(size_of(update.dtypes[operand]));
  return static_cast<std::byte*>(update.data[operand]) + offset * size;
}

void update_run(Block& block, Kernel kernel, const void* scalars, int64_t begin, int64_t end) {
  const Update& update = block.update;
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t n = std::min(kBlock, end - i);
    for (int k = 0; k < kMaxOperands; ++k) {
      if (update.data[k] != nullptr) block.stored[k] = element_address(update, k, i);
    }
    block.load(n);
    kernel(block.computed.data(), scalars, n);
    block.store(n);
  }
}

void update_strided(Block& block, Kernel kernel, const void* scalars,
                    std::span<const StridedDim> dims, int64_t begin, int64_t end) {
  const Update& update = block.update;
  StridedWalk reader(dims, begin);
  StridedWalk writer(dims, begin);
  for (int k = 0; k < kMaxOperands; ++k) {
    if (update.data[k] != nullptr) block.stored[k] = block.buffers.gathered[k];
  }
  // Copies between the operands and the block's buffers, which hold them without gaps.
  const auto copy = [&](StridedWalk& walk, int64_t n, bool to_buffer) {
    walk.next(n, [&](const Offsets& offsets, int64_t position, int64_t run) {
      for (int k = 0; k < kMaxOperands; ++k) {
        if (!(to_buffer ? block.is_there(k) : block.writes(k))) continue;
        const size_t size = size_of(update.dtypes[k]);
        std::byte* const element = element_address(update, k, offsets[k]);
        std::byte* const slot = block.buffers.gathered[k] + position * size;
        const int64_t stride = walk.inner_stride(k);
        if (to_buffer) {
          copy_run(size, element, stride, slot, 1, run);
        } else {
          copy_run(size, slot, 1, element, stride, run);
        }
      }
    });
  };
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t n = std::min(kBlock, end - i);
    copy(reader, n, true);
    block.load(n);
    kernel(block.computed.data(), scalars, n);
    block.store(n);
    copy(writer, n, false);
  }
}

}  // namespace

void update_staged(const KernelTable& isa, Kernel kernel, const UpdateList& list,
                   const Update& update, int64_t begin, int64_t end, BlockBuffers& buffers) {
  Block block(isa, list, update, buffers);
  const void* scalars = list.scalars(update);
  if (update.dim_count == 0) {
    update_run(block, kernel, scalars, begin, end);
  } else {
    update_strided(block, kernel, scalars, list.dims(update), begin, end);
  }
}

}  // namespace fusedopt::cpu
