// How object paths and checkpoint keys are spelled; torch_trackckpt/graph/keys.py says the same to Python.
//
//    object path       local names from the root, each escaped, joined by "/"; "" for the root
//    checkpoint key    <object path>/.ATTRIBUTES/<escaped attribute name>
//    slot's path       <variable's path>/.OPTIMIZER_SLOT/<optimizer's path>/<escaped slot name>
#pragma once

#include <string>
#include <string_view>

namespace trackckpt {

constexpr std::string_view kVariableValue = "VARIABLE_VALUE";
constexpr std::string_view kPythonState = "py_state";

// Doubles "." and then writes "/" as ".S".
void AppendEscaped(std::string* dst, std::string_view name);

void AppendAttributeKey(std::string* dst, std::string_view path, std::string_view attribute);

void AppendSlotPath(std::string* dst, std::string_view variable, std::string_view optimizer,
                    std::string_view slot_name);

}  // namespace trackckpt
