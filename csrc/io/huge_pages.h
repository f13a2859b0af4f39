// Memory that is about to be used for the first time, in pages of 2 MiB instead of 4 KiB: the system then has to find
// and clear it in few steps instead of many.
#pragma once

#include <cstddef>

namespace trackckpt {

// Asks for huge pages in freshly allocated memory. It is a wish: where the system has none, nothing happens.
void AdviseHugePages(void* memory, size_t size);

}  // namespace trackckpt
