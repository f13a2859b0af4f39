#include "io/huge_pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace trackckpt {

void AdviseHugePages(void* memory, size_t size) {
#ifdef MADV_HUGEPAGE
  // Whole pages that the memory touches: what lies beside it in them keeps its contents. Allocations that lie side by
  // side then stay one mapping, of which a process can have 65,530.
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + size + page - 1) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)size;
#endif
}

}  // namespace trackckpt
