// One object graph of several, each of which has some of the objects of a program that runs in many processes.
//
// Objects are the same where the same names lead to them from the root, and slots where they belong to the same optimizer
// and variable under the same name. Nodes are numbered breadth first from the root, slots after all others; children,
// values and slots of a node come in the order of the graphs.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "graph/saved_graph.h"

namespace trackckpt {

// The record of the union; keys that are in `renamed` are written as what they are there. Throws kInvalidArgument where two
// objects of one graph would be one, or one value has two keys.
std::string UnionOfGraphs(const std::vector<std::unique_ptr<SavedGraph>>& graphs,
                          const std::unordered_map<std::string, std::string>& renamed);

}  // namespace trackckpt
