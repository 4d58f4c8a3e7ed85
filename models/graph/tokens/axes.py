"""Axes that count tokens, followed through a graph.

An axis of `before + patches` entries counts tokens: first some that are never removed, then all patches in their order. An operator
either leaves such an axis whole or takes it apart between the two; whatever would see the patches as a grid, one by one or in
another order raises `NotFree`, and then their number cannot change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from models.graph.tracing.tracer import is_pointwise, packet_of, pointwise, registering


class NotFree(Exception):
    """The number of tokens cannot change here, for this reason."""


@dataclass(frozen=True)
class TokenAxis:
    """before: tokens on it that stay. block: the last one before it that may remove some; None: none may. of_all: the tokens of
    all images, one image behind the other."""

    before: int
    block: int | None
    of_all: bool = False


Axes = dict[int, TokenAxis]
"""Of one tensor: the axes that count tokens."""


@dataclass(frozen=True)
class Table:
    """`reader` reads `node`, which is the same for all images and has values for single tokens along `axes` (negative: from
    the end), for the tokens of `axis`."""

    reader: Node
    node: Node
    axes: tuple[int, ...]
    axis: TokenAxis


@dataclass(frozen=True)
class Pool:
    """`node` is a mean over the tokens of `axis`, which stand at `place` of what it reads."""

    node: Node
    place: int
    axis: TokenAxis


class TokenAxes:
    """What is known so far. still: whether a node is the same for all images. images_first: whether its first dim counts them."""

    def __init__(
        self, sizes: dict[Node, Any], batch: int, patches: int, still: Callable[[Node], bool],
        images_first: Callable[[Node], bool],
    ) -> None:  # fmt: skip
        self.sizes, self.batch, self.patches, self.still, self.images_first = sizes, batch, patches, still, images_first
        self.axes: dict[Node, Any] = {}
        """Of each node that has any: its `Axes`, or those of its several outputs."""
        self.tables: list[Table] = []
        self.pools: list[Pool] = []
        self.reads_first = False
        """Of the stream of tokens the first alone is read: a class token."""

    def visit(self, node: Node) -> None:
        """Raises: NotFree."""
        if not any(self.of(source) for source in node.all_input_nodes):
            return
        rule = TOKEN_RULES.get(packet_of(node), TOKEN_RULES[pointwise] if is_pointwise(node) else None)
        if rule is None:
            raise NotFree(f"{node.name}: what {node.target} does to tokens is not known")
        if found := rule(self, node):
            self.axes[node] = found

    def of(self, node: object) -> Any:
        return self.axes.get(node, {}) if isinstance(node, Node) else {}

    def shape(self, node: Node) -> tuple[int, ...]:
        found = self.sizes[node]
        assert isinstance(found, tuple)
        return found

    def length(self, axis: TokenAxis) -> int:
        return axis.before + self.patches

    def broadcast(self, node: Node, sources: Sequence[Node]) -> Axes:
        """Side by side, aligned at their ends. What has values for single tokens and is the same for all images is a table."""
        rank, found = max(len(self.shape(source)) for source in sources), {}
        tables: dict[Node, list[tuple[int, TokenAxis]]] = {}
        for place in range(-rank, 0):
            known = {axis for source in sources if (axis := self.at(source, place))}
            if not known:
                continue
            if len(known) > 1:
                raise NotFree(f"{node.name}: joins tokens of different places")
            (axis,) = known
            found[rank + place] = axis
            for source in sources:
                shape = self.shape(source)
                if self.at(source, place) or -place > len(shape) or shape[place] == 1:
                    continue
                if not self.still(source) or axis.of_all:
                    raise NotFree(f"{node.name}: joins tokens with {source.name}, which is not known to be of tokens")
                tables.setdefault(source, []).append((place, axis))
        for source, places in tables.items():
            if len({axis for _, axis in places}) > 1:
                raise NotFree(f"{node.name}: a table of two kinds of tokens")
            self.read(Table(node, source, tuple(place for place, _ in places), places[0][1]))
        return found

    def read(self, table: Table) -> None:
        """Rows that are looked up are those of each image, and stand where the images do. Raises: NotFree."""
        if not self.images_first(table.reader) or -len(self.shape(table.reader)) in table.axes:
            raise NotFree(f"{table.reader.name}: reads a table, and its first dim does not count images")
        self.tables.append(table)

    def at(self, node: Node, place: int) -> TokenAxis | None:
        """place: from the end."""
        found: TokenAxis | None = self.of(node).get(len(self.shape(node)) + place)
        return found


Rule = Callable[[TokenAxes, Node], Any]
TOKEN_RULES: dict[Any, Rule] = {}
token_rule = registering(TOKEN_RULES)
