// What the handlers of groups that are nested in parents share.
#pragma once

#include <string>
#include <vector>

#include "handler.h"
#include "nested_pass.h"

namespace jaxglmm {

// What is left to say about groups' numbers, -1 where there is none, and their parents, of all batches; empty
// where all is well.
std::string nesting_fault(const ffi::Buffer<ffi::S32>& group, const ffi::Buffer<ffi::S32>& parent,
                          int64_t parents);

// So many doubles of `memory`, 64-byte aligned.
double* aligned(std::vector<double>& memory, int64_t doubles);

}  // namespace jaxglmm
