"""Finds the parts of a model that write to a residual stream and read it: in its blocks, and around a plain network."""

import dataclasses
from collections.abc import Sequence

from torch import nn

from models.families.family import Family, is_present, optional_part, part
from models.families.stream import Reader, Stream
from models.families.stream_layers import OffsetConv, StreamWriter


def free_streams(model: nn.Module, family: Family) -> list[Stream]:
    """Return the streams whose basis is free."""
    return [stream for stream in family.streams(model, family) if not stream.fixed]


def plain_streams(model: nn.Module, family: Family) -> tuple[Stream]:
    """Return the only stream of a plain network."""
    ends = plain_ends(model, family)
    read = len([reader for reader in ends.readers if reader.norm])
    fixed = "" if read == 1 else "the model has no norm, or two norms, after its blocks"
    return (with_blocks(model, family, dataclasses.replace(ends, fixed=fixed)),)


def plain_ends(model: nn.Module, family: Family) -> Stream:
    """Return the stream of a plain network without its blocks, which may be pruned."""
    stem = [path for path in family.stem_norms if optional_part(model, path) is not None]
    written = [path for path in stem if isinstance(part(model, path), StreamWriter)]
    tables = tuple(path for path in family.tables if getattr(model, path, None) is not None)
    norms = [path for path in (family.last_norm, *family.tail_norms) if optional_part(model, path) is not None]
    last = norms[-1] if norms else ""
    return Stream(
        family.blocks,
        writers=tuple(f"{path}.linear" for path in written) or (family.patch,),
        tables=() if written else tables,
        readers=(*(Reader(norm, ()) for norm in norms[:-1]), Reader(last, head_paths(model, family))),
        starts=tuple(stem),
        start_norms=() if written else tuple(stem),
    )


def with_blocks(model: nn.Module, family: Family, ends: Stream) -> Stream:
    """Return a stream with the parts of its blocks. ends: the stream outside of them."""
    writers: list[str] = []
    tables: list[str] = []
    readers: list[Reader] = []
    for name, block in part(model, ends.stage).named_children():
        here = f"{ends.stage}.{name}."
        writers += [here + family.projection, here + family.fc2]
        scales = (family.layer_scale1, family.layer_scale2)
        tables += [f"{here}{path}.gamma" for path in scales if hasattr(optional_part(block, path), "gamma")]
        readers.append(Reader(here + family.norm1, tuple(here + path for path in _attention_readers(block, family))))
        readers.append(Reader(here + family.norm2, (here + family.fc1,)))
    return dataclasses.replace(
        ends,
        writers=(*ends.writers, *writers),
        tables=(*ends.tables, *tables),
        readers=(*readers, *ends.readers),
    )


def _attention_readers(block: nn.Module, family: Family) -> Sequence[str]:
    """Return the layers of an attention that read the stream. Behind a key reduction, its first layer reads it."""
    reducing = [path for path in family.key_reduction if _has_weights(optional_part(block, path))]
    if not reducing:
        return list(family.attention_layers)
    return [*(path for path, made in family.attention_layers.items() if "q" in made), reducing[0]]


def _has_weights(module: nn.Module | None) -> bool:
    return module is not None and is_present(module) and any(True for _ in module.parameters())


def conv_path(model: nn.Module, path: str) -> str:
    """Return the path of a convolution that may be inside of an `OffsetConv`."""
    return f"{path}.conv" if isinstance(part(model, path), OffsetConv) else path


def head_paths(model: nn.Module, family: Family) -> tuple[str, ...]:
    """Return the paths of the classifiers that a model has."""
    return tuple(path for path in family.classifiers if isinstance(optional_part(model, path), nn.Linear))
