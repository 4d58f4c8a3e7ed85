"""The `Network` of any model whose attention and MLPs are found in its graph.

Heads and neurons can be cut, and also tokens if the graph allows their number to change. In rotated bases, the dims
inside heads can be cut too.
"""

import copy
import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from models.data.preprocessing import Preprocessing
from models.errors import InvalidRequest, UnsupportedModel
from models.export.inference_blocks import Form
from models.export.signature import Signature
from models.graph.describe import describe_graph
from models.graph.frequency_factors import make_up
from models.graph.judged_output import JudgedOutput, all_outputs, judging
from models.graph.linear_layers import as_modules, linear_layers, linear_of, member_columns, reader_weight, write_reader
from models.graph.parted import NOT_ROTATED, Parted, parted
from models.graph.plain_model import plain_transformer
from models.graph.rotation import find_graph_bases, narrow_norms, rotate_graph
from models.graph.tokens.axes import NotFree
from models.graph.tokens.cut import TokenCut
from models.graph.tokens.flow import TokenFlow, token_flow
from models.graph.tracing.atoms import Atom, by_members, leaves, places, size_of
from models.graph.tracing.capture import BATCH, capture, stored
from models.graph.tracing.inner_dims import inside_heads
from models.graph.tracing.rotary_tables import part_rotary
from models.graph.tracing.stream import find_stream
from models.graph.tracing.sublayers import GraphBlock, Half, find_blocks
from models.graph.tracing.trace import trace
from models.graph.tracing.tracer import packet_of
from models.graph.watching import Values, Watcher, layer_inputs
from models.networks.network import Network
from models.pruning.recovery import refit, refit_narrower
from models.pruning.remembered_fits import RememberedFits
from models.rotation.bases import Bases
from models.statistics.collect import READERS, Observer, Sides, collect
from models.statistics.layer_weights import LayerWeights
from models.statistics.moments import InputStatistics
from models.statistics.statistics import Kind, Statistics
from models.structure import LAYERS, BlockPlan, Plan, RotatedAxis

KINDS: frozenset[Kind] = frozenset({"dependence"})
METHODS = "Use method 'joint' or 'mdc'."


class GraphNetwork(Network):
    """A network that was read from its graph.

    `module` is the captured graph if the network is dense. If the network is pruned, `module` is the smaller graph
    that was cut out of it.
    """

    _placed: dict[str, str]
    """In a pruned network: the paths of its linear layers, by the names of their nodes in the dense graph."""

    def __init__(
        self,
        module: nn.Module,
        name: str,
        preprocessing: Preprocessing,
        classes: int,
        *,
        batch: int = BATCH,
        image: tuple[int, int, int] | None = None,
        signature: Signature | None = None,
        free: tuple[RotatedAxis, ...] = (),
    ) -> None:
        """module: any module, or a graph that was captured for `batch` images of size `image`.

        signature: the names of the outputs, and which of them vitfit compares with the original.
        free: the dims inside heads that can be cut, because the graph is in rotated bases.

        Raises: UnsupportedModel.
        """
        size = image or preprocessing.size
        graph = module if isinstance(module, GraphModule) else capture(module, size)
        try:
            self._traced = trace(graph, size, batch)
            self._blocks = find_blocks(self._traced)
            self._layers = linear_layers(self._traced, self._blocks)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise UnsupportedModel(
                f"vitfit cannot trace the graph of {name} ({type(error).__name__}: {str(error)[:200]}). Use a model of"
                " a known family.",
                reasons=["vitfit cannot trace its graph"],
            ) from error
        self._inside = [inside_heads(self._traced, block) for block in self._blocks] if free else []
        self._stream = find_stream(self._traced, self._blocks) if "embed" in free else None
        describe = partial(
            describe_graph,
            self._traced,
            self._blocks,
            name,
            classes,
            layers=self._layers,
            inside=self._inside,
            free=free,
            stream=None if self._stream is None else self._stream.atom,
        )
        self._fits = RememberedFits()
        self._flow = token_flow(self._traced, self._blocks)
        try:
            self._structure = describe(flow=self._flow)
        except NotFree as error:
            self._flow = TokenFlow(reason=str(error))
            self._structure = describe(flow=self._flow)
        self.signature = signature or Signature()
        self.module, self.preprocessing = judging(graph, self.signature), preprocessing

    def __copy__(self) -> "GraphNetwork":
        """Return a network that shares the traced graph."""
        same = object.__new__(GraphNetwork)
        vars(same).update(vars(self))
        return same

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the tracer, because its operators cannot be pickled. `__setstate__` traces the graph again."""
        traced = ("_traced", "_blocks", "_flow", "_inside", "_parted", "_stream")
        left = {name: value for name, value in vars(self).items() if name not in traced}
        return {**left, "dense": self._traced.graph}

    def __setstate__(self, state: dict[str, Any]) -> None:
        dense, image = state.pop("dense"), state["_structure"].image
        if state.get("rotation") is not None:
            part_rotary(dense, image)  # a pickled graph has lost its marks
        self._traced = trace(dense, image)
        self._blocks = find_blocks(self._traced)
        free = any(stage.in_graph for stage in state["_structure"].stages)
        self._flow = token_flow(self._traced, self._blocks) if free else TokenFlow()
        rotation = state.get("rotation")
        self._inside = [inside_heads(self._traced, block) for block in self._blocks] if rotation is not None else []
        wide = rotation is not None and bool(rotation.streams)
        self._stream = find_stream(self._traced, self._blocks) if wide else None
        vars(self).update(state)

    def plain(self) -> nn.Module | None:
        """Return the plain vision transformer that computes the same as this graph, or None if there is none.

        Everything in a plain vision transformer can be cut.
        """
        if isinstance(self.module, JudgedOutput) or any(block.is_shared for block in self._blocks):
            return None  # a plain transformer gives logits only, and each block has weights of its own
        return plain_transformer(self._traced, self._blocks, self._structure.classes)

    @property
    def pools_tokens(self) -> bool:
        return False

    @property
    def recovers_in_sequence(self) -> bool:
        return False

    def recovered_in_sequence(self, dense: Self, images: Tensor) -> Self:
        raise AssertionError("a graph model has no sequential recovery: see recovers_in_sequence")

    @cached_property
    def _parted(self) -> Parted:
        return parted(self._traced.graph, self._structure.image, len(self._blocks))

    @property
    def not_rotated(self) -> dict[RotatedAxis, str]:
        reasons = {**NOT_ROTATED, "embed": self._parted.fixed_width}
        return {axis: reason for axis, reason in reasons.items() if axis not in self._parted.rotatable}

    def bases(self, images: Tensor) -> Bases | None:
        axes, parted = self.rotatable, self._parted
        if not axes:
            return None
        return find_graph_bases(
            parted.traced, parted.blocks, parted.inside, axes, stream=parted.stream, chunks=images.split(64)
        )

    def rotated(self, bases: Bases) -> Self:
        structure = self._structure
        made = GraphNetwork(
            copy.deepcopy(self._parted.traced.graph),
            structure.name,
            self.preprocessing,
            structure.classes,
            image=structure.image,
            signature=self.signature,
            free=bases.axes,
        )
        rotate_graph(made._traced, made._blocks, made._inside, bases, stream=made._stream)
        same = copy.copy(self)
        vars(same).update(vars(made))
        same.rotation = bases
        return same

    @property
    def input_kinds(self) -> frozenset[Kind]:
        return frozenset() if self._stream is None else frozenset({"inputs"})

    def weights(self) -> tuple[LayerWeights, ...]:
        return tuple(self._layer_weights(block) for block in self._blocks)

    def check_kinds(self, kinds: Collection[Kind]) -> None:
        """Raises: InvalidRequest for statistics that cannot be collected from a graph."""
        wanted = sorted(set(kinds) - KINDS - self.input_kinds)
        if wanted:
            raise InvalidRequest(
                f"vitfit cannot collect the statistics {', '.join(wanted)} from {self._structure.name}, because it is"
                f" a graph model. {METHODS}",
                kinds=wanted,
            )

    def statistics(self, images: Tensor, kinds: Collection[Kind] = (), labels: Tensor | None = None) -> Statistics:
        self.check_kinds(kinds)
        return collect(self._structure, images, self.outputs, self._observe, kinds=kinds)

    def _observe(self, observer: Observer, images: Tensor, batch: int, sides: Sides) -> None:
        """Show the observer the inputs of two layers of each block.

        The last dim of the inputs of READERS is ordered member by member: all columns of the first member come first.
        """
        watched: dict[Node, Callable[[Values], None]] = {}

        def watch(nodes: Iterable[Node], block: int, side: int, columns: Tensor) -> None:
            def show(values: Values, node: Node) -> None:
                observer(block, side, layer_inputs(values, node, columns))

            watched.update({node: partial(show, node=node) for node in nodes})

        for i, block in enumerate(self._blocks):
            for side, half in enumerate((block.heads, block.neurons)):
                if sides == READERS:
                    watch(half.uses, i, side, torch.tensor(member_columns(self._traced, half)))
                else:
                    assert self._stream is not None
                    watch(half.makers[:1], i, side, torch.arange(self._stream.atom.size))
        watcher = Watcher(self._traced.graph, watched)
        with torch.inference_mode():
            for chunk in images.split(batch):
                watcher.run(chunk)

    def pruned(self, plan: Plan, statistics: Statistics | None) -> Self:
        """Return the network that the plan describes. statistics: None leaves the remaining weights as they are.

        Raises: InvalidRequest when the plan does not fit.
        """
        small = copy.copy(self)
        small._structure, small.plan = plan.apply_to(self._structure), plan
        if [block.source for block in plan.blocks] != list(range(len(self._blocks))):
            raise InvalidRequest(
                f"The plan keeps {len(plan.blocks)} of the {len(self._blocks)} blocks of {small._structure.name}. A"
                " plan for a graph model must keep all blocks. Keep at least one head and one neuron of each block."
            )
        kept: dict[Atom, Sequence[int]] = {}
        for place, (block, wanted) in enumerate(zip(self._blocks, plan.blocks, strict=True)):
            kept[block.heads.atom], kept[block.neurons.atom] = self._heads(wanted), wanted.neurons
            kept |= self._dims(place, wanted)
        if self._stream is not None:
            kept[self._stream.atom] = plan.embed
        graph = self._traced.cut(kept)
        if self._stream is not None:
            narrow_norms(graph, self._stream, len(plan.embed) / self._stream.atom.size)
        if statistics is not None:
            self._fits.begin()
            for block, seen in zip(self._blocks, statistics.blocks, strict=True):
                self._refit(graph, block.heads, kept, seen.projection)
                self._refit(graph, block.neurons, kept, seen.neurons)
                if seen.inputs is not None:
                    self._refit_readers(graph, block.heads, kept, seen.inputs.qkv)
                    self._refit_readers(graph, block.neurons, kept, seen.inputs.fc1)
        if self.rotation is not None:
            traced = dataclasses.replace(self._traced, graph=graph)
            make_up(traced, self._blocks, self._inside, self.rotation, kept=kept)
        reductions = {i: block.tokens for i, block in enumerate(plan.blocks) if block.tokens is not None}
        if reductions:
            TokenCut(graph, self._flow, self._traced.tracer.sizes, reductions).write()
        nodes = [node for layers in self._layers for some in layers.values() for node in some]
        small._placed = as_modules(graph, nodes)
        small.module = judging(graph, self.signature)
        return small

    @property
    def with_all_outputs(self) -> nn.Module:
        return all_outputs(self.module)

    def int8_layers_of(self, module: nn.Module) -> Iterator[nn.Linear]:
        assert self.plan is not None
        for plan, layers in zip(self.plan.blocks, self._layers, strict=True):
            for layer in LAYERS:
                for node in () if layer in plan.exact else layers[layer]:
                    found = all_outputs(module).get_submodule(self._placed[node])
                    assert isinstance(found, nn.Linear)
                    yield found

    def _heads(self, plan: BlockPlan) -> tuple[int, ...]:
        """Return the heads that stay. The indices of a plan count the dims of all heads."""
        attention = self._structure.blocks[plan.source].attention
        assert attention is not None
        return tuple(head.v[0] // attention.v_dim for head in plan.heads)

    def _dims(self, place: int, plan: BlockPlan) -> dict[Atom, tuple[int, ...]]:
        """Return the dims that stay inside each head of a block.

        Raises: InvalidRequest if the heads keep different dims: one product computes all of them.
        """
        attention, kept = self._structure.blocks[place].attention, {}
        assert attention is not None
        for axis in self.rotation.axes if self.rotation is not None else ():
            if axis == "embed":
                continue
            dims, size = self._inside[place].of(axis), getattr(attention, f"{axis}_dim")
            found = {tuple(i % size for i in getattr(head, axis)) for head in plan.heads}
            if len(found) > 1:
                raise InvalidRequest(
                    f"Block {place} of the plan keeps different {axis} dims in its heads. In a graph model, all heads"
                    " of a block must keep the same dims. Keep the same dims in every head."
                )
            assert dims is not None and self.rotation is not None
            kept[dims.atom] = self.rotation.blocks[place].members(axis, found.pop())
        return kept

    def _refit(self, module: GraphModule, half: Half, kept: Mapping[Atom, Sequence[int]], seen: Any) -> None:
        """Refit the reader of a sublayer in closed form, in place (models/pruning/recovery.py)."""
        inputs = leaves(self._traced.tracer.contractions[half.reader][0])
        left = places(inputs, dict(kept))
        if len(left) == size_of(inputs):
            return
        columns = member_columns(self._traced, half)
        place_of = {column: place for place, column in enumerate(columns)}  # the statistics are ordered by members
        weight, bias = reader_weight(self._traced.graph, half.reader)
        if self._stream is not None:
            rows = torch.tensor(kept[self._stream.atom])
            weight, bias = weight[rows], None if bias is None else bias[rows]
        members = [place_of[column] for column in left]
        new, shift = self._fits.of(
            (half.reader.name, tuple(left), len(weight)),
            stored(self._traced.graph, half.reader.args[1]),
            seen,
            lambda: refit(weight[:, columns], bias, seen, members),
        )
        write_reader(module, half.reader, new, shift if bias is not None else None)

    def _refit_readers(
        self, module: GraphModule, half: Half, kept: Mapping[Atom, Sequence[int]], seen: InputStatistics
    ) -> None:
        """Refit the layers that read a narrower stream for a sublayer, in place.

        seen: moments of the inputs of the first of them. Layers with other inputs keep their weights.
        """
        assert self._stream is not None
        columns = kept[self._stream.atom]
        if len(columns) == self._stream.atom.size:
            return
        for maker in half.makers:
            if packet_of(maker) is not torch.ops.aten.linear or maker.args[0] is not half.makers[0].args[0]:
                continue
            weight, bias = reader_weight(self._traced.graph, maker)
            rows = torch.tensor(places(leaves(self._traced.tracer.contractions[maker][1]), dict(kept)))
            weight, bias = weight[rows], None if bias is None else bias[rows]
            fit = partial(refit_narrower, weight, bias, weight[:, list(columns)], seen)
            key = (maker.name, tuple(rows.tolist()), len(columns))
            new, shift = self._fits.of(key, stored(self._traced.graph, maker.args[1]), seen, fit)
            write_reader(module, maker, new, shift if bias is not None else None)

    def _layer_weights(self, block: GraphBlock) -> LayerWeights:
        heads = block.heads.atom.size
        projection, fc2 = (linear_of(*self._reader(half)) for half in (block.heads, block.neurons))
        fc1 = self._made(block.neurons)
        q = self._made(block.heads)
        dims = projection.in_features // heads
        # several layers of any width may make a head: their common norm, spread evenly over its dims, stands for it
        norms = (q.weight.detach() ** 2).sum(1).sqrt().repeat_interleave(dims) / dims**0.5
        return LayerWeights(heads, linear_of(norms[:, None].repeat(3, 1) / 3**0.5, None), projection, fc1, fc2)

    def _reader(self, half: Half) -> tuple[Tensor, Tensor | None]:
        weight, bias = reader_weight(self._traced.graph, half.reader)
        return weight[:, member_columns(self._traced, half)], bias

    def _made(self, half: Half) -> nn.Linear:
        """Return a layer whose weight (members, 1) holds, for each member, the norm of all weights that make it."""
        total = torch.zeros(half.atom.size)
        read = (
            [one for one in maker.all_input_nodes if one.op == "get_attr" and one in self._traced.tracer.weights]
            for maker in half.makers
        )
        for weight in dict.fromkeys(weights[0] for weights in read if weights):  # each once, also if it is used often
            tensor = stored(self._traced.graph, weight).detach()
            for axis, dim in enumerate(self._traced.dims(weight)):
                if half.atom in dim:
                    rows = (tensor**2).sum([i for i in range(tensor.ndim) if i != axis])
                    total += rows[by_members(dim, half.atom)].reshape(half.atom.size, -1).sum(1)
        return linear_of(total.sqrt()[:, None], None)

    def export(self, path: Path, batch: int | None, form: Form = "standard") -> None:
        module = self.with_all_outputs
        self.write(module if self.rounding is None else copy.deepcopy(module), path, batch)
