#include "graph/messages.h"

#include "encoding/wire.h"

namespace trackckpt {

namespace {

void PutText(std::string* dst, uint32_t number, std::string_view text) {
  if (!text.empty()) PutBytesField(dst, number, text);
}

// A negative int32 is written as an int64 is.
uint64_t Wide(int64_t number) { return static_cast<uint64_t>(number); }

}  // namespace

void ObjectGraphEncoder::AddChild(int32_t node_id, std::string_view local_name) {
  message_.clear();
  PutVarintField(&message_, field::kNodeId, Wide(node_id));
  PutText(&message_, field::kLocalName, local_name);
  PutBytesField(&node_, field::kChildren, message_);
}

void ObjectGraphEncoder::AddAttribute(std::string_view name, std::string_view full_name,
                                      std::string_view checkpoint_key) {
  message_.clear();
  PutText(&message_, field::kAttributeName, name);
  PutText(&message_, field::kFullName, full_name);
  PutText(&message_, field::kCheckpointKey, checkpoint_key);
  PutBytesField(&node_, field::kAttributes, message_);
}

void ObjectGraphEncoder::AddSlotVariable(int32_t variable_id, std::string_view slot_name, int32_t slot_id) {
  message_.clear();
  PutVarintField(&message_, field::kOriginalVariable, Wide(variable_id));
  PutText(&message_, field::kSlotName, slot_name);
  PutVarintField(&message_, field::kSlotVariable, Wide(slot_id));
  PutBytesField(&node_, field::kSlotVariables, message_);
}

void ObjectGraphEncoder::SetHasCheckpointValues(bool has_checkpoint_values) {
  message_.clear();
  PutVarintField(&message_, field::kWrapped, has_checkpoint_values ? 1 : 0);
  PutBytesField(&node_, field::kHasCheckpointValues, message_);
}

void ObjectGraphEncoder::SetModuleVersion(int64_t version) {
  message_.clear();
  PutVarintField(&message_, field::kWrapped, Wide(version));
  PutBytesField(&node_, field::kModuleVersion, message_);
}

void ObjectGraphEncoder::EndNode() {
  PutBytesField(&record_, field::kNodes, node_);
  node_.clear();
}

}  // namespace trackckpt
