"""Adds token reductions to a graph, in place.

B images, H heads, N tokens = P prefix + M patches [+ 1 fused token]. After a reduction, every size that counts tokens
is rewritten. Tables with values for single tokens are read only for the tokens that remain. A mean weights each token
by the number of tokens that it stands for.
"""

import operator
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional

from models.graph.tokens.axes import Axes, Pool, Table, TokenAxis
from models.graph.tokens.flow import TokenFlow
from models.graph.tracing.capture import device_of, stored
from models.graph.tracing.tracer import argument
from models.graph.tracing.write_sizes import write_last_part, write_length
from models.pruning import token_reducers as tokens
from models.pruning.token_reduction import TokenReduction, TokenState, TokenWatch
from models.structure import PACKAGING, TokenPlan

aten = torch.ops.aten


class OpenAttention(nn.Module):
    """Attention that replaces a fused operator, because it also returns the attention weights."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """q, k: (B, H, N, d). v: (B, H, N, e).

        mask: if boolean, True marks the logits that are kept; otherwise it is added to the logits.
        Return the attention's output (B, H, N, e) and its weights (B, H, N, N).
        """
        logits = (q * self.scale) @ k.transpose(-2, -1)
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        attention = torch.softmax(logits, dim=-1)
        return attention @ v, attention


class TokenChoice(nn.Module):
    """A token reduction that ranks tokens by the attention of its own block."""

    def __init__(self, reduction: TokenReduction, watch: TokenWatch) -> None:
        super().__init__()
        self.reduction, self.watch = reduction, watch

    def forward(self, x: Tensor, attention: Tensor, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x: (B, N, D). attention: (B, H, N, N).

        places: (B, M), the positions of the patches in the original grid; None if no patch has been removed.
        Return x and places for the tokens that remain.
        """
        state = TokenState(places=places)
        self.watch(attention, attention, state)
        x = self.reduction(x, state)
        assert state.places is not None
        return x, state.places


class TokenRows(nn.Module):
    """Selects the rows of a table that belong to the remaining tokens.

    A fused token gets the mean of the removed rows.
    """

    def __init__(self, rank: int, axes: Sequence[int], before: int, gone: int) -> None:
        """rank: number of dims of the tensor with which the table is combined.

        axes: the dims of the table that count tokens, as negative numbers (from the end).
        before: number of tokens at the front of these dims that are never removed.
        gone: number of patches that a fused token at the end stands for; 0 if there is no fused token.
        """
        super().__init__()
        self.rank, self.before, self.gone = rank, before, gone
        self.axes = tuple(axis % rank for axis in axes)  # torch's exporter does not convert negative axes

    def forward(self, table: Tensor, places: Tensor) -> Tensor:
        """places: (B, K). Return a tensor with `rank` dims, whose first dim is B."""
        table = table[:1] if table.dim() == self.rank else table.reshape((1,) * (self.rank - table.dim()) + table.shape)
        for number, axis in enumerate(self.axes):
            rows = table.movedim(axis, 1)
            length, *others = (int(size) for size in rows.shape[1:])
            left = self._rows(rows.reshape(-1, length, prod(others)), places, shared=number == 0)
            table = left.reshape(-1, left.shape[1], *others).movedim(1, axis)
        return table

    def _rows(self, rows: Tensor, places: Tensor, shared: bool) -> Tensor:
        """Turn rows (1 or B, P + M, R) into (B, P + K [+ 1], R).

        shared: whether the rows are the same for all images.
        """
        body = rows[:, self.before :]
        kept = functional.embedding(places, body[0]) if shared else tokens.gather_tokens(body, places)
        parts = [rows[:, : self.before].expand(kept.shape[0], -1, -1), kept] if self.before else [kept]
        if self.gone and rows.dtype == torch.bool:
            parts.append(body.any(dim=1, keepdim=True).expand(kept.shape[0], -1, -1))
        elif self.gone:
            parts.append((body.sum(dim=1, keepdim=True) - kept.sum(dim=1, keepdim=True)) / self.gone)
        return torch.cat(parts, dim=1)


class TokenCut:
    """Adds the token reductions of one plan to one graph.

    Its nodes must have the same names as when `flow` was found.
    """

    def __init__(
        self, graph: GraphModule, flow: TokenFlow, shapes: Mapping[Node, Any], plans: Mapping[int, TokenPlan]
    ) -> None:
        """shapes: the shapes of the nodes that `flow` knows. plans: the token plan of each block that has one."""
        self.graph, self.flow, self.shapes, self.plans = graph, flow, shapes, plans
        self._node: dict[str, Node] = {node.name: node for node in graph.graph.nodes}
        self._places: dict[int, Node] = {}
        self._rows: dict[Any, Node] = {}
        self._alike: dict[Node, Any] = {}

    def write(self) -> None:
        for node, axes in self.flow.axes.items():
            for place, axis in axes.items():
                if axis.of_all:
                    continue  # this dim also contains the batch, so the graph lets it be inferred (-1)
                write_length(self._node[node.name], place, self._length(axis))
            for user in node.users:
                if getattr(user.target, "overloadpacket", None) is aten.split_with_sizes:
                    self._split(user, axes)
        for block in sorted(self.plans):
            self._reduce(block)
        for table in self.flow.tables:
            self._read(table)
        for pool in self.flow.pools:
            self._weigh(pool)
        self.graph.graph.lint()
        self.graph.recompile()

    def _left(self, behind: int | None) -> tuple[int | None, int, int]:
        """Return the state of the tokens behind a block, as a tuple.

        Its entries are the last block that reduced the tokens (None if no block did), the number of remaining patches,
        and the number of patches that a fused token at the end stands for (0 if there is no fused token).
        """
        last, patches, packaged = None, self.flow.patches, 0
        for block in sorted(self.plans):
            if behind is not None and block <= behind:
                plan = self.plans[block]
                packaged += patches - plan.kept if plan.reducer in PACKAGING else 0
                last, patches = block, plan.kept
        return last, patches, packaged

    def _length(self, axis: TokenAxis) -> int:
        _, patches, packaged = self._left(axis.block)
        return axis.before + patches + bool(packaged)

    def _split(self, node: Node, axes: Axes) -> None:
        """Resize the last part of a split along tokens, which holds the patches.

        axes: the token axes of the split tensor.
        """
        axis = axes.get(argument(node, 2, "dim", 0) % len(self.shapes[node.args[0]]))  # type: ignore[index]
        if axis is not None:
            write_last_part(self._node[node.name], self._length(axis))

    def _reduce(self, block: int) -> None:
        """Add one reduction behind the stream of its block."""
        flow, plan = self.flow, self.plans[block]
        _, patches, packaged = self._left(block - 1)
        watch = TokenWatch("attention", flow.prefix, patches, flow.has_class_token)
        choice = TokenChoice(TokenReduction(plan, flow.prefix, patches, packaged), watch)
        attention, stream = self._attention(block), self._node[flow.streams[block].name]
        with self.graph.graph.inserting_after(stream):
            chosen = self._module(f"tokens_{block}", choice, (stream, attention, *list(self._places.values())[-1:]))
        with self.graph.graph.inserting_after(chosen):
            left = self.graph.graph.call_function(operator.getitem, (chosen, 0))
            places = self.graph.graph.call_function(operator.getitem, (chosen, 1))
        stream.replace_all_uses_with(left, delete_user_cb=lambda user: user is not chosen)
        self._places[block] = places

    def _attention(self, block: int) -> Node:
        """Return the node of a block's attention weights, (B, H, N, N). A fused attention is replaced."""
        node = self._node[self.flow.attentions[block].name]
        if getattr(node.target, "overloadpacket", None) is not aten.scaled_dot_product_attention:
            return node
        given = [*node.args[:3], argument(node, 3, "attn_mask")]
        with self.graph.graph.inserting_after(node):
            opened = self._module(f"attention_{block}", OpenAttention(cast(float, node.kwargs["scale"])), tuple(given))
        with self.graph.graph.inserting_after(opened):
            mixed = self.graph.graph.call_function(operator.getitem, (opened, 0))
            attention: Node = self.graph.graph.call_function(operator.getitem, (opened, 1))
        node.replace_all_uses_with(mixed)
        self.graph.graph.erase_node(node)
        self._node[node.name] = opened  # `flow.tables` still refers to the old name
        return attention

    def _read(self, table: Table) -> None:
        """Let a reader of a table use only the rows of the remaining tokens.

        Readers of equal tables share these rows.
        """
        last, patches, packaged = self._left(table.axis.block)
        if last is None:
            return
        reader, node = self._node[table.reader.name], self._node[table.node.name]
        rank = len(self.shapes[table.reader])
        key = (self._canonical(node), table.axes, table.axis.before, rank, last)
        if key not in self._rows:
            gone = self.flow.patches - patches if packaged else 0
            with self.graph.graph.inserting_before(reader):
                name = f"token_rows_{len(self._rows)}"
                module = TokenRows(rank, table.axes, table.axis.before, gone)
                self._rows[key] = self._module(name, module, (node, self._places[last]))
        reader.replace_input_with(node, self._rows[key])

    def _canonical(self, node: Node) -> Any:
        """Return a value that is equal for nodes that compute the same from the same tensors.

        It lets equal tables be shared: some files contain a separate copy of a rotary table for each use.
        """
        if node not in self._alike and node.op == "get_attr":
            tensor = stored(self.graph, node).detach()
            written = not tensor.is_meta and tensor.ndim > 1 and bool((tensor != tensor.flatten()[0]).any())
            self._alike[node] = (tensor.shape, tensor.cpu().numpy().tobytes()) if written else node.target
        if node not in self._alike:
            arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda one: self._canonical(one))
            self._alike[node] = (node.op, str(node.target), str(arguments))
        return hash(self._alike[node])

    def _weigh(self, pool: Pool) -> None:
        """Weight the inputs of a mean, so that a fused token counts as all the tokens that it stands for."""
        _, patches, packaged = self._left(pool.axis.block)
        if not packaged:
            return
        node = self._node[pool.node.name]
        sizes = torch.ones(pool.axis.before + patches + 1, device=device_of(self.graph))
        sizes[-1] = packaged
        weights = sizes / sizes.mean()
        rank = len(self.shapes[pool.node.args[0]])  # type: ignore[index]
        name = f"token_sizes_{node.name}_{pool.place}"
        self.graph.register_buffer(name, weights.reshape([-1] + [1] * (rank - pool.place - 1)))
        read = node.args[0]
        with self.graph.graph.inserting_before(node):
            weighed = self.graph.graph.call_function(aten.mul.Tensor, (read, self.graph.graph.get_attr(name)))
        node.update_arg(0, weighed)

    def _module(self, name: str, module: nn.Module, arguments: tuple[Any, ...]) -> Node:
        self.graph.add_submodule(name, module)
        called: Node = self.graph.graph.call_module(name, arguments)
        return called
