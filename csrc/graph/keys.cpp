#include "graph/keys.h"

namespace trackckpt {

void AppendEscaped(std::string* dst, std::string_view name) {
  if (name.find_first_of("./") == std::string_view::npos) {
    dst->append(name);
    return;
  }
  for (char c : name) {
    if (c == '.') {
      dst->append("..");
    } else if (c == '/') {
      dst->append(".S");
    } else {
      dst->push_back(c);
    }
  }
}

void AppendAttributeKey(std::string* dst, std::string_view path, std::string_view attribute) {
  dst->append(path).append("/.ATTRIBUTES/");
  AppendEscaped(dst, attribute);
}

void AppendSlotPath(std::string* dst, std::string_view variable, std::string_view optimizer,
                    std::string_view slot_name) {
  dst->append(variable).append("/.OPTIMIZER_SLOT/").append(optimizer).append("/");
  AppendEscaped(dst, slot_name);
}

}  // namespace trackckpt
