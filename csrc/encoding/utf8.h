// Whether bytes are text.
#pragma once

#include <string_view>

namespace trackckpt {

// UTF-8 as RFC 3629 has it: no surrogates, nothing that could be shorter, nothing above U+10FFFF.
bool IsUtf8(std::string_view bytes);

}  // namespace trackckpt
