"""Bring an ONNX file to the form that the reader translates.

Functions are inlined, old files are converted to a newer opset, the sizes of the input are fixed, and ONNX Runtime
folds everything constant, such as computed shapes. onnx and ONNX Runtime do the work, so that vitfit has fewer rules of
its own.
"""

import math
import tempfile
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.defs
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
import onnxruntime
from onnx import ModelProto, TensorProto, ValueInfoProto

from models.errors import DamagedFile, UnsafeFile, UnsupportedModel, VitfitError
from models.export.onnx_store import is_large
from models.graph.onnx.finite import check_finite
from models.graph.tracing.capture import BATCH

NEWEST = 23
"""The newest opset whose operators can be translated."""
CONVERTED = 17
"""Files of an opset below `OLDEST` are converted to this opset."""
OLDEST = 13
STANDARD = ("", "ai.onnx")
NOT_RUN = ("MatMulAddFusion",)
"""Optimisations of ONNX Runtime that would only hide linear layers: they put a Reshape before each product."""
SMALL = 1024
"""Number of values up to which a constant may describe a shape."""
Image = tuple[int, int, int]


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to be translated.

    model: with fixed sizes and folded constants. image: (channels, height, width). batch: the number of images that was
    written into the input; BATCH if the file leaves it free. is_free: whether the file leaves it free.
    """

    model: ModelProto
    image: Image
    batch: int
    is_free: bool


def load(path: Path) -> ModelProto:
    """Load a file with its external data.

    Raises: DamagedFile; UnsafeFile when the external data are not beside the file.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location" and not _inside(path.parent, entry.value):
                    raise UnsafeFile(
                        f"The tensor {tensor.name!r} reads the file {entry.value!r}, which is not in the upload. Put"
                        " this file beside the model, and upload both in one zip."
                    )
        onnx.load_external_data_for_model(model, str(path.parent))
        check_finite(model)
    except (VitfitError, MemoryError):
        raise
    except Exception as error:  # protobuf raises several exception types of its own
        raise DamagedFile(
            f"vitfit cannot read the ONNX file ({_without(str(path.parent), error)}). Export the model again."
        ) from error
    if not model.graph.node:
        raise DamagedFile("The graph of the ONNX file has no nodes. Export the model again.")
    return model


def _inside(folder: Path, location: str) -> bool:
    target = (folder / location).resolve()
    return target.is_relative_to(folder.resolve()) and target.is_file()


def prepare(model: ModelProto, known: Collection[str], image: Image | None = None) -> Prepared:
    """Prepare a model for translation.

    known: the operators that can be translated. Operators that onnx defines as functions of others are replaced by
    their definitions. image: the size of the images, for a file that leaves height and width free.

    Raises: UnsupportedModel with all reasons why the file cannot be translated.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _check(model)
    model = _converted(model)
    size, batch, is_free = _fix_sizes(model, image)
    model = _folded(model)  # first, because some definitions have loops, which folding makes unnecessary
    while (inlined := _inlined(model, known)) is not model:
        model = _folded(inlined)
    _check_flow(model)
    return Prepared(model, size, batch, is_free)


def inputs_of(model: ModelProto) -> list[Any]:
    """Return the inputs of a model that are not weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [entry for entry in model.graph.input if entry.name not in weights]


def opset_of(model: ModelProto) -> int:
    """Return the opset of the standard operators."""
    return max((entry.version for entry in model.opset_import if entry.domain in STANDARD), default=0)


def _check(model: ModelProto) -> None:
    """Check a file before it is translated. Raises: UnsupportedModel with all reasons why it cannot be pruned."""
    reasons = []
    newest = opset_of(model)
    if newest > NEWEST:
        reasons.append(f"it has opset {newest} (allowed: up to {NEWEST})")
    others = Counter(f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in STANDARD)
    reasons += [
        f"operator {name} ({number} nodes) is not an operator of the ONNX standard" for name, number in others.items()
    ]
    kinds = {node.op_type for node in model.graph.node}
    reasons += [f"it has control flow ({kind})" for kind in sorted(kinds & {"Loop", "Scan"})]
    if any("Quantize" in kind or "Integer" in kind or kind.startswith("QLinear") for kind in kinds):
        reasons.append("it is already quantised (upload the fp32 model and choose int8 in the job)")
    if len(inputs_of(model)) != 1:
        reasons.append(f"it has {len(inputs_of(model))} inputs (allowed: one, the images)")
    half = [t.name for t in model.graph.initializer if t.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16)]
    if half:
        reasons.append(f"it has 16-bit weights in {half[0]} and in {len(half) - 1} more tensors (export it in fp32)")
    if reasons:
        raise UnsupportedModel(
            f"vitfit cannot prune this ONNX file. Reasons: {'; '.join(reasons)}. Export the model without these parts.",
            reasons=reasons,
        )


def _check_flow(model: ModelProto) -> None:
    """Check a folded file. Raises: UnsupportedModel if a branch is left: its condition depends on the images."""
    if any(node.op_type == "If" for node in model.graph.node):
        raise UnsupportedModel(
            "vitfit cannot prune this ONNX file, because it has control flow (If) that depends on the images. Export"
            " the model without it.",
            reasons=["it has control flow (If)"],
        )


def _converted(model: ModelProto) -> ModelProto:
    """Return a file of an old opset in a newer one, because the attributes of old operators have other meanings."""
    if opset_of(model) >= OLDEST:
        return model
    try:
        return onnx.version_converter.convert_version(model, CONVERTED)
    except Exception as error:  # the converter raises exception types of its own
        raise UnsupportedModel(
            f"The ONNX file has opset {opset_of(model)}, and onnx cannot convert it to opset {CONVERTED}"
            f" ({str(error)[:200]}). Export the model with opset {OLDEST} or newer.",
            reasons=[f"opset {opset_of(model)}"],
        ) from error


def _fix_sizes(model: ModelProto, image: Image | None) -> tuple[Image, int, bool]:
    """Write the sizes of the input into a model, in place.

    Return the image (channels, height, width), the number of images, and whether the file leaves this number free.
    """
    (entry,) = inputs_of(model)
    dims = entry.type.tensor_type.shape.dim
    sizes = [dim.dim_value for dim in dims]
    if len(sizes) == 4 and image is not None:
        sizes[1:] = [given or wanted for given, wanted in zip(sizes[1:], image, strict=True)]
    if len(sizes) != 4 or entry.type.tensor_type.elem_type != TensorProto.FLOAT or 0 in sizes[1:]:
        shown = [dim.dim_value or dim.dim_param or "?" for dim in dims]
        raise UnsupportedModel(
            f"The input {entry.name!r} has the dims {shown}. It must take fp32 images of one size, with the dims"
            " (images, channels, height, width). If height and width are free, give the size: --preprocessing"
            ' \'{"size": [3, 224, 224], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}\', or put the model\'s'
            " config.json or preprocessor_config.json beside the file.",
            reasons=["an input that does not take fp32 images of one size"],
        )
    batch = sizes[0] or BATCH
    for dim, size in zip(dims, (batch, *sizes[1:]), strict=True):
        dim.Clear()
        dim.dim_value = size
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    return (sizes[1], sizes[2], sizes[3]), batch, not sizes[0]


def _inlined(model: ModelProto, known: Collection[str]) -> ModelProto:
    """Replace operators that the reader does not know by their definitions, if onnx has one.

    Return the same object if there is nothing to replace.
    """
    unknown = {node.op_type for node in model.graph.node} - set(known)
    defined = [("", name) for name in sorted(unknown) if has_definition(name, opset_of(model))]
    if not defined:
        return model
    model.graph.value_info.extend([*value_infos(model), *_types_of_weights(model)])  # some definitions depend on types
    try:
        inlined = onnx.inliner.inline_selected_functions(model, defined, inline_schema_functions=True)
    except RuntimeError as error:
        names = ", ".join(name for _, name in defined)
        raise UnsupportedModel(
            f"onnx cannot replace the operators {names} by their definitions ({str(error)[:200]}). Export the model"
            " with an older opset, which writes them as simpler operators.",
            reasons=[f"operators without a definition that can be used: {names}"],
        ) from error
    left = {node.op_type for node in inlined.graph.node}
    return model if all(name in left for _, name in defined) else inlined  # onnx leaves what it cannot replace


def _types_of_weights(model: ModelProto) -> list[ValueInfoProto]:
    return [onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer]


def has_definition(operator: str, opset: int) -> bool:
    """Return whether onnx defines an operator by simpler ones."""
    try:
        schema: Any = onnx.defs.get_schema(operator, opset)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def value_infos(model: ModelProto) -> list[ValueInfoProto]:
    """Return types and shapes of all values, as far as onnx can infer them.

    onnx cannot infer them for models above 2 GiB. So it gets the model without its large weights.
    """
    light = ModelProto()
    light.CopyFrom(onnx.helper.make_model(onnx.GraphProto(), opset_imports=list(model.opset_import)))
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(inputs_of(model))
    light.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return list(onnx.shape_inference.infer_shapes(light).graph.value_info)


def _without(folder: str, error: Exception) -> str:
    """Return the text of an error without the path of a folder."""
    return str(error).replace(f"{folder}/", "").replace(folder, "")[:300]


def _folded(model: ModelProto) -> ModelProto:
    """Return the model after ONNX Runtime has folded its constants.

    Raises: UnsupportedModel when ONNX Runtime rejects the file.
    """
    del model.graph.value_info[:]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "folded.onnx"
        onnx.save(model, source, save_as_external_data=is_large(model))
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        if is_large(model):
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "folded.data")
        try:
            onnxruntime.InferenceSession(
                str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(NOT_RUN)
            )
        except Exception as error:
            raise UnsupportedModel(
                f"ONNX Runtime {onnxruntime.__version__} cannot load this ONNX file ({_without(folder, error)}). The"
                f" file has IR version {model.ir_version} and opset {opset_of(model)}. Export the model again. If the"
                " runtime does not know this version, use an older opset.",
                reasons=["ONNX Runtime cannot load it"],
            ) from error
        return onnx.load(target)
