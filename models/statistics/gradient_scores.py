"""First-order scores: how the outputs change when a member goes to zero, from backward passes on calibration images.

Consider a member c with activation a. The images of a batch do not influence each other, so one backward pass of a sum
over images gives for each image the derivative in the direction "c goes to zero":

    d_c = - sum over tokens of a * gradient

    Taylor:  mean over images of |d_c loss|,  loss = cross-entropy with the labels (or the dense answers)
    Fisher:  mean over images of 1/2 sum_y p_y (d_c log p_y)^2, the second-order term of UP-ViTs' KL(p || p without c)
             (arXiv 2111.15127, eq. 4). The first-order term is zero, because the divergence has its minimum at p.

The sum over y is exact for few classes. For many classes it is the mean over random signs e of
(d_c sum_y e_y sqrt(p_y) log p_y)^2, which has the same expectation. Labels drawn from p would be a worse estimate:
nearly all would be the most probable class, which says little.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from models.errors import InvalidRequest
from models.families.family import Family, blocks_of, part
from models.statistics.class_logits import class_logits
from models.statistics.member_scores import MemberScores, StreamScores
from models.statistics.residual_stream import Read, change_without, stream_reads
from models.structure import Structure

FEW_CLASSES, DRAWS = 16, 4
"""Up to FEW_CLASSES classes the sum over classes is exact, with one backward pass for each class. With more classes, it
is estimated from DRAWS random draws per image."""
BATCH = 32
Scores = tuple[tuple[MemberScores, ...], StreamScores]
Reduce = Callable[[Tensor], Tensor]


def taylor_scores(
    model: nn.Module, family: Family, structure: Structure, images: Tensor, *, labels: Tensor | None
) -> Scores:
    """Compute the Taylor scores from images (n, C, H, W) and labels (n,). Labels None: the predicted classes are used.

    Raises: InvalidRequest if the model has no classifier.
    """
    check_classes(structure, "taylor")
    taps = Taps(model, family, structure)

    def probes(chunk: slice, log_p: Tensor) -> list[Tensor]:
        wanted = log_p.argmax(1) if labels is None else labels[chunk]
        return [functional.one_hot(wanted, log_p.shape[1]).to(log_p)]

    return _scores(taps, images, probes, torch.abs)


def fisher_scores(model: nn.Module, family: Family, structure: Structure, images: Tensor, *, seed: int = 0) -> Scores:
    """Compute the Fisher scores from images (n, C, H, W). Raises: InvalidRequest if the model has no classifier."""
    check_classes(structure, "kl")
    taps, draw = Taps(model, family, structure), torch.Generator().manual_seed(seed)

    def probes(_chunk: slice, log_p: Tensor) -> list[Tensor]:
        roots, classes = (0.5 * log_p).exp(), log_p.shape[1]
        if classes <= FEW_CLASSES:
            return [roots * row for row in torch.eye(classes)]
        signs = torch.randint(0, 2, (DRAWS, *log_p.shape), generator=draw) * 2 - 1
        return list(roots * signs / DRAWS**0.5)

    return _scores(taps, images, probes, lambda change: 0.5 * change**2)


def check_classes(structure: Structure, criterion: str) -> None:
    """Check that the model has a classifier. Raises: InvalidRequest that names the criterion."""
    if not structure.classes:
        raise InvalidRequest(
            f"Criterion {criterion!r} compares class probabilities, but this model has no classifier. Set num_classes,"
            " or use criterion 'reconstruction'."
        )


def _scores(
    taps: "Taps", images: Tensor, probes: Callable[[slice, Tensor], Sequence[Tensor]], reduce: Reduce
) -> Scores:
    """Compute the scores of all members, averaged over images.

    probes: is called with the rows of a batch and log p (B, C). It returns a list of weights (B, C), and each of them
        causes one backward pass of sum(weights * log p).
    reduce: converts the change of each image into a score, before the mean over images.
    """
    start, passes = time.perf_counter(), 0
    sums: list[Tensor] = []
    for first in range(0, len(images), BATCH):
        with taps, torch.enable_grad():
            chunk = images[first : first + BATCH].clone().requires_grad_()
            taps.images = len(chunk)
            log_p = functional.log_softmax(class_logits(taps.model(chunk)), dim=1)
            weights = probes(slice(first, first + BATCH), log_p.detach())
            passes = 1 + len(weights)
            for place, weight in enumerate(weights):
                found = taps.changes((weight * log_p).sum(), last=place == len(weights) - 1)
                reduced = [reduce(change).sum(0, dtype=torch.float64) for change in found]
                sums = [a + b for a, b in zip(sums, reduced, strict=True)] if sums else reduced
    means = iter([total / len(images) for total in sums])
    blocks = tuple(MemberScores(*(next(means) for _ in dataclasses.fields(MemberScores))) for _ in taps.blocks)
    cost = torch.tensor([passes, time.perf_counter() - start], dtype=torch.float64)
    return blocks, StreamScores(next(means), cost)


class Taps:
    """Records the activations of all members while its `with` block runs. `changes` differentiates along them."""

    def __init__(self, model: nn.Module, family: Family, structure: Structure) -> None:
        self.model, self._family = model, family
        self.blocks = blocks_of(model, family)
        self._heads = [block.attention.heads if block.attention else 0 for block in structure.blocks]
        plain = "embed" not in structure.fixed and not structure.has_widths_of_stages
        self._reads = stream_reads(model, family) if plain else []
        self.images = 0
        """Number of images in the current batch, needed to sum over the windows or grid positions of each image."""
        self._inputs: dict[nn.Module, Tensor] = {}
        self._outputs: dict[nn.Module, Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "Taps":
        family = self._family
        paths = (*self._qk_paths, family.projection, family.fc2)
        modules = [part(block, path) for block in self.blocks for path in paths]
        for module in dict.fromkeys([*modules, *(read.module for read in self._reads)]):
            self._hooks.append(module.register_forward_hook(self._keep))
        return self

    @property
    def _qk_paths(self) -> tuple[str, ...]:
        """Paths of the modules that output q and k.

        In plain blocks these are the q and k norms (often identities). Otherwise they are the linear layers of q and k.
        """
        family = self._family
        return (family.q_norm, family.k_norm) if family.q_norm else tuple(family.attention_layers)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._inputs[module], self._outputs[module] = inputs[0], output

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        for kept in (self._hooks, self._inputs, self._outputs):
            kept.clear()

    def changes(self, value: Tensor, last: bool) -> list[Tensor]:
        """Return the change of `value` (a sum over images) for each image and each member that is removed.

        The list has, for each block: heads (B, H), qk, v and dims (B, H, d), neurons (B, K), and sublayers (B, 2:
        attention, MLP). The last entry is for the embedding dims (B, D).
        """
        family = self._family
        places = [
            (
                *(self._outputs[part(block, path)] for path in self._qk_paths),
                self._inputs[part(block, family.projection)],
                self._outputs[part(block, family.projection)],
                self._inputs[part(block, family.fc2)],
                self._outputs[part(block, family.fc2)],
            )
            for block in self.blocks
        ]
        tensors = [tensor for some in places for tensor in some] + [self._outputs[read.module] for read in self._reads]
        gradients = iter(torch.autograd.grad(value, tensors, retain_graph=not last))
        found = []
        with torch.no_grad():
            for block, some, heads in zip(self.blocks, places, self._heads, strict=True):
                slopes = [next(gradients) for _ in some]
                qk = self._qk_change(block, some, slopes, heads)
                found += _block_changes(list(zip(some[-4:], slopes[-4:], strict=True)), qk, heads)
            embed = [self._stream_change(read, next(gradients)) for read in self._reads]
            return [*found, torch.stack(embed).sum(0) if embed else value.new_zeros(self.images, 0)]

    def _qk_change(self, block: nn.Module, tensors: Sequence[Tensor], slopes: Sequence[Tensor], heads: int) -> Tensor:
        """Return the change for each q/k dim, (B, H, q).

        q_j and k_j are used only in their product, so removing either one has the same effect. The mean of both is
        returned.
        """
        if self._family.q_norm:
            q, k = (-(a * g).sum(2) for a, g in zip(tensors[:2], slopes[:2], strict=True))
            return 0.5 * (q + k) + self._renormed(block, slopes[:2])
        parts: dict[str, Tensor] = {}
        for made, a, g in zip(self._family.attention_layers.values(), tensors, slopes, strict=False):
            change = -(a * g).reshape(self.images, -1, a.shape[-1]).sum(1)
            for name, chunk in zip(made, change.chunk(len(made), dim=-1), strict=True):
                parts[name] = chunk.unflatten(-1, (heads, -1))
        return 0.5 * (parts["q"] + parts["k"])

    def _renormed(self, block: nn.Module, gradients: Sequence[Tensor]) -> Tensor:
        """Return the change (B, H, q) that the q and k norms cause in the other dims of a head when one dim is removed.

        It is zero if the block has no q and k norms.
        """
        found = []
        for path, gradient in zip((self._family.q_norm, self._family.k_norm), gradients, strict=True):
            norm = part(block, path)
            x = self._inputs[norm].detach()
            change = change_without(norm, x.flatten(0, 1), gradient.flatten(0, 1), own=False)
            found.append(change.unflatten(0, x.shape[:2]))
        return torch.stack(found).sum(0)

    def _stream_change(self, read: Read, gradient: Tensor) -> Tensor:
        x = self._inputs[read.module].detach()
        tokens = (len(x), -1, x.shape[-1])
        return change_without(read.module, x.reshape(tokens), gradient.reshape(tokens), read.own)


def _block_changes(places: Sequence[tuple[Tensor, Tensor]], qk: Tensor, heads: int) -> list[Tensor]:
    """Return the changes of one block, in the order of the fields of `MemberScores`.

    places: (activation, gradient) of the projection's input, the projection's output, fc2's input and fc2's output.
        Their shape is (B, N, .), or it is split into windows or a grid.
    qk: the change of the q/k dims (B, H, q).
    """
    images = len(qk)
    inputs, attention, neurons, mlp = (-(a * g).reshape(images, -1, a.shape[-1]).sum(1) for a, g in places)
    v = inputs.unflatten(-1, (heads, -1))
    halves = torch.stack([attention.sum(1), mlp.sum(1)], dim=1)
    return [v.sum(-1), qk, v, qk + v, neurons, halves]
