// Files that the targets hand to the core: in a folder of this process, which it removes when it ends. Put TMPDIR on
// a file system in memory.
#pragma once

#include <string>
#include <string_view>

namespace trackckpt::fuzz {

// The path of a file of this name. Nothing is made there.
std::string ScratchPath(const std::string& name);

// As above, and removes what is there.
std::string FreshPath(const std::string& name);

// Makes a file, or replaces it. Returns its path.
std::string WriteScratch(const std::string& name, std::string_view content);

}  // namespace trackckpt::fuzz
