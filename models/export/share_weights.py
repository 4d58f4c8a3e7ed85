"""Store weights once that several nodes of an ONNX file read.

torch's exporter turns each use of a weight into a tensor of its own when it lays the weight out for the product. So a
file of a network that uses a layer three times would hold its weights three times.
"""

import hashlib

from onnx import ModelProto, TensorProto


def share_equal_weights(model: ModelProto) -> None:
    """Let nodes read the same tensor where tensors have the same type, sizes and values, in place."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}  # the name of a tensor, by type, sizes and digest
    instead: dict[str, str] = {}
    kept: list[TensorProto] = []
    outputs = {output.name for output in model.graph.output}
    for tensor in model.graph.initializer:
        content = tensor.raw_data
        key = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(content).digest())
        if content and tensor.name not in outputs and first.setdefault(key, tensor.name) != tensor.name:
            instead[tensor.name] = first[key]
        else:
            kept.append(tensor)
    if not instead:
        return
    for node in model.graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
