// The record of the object graph, which a checkpoint holds under a key of its own:
//
//    TrackableObjectGraph   { 1 repeated TrackableObject nodes }
//    TrackableObject        { 1 repeated ObjectReference children
//                             2 repeated SerializedTensor attributes
//                             3 repeated SlotVariableReference slot_variables
//                             4 RegisteredSaver registered_saver { 1 name | 2 object_name }
//                             5 has_checkpoint_values { 1 bool value }
//                             50001 module_version { 1 int64 value } }
//    ObjectReference        { 1 int32 node_id | 2 local_name }
//    SerializedTensor       { 1 name | 2 full_name | 3 checkpoint_key }
//    SlotVariableReference  { 1 int32 original_variable_node_id | 2 slot_name
//                             3 int32 slot_variable_node_id }
//
// Fields are written in ascending order; numbers of 0 and empty strings are left out. `module_version` is a field of
// our own, which TensorFlow passes over.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace trackckpt {

namespace field {
constexpr uint32_t kNodes = 1;
constexpr uint32_t kChildren = 1, kAttributes = 2, kSlotVariables = 3, kRegisteredSaver = 4,
                   kHasCheckpointValues = 5, kModuleVersion = 50001;
constexpr uint32_t kNodeId = 1, kLocalName = 2;
constexpr uint32_t kAttributeName = 1, kFullName = 2, kCheckpointKey = 3;
constexpr uint32_t kOriginalVariable = 1, kSlotName = 2, kSlotVariable = 3;
constexpr uint32_t kSaverName = 1, kObjectName = 2;
constexpr uint32_t kWrapped = 1;
}  // namespace field

// One node at a time, its fields in ascending order.
class ObjectGraphEncoder {
 public:
  void AddChild(int32_t node_id, std::string_view local_name);
  void AddAttribute(std::string_view name, std::string_view full_name, std::string_view checkpoint_key);
  void AddSlotVariable(int32_t variable_id, std::string_view slot_name, int32_t slot_id);
  void SetHasCheckpointValues(bool has_checkpoint_values);
  void SetModuleVersion(int64_t version);
  void EndNode();

  std::string TakeRecord() { return std::move(record_); }

 private:
  std::string record_;
  std::string node_;
  std::string message_;
};

}  // namespace trackckpt
