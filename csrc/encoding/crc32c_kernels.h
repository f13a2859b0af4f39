// What crc32c.cpp chooses from. Each function adds the kernels of one kind of processor that run on this one,
// fastest first, and adds nothing where there are none.
#pragma once

#include <vector>

#include "encoding/crc32c.h"

namespace trackckpt {

void AddX86Crc32cKernels(std::vector<Crc32cImplementation>* kernels);
void AddArmCrc32cKernels(std::vector<Crc32cImplementation>* kernels);
void AddPortableCrc32cKernel(std::vector<Crc32cImplementation>* kernels);

}  // namespace trackckpt
