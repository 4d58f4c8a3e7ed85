"""Describe a model with stages: the family names the parts of a block, and a trace of one image gives the rest.

The trace gives the sizes (tokens of each stage, windows, keys after a reduction). It also gives everything outside of
the blocks (patch embedding, merging, pooling, norms, classifier), so a family does not have to list these. Finally, the
parameter count of the structure is compared with that of the model: both must be equal.
"""

import dataclasses
from collections.abc import Sequence

from torch import nn

from models.errors import UnsupportedModel
from models.families.family import Family, block_lists, is_present, optional_part, part
from models.families.module_trace import Call, op_of, table_of, trace
from models.structure import Attention, Block, Mlp, Op, Stage, Structure


def describe_stages(model: nn.Module, family: Family, name: str, size: tuple[int, int] | None) -> Structure:
    """Return the structure of a model with stages.

    size: height and width of the images, for a model that accepts any size.

    Raises: UnsupportedModel if the model does not run on such an image, has a stage without blocks or has parameters
        that the structure does not count.
    """
    image = (int(model.in_chans), *_image(model, family, size))  # type: ignore[arg-type]
    lists = block_lists(model, family)
    names = [[f"{path}.{child}" for child, _ in part(model, path).named_children()] for path in lists]
    if not all(names):
        raise UnsupportedModel(
            f"The model {name} has a stage without blocks. Each stage must have at least one block. Use a model with"
            " blocks in each stage.",
            reasons=["a stage without blocks"],
        )
    calls = trace(model, image, {block for stage in names for block in stage})
    sections = _sections(calls, names)
    stages = []
    for i, (path, blocks) in enumerate(zip(lists, names, strict=True)):
        described = tuple(_block(model, family, block, calls) for block in blocks)
        entry = () if i == 0 else _ops(sections[i])
        free = family.free_tokens(i, len(lists)) and all(_sees_all(block) for block in described)
        stages.append(Stage(path, described, free, entry))
    tables = tuple(table_of(path, parameter) for path, parameter in _loose_parameters(model, names))
    prefix = family.prefix(model)
    tail = _ops(sections[-1])
    if stages[-1].free_tokens:
        last = stages[-1].blocks[-1].tokens
        tail = tuple(dataclasses.replace(op, rows_are_tokens=op.rows == last) for op in tail)
    structure = Structure(
        name,
        image,
        classes_of(model),
        prefix,
        prefix > 0,
        tables + _ops(sections[0]),
        tuple(stages),
        tail,
        family.fixed,
    )
    _check_accounted(model, structure)
    return structure


def head_count(block: nn.Module, family: Family) -> int:
    owner, _, attribute = family.heads.rpartition(".")
    return int(getattr(part(block, owner), attribute))


def _image(model: nn.Module, family: Family, size: tuple[int, int] | None) -> tuple[int, int]:
    found = family.image(model) or size
    if found is None:
        high, wide = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[1:]
        return int(high), int(wide)
    return found


def classes_of(model: nn.Module) -> int:
    """Return the number of classes of a timm model, or 0 if it has no classifier."""
    classifier = model.get_classifier()  # type: ignore[operator]
    first = classifier[0] if isinstance(classifier, tuple) else classifier
    return int(model.num_classes) if is_present(first) else 0  # type: ignore[arg-type]


def _sections(calls: Sequence[Call], names: list[list[str]]) -> list[list[Call]]:
    """Group the calls outside of the blocks: before the first stage, between two stages, and after the last stage."""
    stage_of = {block: i for i, blocks in enumerate(names) for block in blocks}
    sections: list[list[Call]] = [[] for _ in range(len(names) + 1)]
    place = 0
    for call in calls:
        owner = next((block for block in stage_of if call.path == block or call.path.startswith(f"{block}.")), None)
        if owner is None:
            sections[place].append(call)
        else:
            place = stage_of[owner] + 1
    return sections


def _ops(calls: Sequence[Call]) -> tuple[Op, ...]:
    found = (op_of(call, call.path) for call in calls)
    return tuple(op for op in found if op is not None)


def _loose_parameters(model: nn.Module, names: list[list[str]]) -> list[tuple[str, nn.Parameter]]:
    """Return parameters outside of the blocks that belong directly to a module with children.

    Only leaf modules become operations, so no operation counts these parameters.
    """
    blocks = tuple(f"{block}." for stage in names for block in stage)
    return [
        (f"{path}.{name}".lstrip("."), parameter)
        for path, module in model.named_modules()
        if any(True for _ in module.children()) and not f"{path}.".startswith(blocks)
        for name, parameter in module.named_parameters(recurse=False)
    ]


def _block(model: nn.Module, family: Family, name: str, calls: Sequence[Call]) -> Block:
    block = part(model, name)
    inside = {call.path[len(name) + 1 :]: call for call in calls if call.path.startswith(f"{name}.")}
    whole = next(call for call in calls if call.path == name)
    width = inside[family.fc1].inputs[-1]
    tokens = _rows(whole.inputs, width)
    scaled = optional_part(block, family.layer_scale1) is not None
    return Block(
        name,
        width,
        tokens,
        _attention(block, family, name, inside, width=width, tokens=tokens),
        _mlp(block, family, name, inside),
        layer_scale=scaled,
    )


def _attention(
    block: nn.Module, family: Family, name: str, inside: dict[str, Call], *, width: int, tokens: int
) -> Attention:
    heads, projection = head_count(block, family), part(block, family.projection)
    assert isinstance(projection, nn.Linear)
    windows, window = _windows(inside[family.layer_of("q")].inputs)
    keys = _windows(inside[family.layer_of("k")].inputs)[1]
    reduction = tuple(inside[path] for path in family.key_reduction if path in inside)
    tables = (_parameter(block, path).shape for path in family.head_tables)
    return Attention(
        heads,
        _dim(block, family, "q", heads),
        _dim(block, family, "v", heads),
        width,
        projection.in_features,
        _has_bias(block, family.layer_of("v")),
        projection.bias is not None,
        "shared" if optional_part(block, family.q_norm) is not None else "none",
        windows,
        keys if keys != window else None,
        tuple(family.attention_layers.values()),
        window if windows * window != tokens else None,
        sum(shape.numel() // heads for shape in tables),
        tuple(dataclasses.replace(op, name=f"{name}.{op.name}") for op in _ops(reduction)),
    )


def _mlp(block: nn.Module, family: Family, name: str, inside: dict[str, Call]) -> Mlp:
    fc1 = part(block, family.fc1)
    assert isinstance(fc1, nn.Linear)
    between = []
    for op in _ops([inside[path] for path in family.between if path in inside]):
        one = {"count": 1} if op.kind == "conv" else {"cols": 1, "rows": op.values // fc1.out_features}
        between.append(dataclasses.replace(op, name=f"{name}.{op.name}", **one))  # type: ignore[arg-type]
    return Mlp(fc1.in_features, fc1.out_features, fc1.bias is not None, between=tuple(between))


def _dim(block: nn.Module, family: Family, wanted: str, heads: int) -> int:
    path = family.layer_of(wanted)
    layer = part(block, path)
    assert isinstance(layer, nn.Linear)
    return layer.out_features // len(family.attention_layers[path]) // heads


def _sees_all(block: Block) -> bool:
    """Return whether every token attends to every other token: one window without padding, and all keys."""
    shape = block.attention
    return shape is None or (shape.windows == 1 and shape.window is None and shape.keys is None)


def _has_bias(block: nn.Module, path: str) -> bool:
    return getattr(part(block, path), "bias", None) is not None


def _parameter(block: nn.Module, path: str) -> nn.Parameter:
    return block.get_parameter(path)


def _rows(sizes: tuple[int, ...], width: int) -> int:
    rows = 1
    for size in sizes:
        rows *= size
    return rows // width


def _windows(sizes: tuple[int, ...]) -> tuple[int, int]:
    """Return the number of windows and the tokens per window, from a layer's input size (windows, tokens, width)."""
    windows, window, _ = sizes
    return windows, window


def _check_accounted(model: nn.Module, structure: Structure) -> None:
    """Check the parameter count.

    Raises: UnsupportedModel if the model has weights that the structure does not count.
    """
    own = sum(parameter.numel() for parameter in model.parameters())
    if own != structure.params:
        raise UnsupportedModel(
            f"The model {structure.name} has {own} parameters, but its family explains {structure.params} parameters."
            " Both numbers must be equal. Use a model without added or missing layers.",
            reasons=["parameters that its family does not explain"],
        )
