// Recognises what Git leaves in place of a large file that was not downloaded.
#pragma once

#include "io/file.h"

namespace trackckpt {

bool IsGitLfsPointer(const ReadableFile& file);

}  // namespace trackckpt
