// Git LFS keeps large files outside of the repository; a clone made without it has small text files in their
// places.
//
//    pointer: version https://git-lfs.github.com/spec/v1 | newline | further lines
#pragma once

#include "io/file.h"

namespace trackckpt {

bool IsGitLfsPointer(const ReadableFile& file);

// What to say after the path of a pointer.
constexpr char kGitLfsAdvice[] = "the file is a Git LFS pointer, not the data itself: run `git lfs pull`";

}  // namespace trackckpt
