"""A `Family` describes where one architecture keeps its parts.

The rest of the code reads it, and has no special code for any architecture.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from models.errors import UnsupportedModel
from models.families.stream import Stream
from models.structure import Axis


@dataclass(frozen=True)
class Family:
    """The paths of the parts of one architecture, and what can be pruned in it.

    A path is an attribute path in the model or, for a part of a block, in the block. A part that only some models have
    is still named. The path is "" if the architecture never has the part.

    There are two ways to make blocks smaller:

    - `sliced` False: blocks are plain (norm, attention, norm, MLP over one row of tokens). Each is replaced by a
      `PrunedBlock`.
    - `sliced` True: blocks keep the forward of the architecture. The weights of removed heads and neurons are cut out
      of their layers. A stage whose tokens are reduced is the exception: its blocks must become plain.
    """

    name: str
    title: str
    matches: Callable[[nn.Module], bool]
    refusals: Callable[[nn.Module], list[str]]
    """Returns the reasons why a model of this family cannot be handled. Empty: it can be handled."""

    # the model
    blocks: str
    """Path of the list of blocks. In a model with stages, a `*` stands for each child: `stages.*.blocks`."""
    image: Callable[[nn.Module], tuple[int, int] | None]
    """Returns height and width of the input, which need not be multiples of the patch size. None: any size."""
    prefix: Callable[[nn.Module], int]
    """Returns the number of class, distillation and register tokens. They come first in all stages."""

    # a block
    norm1: str
    attention_layers: Mapping[str, str]
    """Path of each linear layer -> the parts that it outputs: "qkv", "q", "kv", ... Each part is heads x dim."""
    heads: str
    """Path of the number of heads, a plain integer that the forward of the attention reads."""
    projection: str
    norm2: str
    fc1: str
    activation: str
    fc2: str
    q_norm: str = ""
    k_norm: str = ""
    scale: str = ""
    layer_scale1: str = ""
    layer_scale2: str = ""
    drop_paths: tuple[str, str] = ("drop_path1", "drop_path2")

    # parts of architectures that do not process one plain row of tokens
    key_reduction: tuple[str, ...] = ()
    """Modules between the tokens of a block and its keys, in execution order. Convolution and pooling process the token
    grid; other modules process the tokens."""
    head_tables: Mapping[str, int] = field(default_factory=dict)
    """Path of each learned table of the attention -> its dim that counts the heads."""
    position_index: str = ""
    """Path of the buffer that gives, for each pair of positions, the row of the only head table. It must be named if
    tokens are to be removed."""
    between: tuple[str, ...] = ()
    """Modules between fc1 and the activation, with one channel per neuron."""
    free_tokens: Callable[[int, int], bool] = lambda stage, stages: False
    """Called with the index of a stage and the number of stages. Returns whether tokens may be removed there, because
    no later layer needs the token grid. If windows divide the grid, tokens are kept even if this returns True."""
    last_norm: str = ""
    """Path of the norm over all tokens before pooling. It may be an identity."""
    pooling: Callable[[nn.Module], str] = lambda model: "token"
    """Returns "token" (the class token), "avg" (mean of tokens after the prefix) or "all" (mean with the prefix)."""
    grid_after: bool = False
    """True if the model arranges the tokens as a grid again after the last block, although no layer reads them."""

    # how blocks are made smaller
    streams: Callable[[nn.Module, "Family"], tuple[Stream, ...]] = lambda model, family: ()
    """Returns the residual streams of a model, one for each stage."""
    fixed: tuple[Axis, ...] = ()
    """Axes that cannot be cut by choosing members. If "embed" is not among them, the paths below name all parts with
    that width. A rotated basis can free the width of a stage all the same (`streams`)."""
    sliced: bool = False
    rebuilt_attention: str = ""
    """Path of an attention, in a sliced block, whose forward assumes heads x dim == width. It is replaced by a
    `ReducedAttention`."""

    # outside of the blocks, where the embedding width can be cut
    patch: str = ""
    """Path of the convolution that makes the patch tokens."""
    tables: tuple[str, ...] = ()
    """Paths of the learned parameters whose last dim is the embedding width. The class token is first."""
    stem_norms: tuple[str, ...] = ()
    tail_norms: tuple[str, ...] = ()
    """Paths of the norms after pooling."""
    classifiers: tuple[str, ...] = ()
    width_attributes: tuple[str, ...] = ()
    """Attributes of the model, plain integers, that state its embedding width."""
    grid: Callable[[nn.Module], tuple[int, int]] = lambda model: (0, 0)

    @property
    def qkv(self) -> str:
        """Path of the linear layer that makes q, k and v, for an architecture with one layer for all three."""
        (path,) = self.attention_layers
        return path

    def layer_of(self, part_name: str) -> str:
        """Return the path of the layer that makes "q", "k" or "v"."""
        return next(path for path, parts in self.attention_layers.items() if part_name in parts)


def part(module: nn.Module, path: str) -> nn.Module:
    """Return the submodule at an attribute path."""
    return module.get_submodule(path)


def linear_part(module: nn.Module, path: str) -> nn.Linear:
    """Return the linear layer at an attribute path. Raises: UnsupportedModel if the module is of another kind."""
    found = part(module, path)
    if not isinstance(found, nn.Linear):
        raise UnsupportedModel(
            f"The module {path} is a {type(found).__name__}. It must be a linear layer. Use a model with a linear"
            " layer there."
        )
    return found


def optional_part(module: nn.Module, path: str) -> nn.Module | None:
    """Return the submodule at an attribute path, or None if the model or its architecture has none."""
    if not path:
        return None
    for name in path.split("."):
        module = getattr(module, name, None)  # type: ignore[assignment]
    return module if is_present(module) else None


def replace_part(module: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)


def is_present(module: object) -> bool:
    """Return whether a part exists. timm puts an Identity in the place of a part that is switched off."""
    return module is not None and not isinstance(module, nn.Identity)


def block_lists(model: nn.Module, family: Family) -> list[str]:
    """Return the paths of the modules whose children are blocks, one for each stage."""
    before, star, after = family.blocks.partition("*")
    if not star:
        return [family.blocks]
    owner = before.rstrip(".")
    return [f"{owner}.{name}{after}" for name, _ in part(model, owner).named_children()]


def blocks_of(model: nn.Module, family: Family) -> list[nn.Module]:
    """Return the blocks of all stages, in order."""
    return [block for path in block_lists(model, family) for block in part(model, path).children()]


def classifiers(model: nn.Module, family: Family) -> list[nn.Linear]:
    """Return the classifiers that a model has. A model that gives features has none."""
    heads = (optional_part(model, path) for path in family.classifiers)
    return [head for head in heads if isinstance(head, nn.Linear)]
