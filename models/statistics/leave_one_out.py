"""UP-ViTs' exact leave-one-out score: the change of the outputs without one member (arXiv 2111.15127, section 3.2).

    I(c) = mean over images of KL(p_dense || p_without_c), natural logarithm, no labels

"Without c" is the network that pruning would give: norms are computed over the dims that stay. To remove a member of
block b, the network is run again from block b on, with stored activations as its input. Many removals share one batch.
The cost is still high, so this score is for small models only.
"""

import copy
import time

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from models.errors import InvalidRequest
from models.families.family import Family, part, replace_part
from models.statistics.class_logits import class_logits
from models.statistics.gradient_scores import Scores, check_classes
from models.statistics.member_scores import MemberScores, StreamScores
from models.statistics.residual_stream import norm_without, stream_reads
from models.structure import Structure

IMAGES = 128
"""Upper limit on images. The score is a mean over images, and each image costs one pass for each member."""
MOST_MACS = 1e14
"""Upper limit on multiply-accumulates: about one hour on one fast core."""
BATCH = 256
"""Upper limit on images x removals in one pass."""
Masks = dict[nn.Module, Tensor]
"""For each module, a mask of the dims of its input or output that stay: 1 stays, 0 is removed. The shape is (G, dims)
or (G, heads, dims), with one row for each removal."""


def deletion_macs(structure: Structure, images: int) -> float:
    """Return the multiply-accumulates of all removals."""
    total, left = float(structure.width * structure.macs), float(structure.macs)
    for block in structure.blocks:
        dims = block.attention.heads * (block.attention.v_dim + 1) if block.attention else 0
        total += left * (dims + (block.mlp.neurons if block.mlp else 0) + 2)
        left -= sum(op.macs for op in block.ops())
    return total * min(images, IMAGES)


def check_cost(structure: Structure, images: int) -> None:
    """Check the cost.

    Raises: InvalidRequest if it is too high; the error names a criterion that costs a thousandth of it.
    """
    check_classes(structure, "kl-exact")
    macs = deletion_macs(structure, images)
    if macs > MOST_MACS:
        raise InvalidRequest(
            f"Criterion 'kl-exact' needs {macs:.2g} MACs for {structure.name}. The limit is {MOST_MACS:.2g} MACs."
            " Choose criterion 'kl', which estimates the same scores from gradients, or a smaller model.",
            macs=macs,
            allowed=MOST_MACS,
        )


def deletion_scores(model: nn.Module, family: Family, structure: Structure, images: Tensor) -> Scores:
    """Compute the leave-one-out scores from images (n, C, H, W). Raises: InvalidRequest if this would cost too much."""
    check_cost(structure, len(images))
    start = time.perf_counter()
    with torch.inference_mode():
        deleter = Deleter(copy.deepcopy(model), family, images[:IMAGES])
        blocks = tuple(_block_scores(deleter, i, structure) for i in range(len(structure.blocks)))
        keep = 1 - torch.eye(structure.width)
        embed = deleter.divergences(None, {}, {read.module: keep for read in deleter.reads})
    passes = deletion_macs(structure, 1) / structure.macs
    return blocks, StreamScores(embed, torch.tensor([passes, time.perf_counter() - start], dtype=torch.float64))


def _block_scores(deleter: "Deleter", block: int, structure: Structure) -> MemberScores:
    shape = structure.blocks[block]
    assert shape.attention is not None and shape.mlp is not None
    heads, dim = shape.attention.heads, shape.attention.v_dim
    q, k, projection, fc2 = deleter.parts(block)
    flat = 1 - torch.eye(heads * dim)
    pairs = dict.fromkeys((q, k), flat.unflatten(1, (heads, dim)))
    whole, neurons, nothing = flat[::dim].clone(), 1 - torch.eye(shape.mlp.neurons), torch.zeros(1, 1)
    for head in range(heads):
        whole[head, head * dim : (head + 1) * dim] = 0
    return MemberScores(
        heads=deleter.divergences(block, {projection: whole}, {}),
        qk=deleter.divergences(block, {}, pairs).unflatten(0, (heads, dim)),
        v=deleter.divergences(block, {projection: flat}, {}).unflatten(0, (heads, dim)),
        dims=deleter.divergences(block, {projection: flat}, pairs).unflatten(0, (heads, dim)),
        neurons=deleter.divergences(block, {fc2: neurons}, {}),
        halves=torch.cat([deleter.divergences(block, {}, {half: nothing}) for half in (projection, fc2)]),
    )


class Deleter:
    """Runs many removals in one batch. It replaces the blocks of the model that it gets, so it needs its own copy."""

    def __init__(self, model: nn.Module, family: Family, images: Tensor) -> None:
        self._model, self._family, self._images = model, family, images
        self._blocks = list(part(model, family.blocks).children())
        self.reads = stream_reads(model, family)
        self._entering = self._inputs_of_blocks()
        self._dense = functional.log_softmax(class_logits(model(images)).double(), dim=1)

    def _inputs_of_blocks(self) -> list[Tensor]:
        found: list[Tensor] = []
        hooks = [b.register_forward_pre_hook(lambda _m, inputs: found.append(inputs[0])) for b in self._blocks]
        self._model(self._images)
        for hook in hooks:
            hook.remove()
        return found

    def parts(self, block: int) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        """Return the modules that output q and k, the projection, and fc2."""
        family, module = self._family, self._blocks[block]
        q, k, projection, fc2 = (part(module, p) for p in (family.q_norm, family.k_norm, family.projection, family.fc2))
        return q, k, projection, fc2

    def divergences(self, block: int | None, inputs: Masks, outputs: Masks) -> Tensor:
        """Return the mean KL divergence of each removal, float64.

        block: the first block that a removal changes. None: it also changes the stem.
        """
        count, group = len(next(iter((inputs | outputs).values()))), max(1, BATCH // len(self._images))
        found = []
        for first in range(0, count, group):
            rows = slice(first, first + group)
            size = min(group, count - first)
            hooks = [_cut_input(module, keep[rows]) for module, keep in inputs.items()]
            hooks += [_cut_output(module, keep[rows]) for module, keep in outputs.items()]
            try:
                log_p = functional.log_softmax(class_logits(self._run(block, size)).double(), dim=1).unflatten(
                    0, (size, -1)
                )
            finally:
                for hook in hooks:
                    hook.remove()
            found.append((self._dense.exp() * (self._dense - log_p)).sum(-1).mean(1))
        return torch.cat(found)

    def _run(self, block: int | None, times: int) -> Tensor:
        """Return the logits of `times` copies of the images.

        The network runs from this block on; None: from the images on.
        """
        if block is None:
            replace_part(self._model, self._family.blocks, nn.Sequential(*self._blocks))
            out: Tensor = self._model(self._images.repeat(times, 1, 1, 1))
            return out
        entering = self._entering[block].repeat(times, 1, 1)
        replace_part(self._model, self._family.blocks, nn.Sequential(Given(entering), *self._blocks[block:]))
        out = self._model(self._images[:1])  # the output of the stem is ignored, so one image is enough
        return out


class Given(nn.Module):
    """Replaces the earlier blocks by their stored output."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self._tokens = tokens

    def forward(self, _x: Tensor) -> Tensor:
        return self._tokens


def _cut_input(module: nn.Module, keep: Tensor) -> RemovableHandle:
    return module.register_forward_pre_hook(lambda _m, inputs: _kept(nn.Identity(), inputs[0], keep))


def _cut_output(module: nn.Module, keep: Tensor) -> RemovableHandle:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return _kept(module, inputs[0] if isinstance(module, nn.LayerNorm) else output, keep)

    return module.register_forward_hook(hook)


def _kept(module: nn.Module, x: Tensor, keep: Tensor) -> Tensor:
    """Apply to each of the G copies in x (G * n, ..., dims) its own mask.

    If the masks have heads, dim 1 of x is the heads.
    """
    x = x.unflatten(0, (len(keep), -1))
    shape = [len(keep)] + [1] * (x.dim() - 2) + [keep.shape[-1]]
    if keep.dim() == 3:
        shape[2] = keep.shape[1]
    return norm_without(module, x, keep.reshape(shape)).flatten(0, 1)
