"""The residual streams of families with stages: where the width of a stage is free, and where it is fixed."""

from timm.models.swin_transformer import SwinTransformerBlock
from torch import nn

from models.families.family import Family, block_lists, optional_part, part
from models.families.stream import Reader, Stream
from models.families.stream_layers import MapWriter, StreamWriter
from models.families.stream_parts import conv_path, head_paths, with_blocks

POOLED = "the pooling behind the stage reads each embedding dim by itself"
MERGED = "the patch merging behind the stage normalises four tokens together"
EMBEDDED = "the stage begins with the patch embedding, and no other stage is in front of it"
PADDED = "the windows of the stage are padded after the norm"


def pvt_streams(model: nn.Module, family: Family) -> tuple[Stream, ...]:
    """Every stage begins behind the norm of its patch embedding. The next patch embedding reads its last norm."""
    stages = block_lists(model, family)
    found = []
    for number, stage in enumerate(stages):
        own, following = stage.rpartition(".")[0], number + 1
        start = "patch_embed.norm" if number == 0 else f"{own}.downsample.norm"
        readers = head_paths(model, family)
        if following < len(stages):
            readers = (conv_path(model, f"{stages[following].rpartition('.')[0]}.downsample.proj"),)
        ends = Stream(
            stage,
            writers=_writers(model, start),
            readers=(Reader(f"{own}.norm", readers),),
            starts=(start,),
        )
        found.append(_checked(model, with_blocks(model, family, ends)))
    return tuple(found)


def pit_streams(model: nn.Module, family: Family) -> tuple[Stream, ...]:
    """Only the last stage has a norm behind it. In front of it, a grouped convolution pools the patches, and a linear
    layer makes the class tokens."""
    *earlier, last = block_lists(model, family)
    if not earlier:
        return (Stream(last, fixed=EMBEDDED),)
    pool = f"{last.rpartition('.')[0]}.pool"
    ends = Stream(
        last,
        writers=(*_writers(model, f"{pool}.conv"), f"{pool}.fc"),
        readers=(Reader("norm", head_paths(model, family)),),
        starts=(f"{pool}.conv",),
    )
    stream = _checked(model, with_blocks(model, family, ends))
    return (*(Stream(stage, fixed=POOLED) for stage in earlier), stream)


def swin_streams(model: nn.Module, family: Family) -> tuple[Stream, ...]:
    """The linear layer of the patch merging writes the stream of the last stage, and only its own norms read it."""
    *earlier, last = block_lists(model, family)
    if not earlier:
        return (Stream(last, fixed=EMBEDDED),)
    blocks = [block for block in part(model, last).children() if isinstance(block, SwinTransformerBlock)]
    if any(_is_padded(block) for block in blocks):
        stream = Stream(last, fixed=PADDED)
    else:
        ends = Stream(
            last,
            writers=(f"{last.rpartition('.')[0]}.downsample.reduction",),
            readers=(Reader(family.last_norm, head_paths(model, family)),),
        )
        stream = _checked(model, with_blocks(model, family, ends))
    return (*(Stream(stage, fixed=MERGED) for stage in earlier), stream)


def _writers(model: nn.Module, start: str) -> tuple[str, ...]:
    """Return the linear layer behind a start. A network that is not rotated has none."""
    return (f"{start}.linear",) if isinstance(part(model, start), StreamWriter | MapWriter) else ()


def _is_padded(block: SwinTransformerBlock) -> bool:
    return any(side % window for side, window in zip(block.input_resolution, block.window_size, strict=True))  # type: ignore[arg-type]


def _checked(model: nn.Module, stream: Stream) -> Stream:
    """Return the stream, or a fixed one if one of its norms has no weights or is of another kind."""
    for path in stream.norms:
        norm = optional_part(model, path)
        if not isinstance(norm, nn.LayerNorm) or norm.weight is None:
            return Stream(stream.stage, fixed=f"{path} is no layer norm with weights")
    return stream
