"""Give the inputs and outputs of an ONNX model other names.

torch's exporter refuses some names that files have, such as numbers. So vitfit exports with plain names, and writes the
names of the user's file afterwards.
"""

from collections.abc import Mapping

from onnx import ModelProto


def rename_values(model: ModelProto, names: Mapping[str, str]) -> None:
    """Rename values of a graph, in place. names: from the present to the new name.

    If another value already has a new name, that value gets a name of its own.
    """
    graph = model.graph
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    used |= {tensor.name for tensor in graph.initializer} | {entry.name for entry in graph.input}
    changed = {before: after for before, after in names.items() if before != after}
    taken = (used & set(changed.values())) - set(changed)
    changed |= {name: _free(name, used | set(changed.values())) for name in taken}
    for node in graph.node:
        node.input[:] = [changed.get(name, name) for name in node.input]
        node.output[:] = [changed.get(name, name) for name in node.output]
    for entry in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        entry.name = changed.get(entry.name, entry.name)


def _free(name: str, used: set[str]) -> str:
    while name in used:
        name += "_"
    return name
