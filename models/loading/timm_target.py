"""Converts a network of a regular shape to a timm model.

Its weights have timm's own names, so the model can be loaded without vitfit.
"""

import math
from typing import Any

import torch
from timm.layers import LayerNorm
from torch import Tensor, nn

from models.errors import InvalidRequest, ParityFailure
from models.export.onnx_export import relative_difference
from models.families import family_of
from models.families.describe import describe
from models.families.family import Family, blocks_of, part
from models.loading.timm_builder import build
from models.networks.network import Network
from models.networks.torch_network import TorchNetwork, of_known_family
from models.pruning.pruned_blocks import PrunedAttention, PrunedBlock, PrunedBlocks
from models.pruning.reduced_attention import ReducedAttention
from models.pruning.slice_blocks import MlpOnly, NoMlp
from models.structure import Structure

TOLERANCE = 1e-4
NORMS = (nn.LayerNorm, LayerNorm)


def target_module(network: Network, name: str, **options: Any) -> nn.Module:
    """Return the timm model `name` for the images and classes of `network`, with random weights.

    options: arguments of timm that change the shape of the named model. Raises: UnknownName, InvalidRequest.
    """
    channels, height, width = network.structure.image
    family = of_known_family(network, "a target shape").family
    own = {"in_chans": channels, "num_classes": network.structure.classes} | options
    if family.image(network.module) is not None:  # other architectures take images of any size and have no such option
        own = {"img_size": (height, width)} | own
    return build(name, own, pretrained=False).eval()


def target_structure(network: Network, name: str, **options: Any) -> Structure:
    """Return the structure of the target. It does not check whether pruning can reach it; see `check_same_design`.

    Raises: UnknownName; UnsupportedModel; InvalidRequest for options that timm cannot build.
    """
    module = target_module(network, name, **options)
    return describe(module, family_of(module), name, network.structure.image[1:])


def check_same_design(network: Network, name: str, **options: Any) -> None:
    """Raises: InvalidRequest if the target has another design than `network`; pruning cannot change the design."""
    mine, wanted = (_details(m) for m in (network.module, target_module(network, name, **options)))
    if mine != wanted:
        raise InvalidRequest(
            f"vitfit cannot prune {network.structure.name} to the shape of {name}, because the designs differ. The"
            f" network has {mine}. The target has {wanted}. Choose a target of the same design.",
            target=name,
        )


def _details(module: nn.Module) -> str:
    """Describe the design: activation, eps of the norms, and pooling.

    A structure does not hold these details, and no choice of weights can make up for a difference.
    """
    family = family_of(module)
    block = blocks_of(module, family)[0]
    norms = [part(block, family.norm1), *([part(module, family.last_norm)] if family.last_norm else [])]
    eps = ", ".join(f"{norm.eps:g}" for norm in norms if isinstance(norm, NORMS))
    return (
        f"activation {type(part(block, family.activation)).__name__}, eps of the norms {eps}, "
        f"pooling {family.pooling(module)}"
    )


def to_timm(network: Network, original: Network, name: str, **options: Any) -> nn.Module:
    """Return the timm model `name` with the weights of the pruned network. It gives the same outputs.

    original: the network before pruning.
    Raises: InvalidRequest if the network does not have this shape; ParityFailure if the outputs differ.
    """
    module = target_module(original, name, **options)
    weights = timm_weights(of_known_family(network, "a target shape"), family_of(module))
    own = module.state_dict()
    other = sorted(key for key in own.keys() | weights.keys() if _shape(own, key) != _shape(weights, key))
    if other:
        found, wanted = _shape(weights, other[0]), _shape(own, other[0])
        raise InvalidRequest(
            f"The network does not have the shape of {name}. The weight {other[0]} has the shape {found} in the network"
            f" and {wanted} in the target (None: there is no such weight). Prune the network to this target shape."
        )
    module.load_state_dict(weights)
    images = torch.randn(4, *network.structure.image, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, got = network.module(images), module(images)
    difference = relative_difference(expected, got)
    if not difference <= TOLERANCE:
        raise ParityFailure(
            f"The timm model {name} and the pruned network have the same weights but different outputs. The largest"
            f" relative difference is {difference:.2e} (allowed: up to {TOLERANCE:g}). This is a defect of vitfit."
            " Please report it."
        )
    return module


def _shape(weights: dict[str, Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(weights[key].shape) if key in weights else None


def timm_weights(network: TorchNetwork, family: Family) -> dict[str, Tensor]:
    """Return the weights of a pruned network under timm's names for its family.

    Raises: InvalidRequest if the network has no regular shape.
    """
    if family.sliced:
        return _sliced_weights(network, family)
    blocks = part(network.module, family.blocks)
    if not isinstance(blocks, PrunedBlocks):
        return dict(network.module.state_dict())
    prefix = family.blocks + "."
    found = {key: value for key, value in network.module.state_dict().items() if not key.startswith(prefix)}
    for place, block in enumerate(blocks.children()):
        assert isinstance(block, PrunedBlock)
        found |= {f"{prefix}{place}.{key}": value for key, value in _block_weights(block, family).items()}
    return found


def _irregular(reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"timm has no model of the shape of this network: {reason}. The network must have a regular shape. Prune it to"
        " a target shape."
    )


def _sliced_weights(network: TorchNetwork, family: Family) -> dict[str, Tensor]:
    """Return the weights of a network that was pruned inside timm's own blocks.

    They already have timm's names, except for those of a `ReducedAttention`, which replaced timm's attention.
    """
    found = dict(network.module.state_dict())
    for path, module in network.module.named_modules():
        if isinstance(module, MlpOnly | NoMlp):
            raise _irregular("a block has no attention or no MLP")
        if isinstance(module, ReducedAttention):
            block = path.removesuffix(f".{family.rebuilt_attention}")
            for key in [key for key in found if key.startswith(f"{path}.")]:
                del found[key]
            found |= {f"{block}.{key}": value for key, value in _reduced_weights(module, family).items()}
    return found


def _reduced_weights(attention: ReducedAttention, family: Family) -> dict[str, Tensor]:
    parts: dict[str, nn.Module] = {family.projection: attention.projection}
    parts |= {path: attention.layers[made] for path, made in family.attention_layers.items()}
    parts |= {path: attention.reduction.get_submodule(place) for place, path in attention.reduction.paths.items()}
    found = {f"{path}.{key}": value for path, module in parts.items() for key, value in module.state_dict().items()}
    if attention.qk_dim != attention.v_dim:
        raise _irregular("its heads have different numbers of q/k dims and v dims")
    return found | _timm_s_q(found, family.layer_of("q"), attention)


def _timm_s_q(
    weights: dict[str, Tensor], layer: str, attention: ReducedAttention | PrunedAttention
) -> dict[str, Tensor]:
    """Rescale the rows that produce q, which are the first rows of `layer`.

    timm computes the attention scale from the size of the pruned heads, but the pruned network keeps the original
    scale.
    Return the changed tensors only.
    """
    rows, rescale = attention.heads * attention.qk_dim, attention.scale * math.sqrt(attention.qk_dim)
    keys = [key for key in (f"{layer}.weight", f"{layer}.bias") if key in weights and rescale != 1]
    return {key: torch.cat([weights[key][:rows] * rescale, weights[key][rows:]]) for key in keys}


def _block_weights(block: PrunedBlock, family: Family) -> dict[str, Tensor]:
    attention, mlp = block.attention, block.mlp
    if attention is None or mlp is None or block.norm1 is None or block.norm2 is None:
        raise _irregular("a block has no attention or no MLP")
    gathers = (attention.inputs, attention.outputs, mlp.inputs)
    if block.reduction is not None or not all(isinstance(gather, nn.Identity) for gather in gathers):
        raise _irregular("it removes tokens, or some of its layers read only a part of their inputs")
    if attention.qk_dim != attention.v_dim or not isinstance(attention.q_norm, nn.Identity):
        raise _irregular("its heads have q/k norms, or different numbers of q/k dims and v dims")
    parts = {
        family.norm1: block.norm1,
        family.qkv: attention.qkv,
        family.projection: attention.projection,
        family.norm2: block.norm2,
        family.fc1: mlp.fc1,
        family.fc2: mlp.fc2,
    }
    found = {f"{path}.{key}": value for path, module in parts.items() for key, value in module.state_dict().items()}
    for path, after in ((family.layer_scale1, block.after1), (family.layer_scale2, block.after2)):
        found |= {f"{path}.gamma": value for key, value in after.state_dict().items() if key.endswith("gamma")}
    return found | _timm_s_q(found, family.qkv, attention)
