"""Follows the axes that count tokens through a graph.

A token axis has `before + patches` entries: first the tokens that are never removed, then all patches in their order.
An operator may keep such an axis complete, or split it between these two groups. An operator that uses the patches as
a grid, one by one, or in another order raises `NotFree`: then the number of tokens cannot change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from models.graph.tracing.tracer import is_pointwise, packet_of, pointwise, registering


class NotFree(Exception):
    """Raised when the number of tokens cannot change. The message is the reason."""


@dataclass(frozen=True)
class TokenAxis:
    """One axis that counts tokens.

    before: number of tokens at its front that are never removed.
    block: the last block before this point that may remove tokens; None if no block may.
    of_all: whether the axis holds the tokens of all images, one image behind the other.
    """

    before: int
    block: int | None
    of_all: bool = False


Axes = dict[int, TokenAxis]
"""The token axes of one tensor, by the number of the dim."""


@dataclass(frozen=True)
class Table:
    """A tensor that is the same for all images and has a value for each single token, such as a position table.

    reader: the node that reads the table.
    node: the table.
    axes: the dims of the table that count tokens, as negative numbers (from the end).
    axis: the token axis to which these dims belong.
    """

    reader: Node
    node: Node
    axes: tuple[int, ...]
    axis: TokenAxis


@dataclass(frozen=True)
class Pool:
    """A mean over tokens.

    node: the mean.
    place: the dim of its input that counts tokens.
    axis: the token axis to which this dim belongs.
    """

    node: Node
    place: int
    axis: TokenAxis


class TokenAxes:
    """The token axes that are known so far.

    still: returns whether a node is the same for all images.
    images_first: returns whether the first dim of a node counts the images.
    """

    def __init__(
        self,
        sizes: dict[Node, Any],
        batch: int,
        patches: int,
        still: Callable[[Node], bool],
        *,
        images_first: Callable[[Node], bool],
    ) -> None:
        self.sizes, self.batch, self.patches, self.still, self.images_first = sizes, batch, patches, still, images_first
        self.axes: dict[Node, Any] = {}
        """For each node with token axes: its `Axes`, or a list of the `Axes` of its outputs if it has several."""
        self.tables: list[Table] = []
        self.pools: list[Pool] = []
        self.reads_first = False
        """Whether a node reads the first token of the residual stream alone. Such a token is a class token."""

    def visit(self, node: Node) -> None:
        """Find the token axes of a node from those of its inputs. Raises: NotFree."""
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
        """Return the token axes of operands after broadcasting, which aligns their last dims.

        An operand that is the same for all images and has values for single tokens is recorded as a table.
        Raises: NotFree.
        """
        rank, found = max(len(self.shape(source)) for source in sources), {}
        tables: dict[Node, list[tuple[int, TokenAxis]]] = {}
        for place in range(-rank, 0):
            known = {axis for source in sources if (axis := self.at(source, place))}
            if not known:
                continue
            if len(known) > 1:
                raise NotFree(f"{node.name}: combines tokens of different positions")
            (axis,) = known
            found[rank + place] = axis
            for source in sources:
                shape = self.shape(source)
                if self.at(source, place) or -place > len(shape) or shape[place] == 1:
                    continue
                if not self.still(source) or axis.of_all:
                    raise NotFree(f"{node.name}: combines tokens with {source.name}, which may not hold tokens")
                tables.setdefault(source, []).append((place, axis))
        for source, places in tables.items():
            if len({axis for _, axis in places}) > 1:
                raise NotFree(f"{node.name}: reads a table with two kinds of tokens")
            self.read(Table(node, source, tuple(place for place, _ in places), places[0][1]))
        return found

    def read(self, table: Table) -> None:
        """Record a table. Raises: NotFree when the reader's first dim does not count images.

        The reduced network selects rows of the table for each image, so the result has the images as its first dim.
        """
        if not self.images_first(table.reader) or -len(self.shape(table.reader)) in table.axes:
            raise NotFree(f"{table.reader.name}: reads a table, and its first dim does not count images")
        self.tables.append(table)

    def at(self, node: Node, place: int) -> TokenAxis | None:
        """Return the token axis of a node at `place`, a negative number that counts dims from the end, or None."""
        found: TokenAxis | None = self.of(node).get(len(self.shape(node)) + place)
        return found


Rule = Callable[[TokenAxes, Node], Any]
TOKEN_RULES: dict[Any, Rule] = {}
token_rule = registering(TOKEN_RULES)
