"""A `Family` says where one architecture keeps its parts. The engine reads it; there is no other code per architecture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from models.errors import UnsupportedModel
from models.structure import Axis


@dataclass(frozen=True)
class Family:
    """Names are attribute paths: of the model, or (those of a block) of a block. A part that a model may lack is named all
    the same; "" where the architecture never has it.

    There are two ways to make blocks smaller. `sliced` False: blocks are plain (norm, attention, norm, MLP over one row of
    tokens) and become `PrunedBlock`s. `sliced` True: they keep the architecture's own forward, and what belongs to heads
    and neurons is cut where it stands, except in a stage whose tokens go, where they must become plain.
    """

    name: str
    title: str
    matches: Callable[[nn.Module], bool]
    refusals: Callable[[nn.Module], list[str]]
    """Why this model of the family cannot be handled; empty when it can."""

    # the model
    blocks: str
    """The list of blocks. With stages, a `*` stands for each child: `stages.*.blocks`."""
    image: Callable[[nn.Module], tuple[int, int] | None]
    """Height and width of the input; not always a multiple of the patch. None: any."""
    prefix: Callable[[nn.Module], int]
    """Class, distillation and register tokens, always first, in all stages."""

    # a block
    norm1: str
    attention_layers: Mapping[str, str]
    """Path of each linear layer -> what its outputs are: "qkv", "q", "kv", ...; each part is heads x dim."""
    heads: str
    """A plain integer that the attention's forward reads."""
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

    # what one row of plain tokens does not have
    key_reduction: tuple[str, ...] = ()
    """Modules between the block's tokens and its keys, in their order: convolution and pooling see the grid, others tokens."""
    head_tables: Mapping[str, int] = field(default_factory=dict)
    """Learned tables of the attention -> the dim that counts heads."""
    position_index: str = ""
    """The buffer that says, for each pair of places, the row of the one head table; it must be named for tokens to go."""
    between: tuple[str, ...] = ()
    """Modules between fc1 and the activation, one channel per neuron."""
    free_tokens: Callable[[int, int], bool] = lambda stage, stages: False
    """Whether tokens may go in a stage (its number, of how many): no later layer needs its grid. Where windows divide the
    grid they may not, whatever this says."""
    last_norm: str = ""
    """The norm over all tokens before pooling (may be an identity)."""
    pooling: Callable[[nn.Module], str] = lambda model: "token"
    """"token", "avg" (tokens after the prefix) or "all" (prefix too)."""
    grid_after: bool = False
    """The model lays the tokens out as a grid again after the last block, though nothing reads them."""

    # how blocks are made smaller
    fixed: tuple[Axis, ...] = ()
    """What cannot be cut. Unless "embed" is in it, the parts below say where the embedding width is."""
    sliced: bool = False
    rebuilt_attention: str = ""
    """Of a sliced block: an attention whose forward takes the width of its heads for that of its input, so that it is rebuilt
    as a `ReducedAttention`."""

    # outside of the blocks, where the embedding width can be cut
    patch: str = ""
    """The convolution that makes patch tokens."""
    tables: tuple[str, ...] = ()
    """Learned parameters whose last dim is the embedding width; the class token first."""
    stem_norms: tuple[str, ...] = ()
    tail_norms: tuple[str, ...] = ()
    """Norms after pooling."""
    classifiers: tuple[str, ...] = ()
    width_attributes: tuple[str, ...] = ()
    """Plain integers of the model that state its width."""
    grid: Callable[[nn.Module], tuple[int, int]] = lambda model: (0, 0)

    @property
    def qkv(self) -> str:
        """The one linear layer that makes q, k and v, where there is such a layer."""
        (path,) = self.attention_layers
        return path

    def layer_of(self, part_name: str) -> str:
        """Path of the layer that makes "q", "k" or "v"."""
        return next(path for path, parts in self.attention_layers.items() if part_name in parts)


def part(module: nn.Module, path: str) -> nn.Module:
    """The submodule at an attribute path."""
    return module.get_submodule(path)


def linear_part(module: nn.Module, path: str) -> nn.Linear:
    """The linear layer at an attribute path. Raises: UnsupportedModel when another kind of module is there."""
    found = part(module, path)
    if not isinstance(found, nn.Linear):
        raise UnsupportedModel(f"{path} is a {type(found).__name__}, not a linear layer")
    return found


def optional_part(module: nn.Module, path: str) -> nn.Module | None:
    """The submodule at an attribute path; None where the model, or its architecture, has none."""
    if not path:
        return None
    for name in path.split("."):
        module = getattr(module, name, None)  # type: ignore[assignment]
    return module if is_present(module) else None


def replace_part(module: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)


def is_present(module: object) -> bool:
    """timm leaves an Identity where a part is switched off."""
    return module is not None and not isinstance(module, nn.Identity)


def block_lists(model: nn.Module, family: Family) -> list[str]:
    """Paths of the modules whose children are blocks, one per stage."""
    before, star, after = family.blocks.partition("*")
    if not star:
        return [family.blocks]
    owner = before.rstrip(".")
    return [f"{owner}.{name}{after}" for name, _ in part(model, owner).named_children()]


def blocks_of(model: nn.Module, family: Family) -> list[nn.Module]:
    """The blocks of all stages, in order."""
    return [block for path in block_lists(model, family) for block in part(model, path).children()]
