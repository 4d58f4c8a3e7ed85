"""Sizes as products of atoms. An atom is one index that a network counts by: its heads, the dims of a head, neurons, images.

A dim of a tensor is an ordered list of atoms, slowest first: the 192 columns that q/k/v have for three heads of 64 may be
[3, 64], once some operation lays them out as such. Operations make atoms equal (an addition, a product over a common
dim), split them (a reshape) or fix them (whatever cannot be undone by leaving members out). What is never fixed can be cut.
"""

from collections.abc import Iterable, Sequence
from math import prod


class Atom:
    """Compare roots only (`leaves` gives roots)."""

    __slots__ = ("_same", "fixed", "normed", "parts", "size")

    def __init__(self, size: int, fixed: bool = False) -> None:
        self.size, self.fixed = size, fixed
        self.normed = False
        """A norm is taken over it: members that go change what the others are divided by."""
        self.parts: tuple[Atom, Atom] | None = None
        self._same: Atom | None = None

    def root(self) -> "Atom":
        atom = self
        while atom._same is not None:
            atom = atom._same
        return atom

    def join(self, other: "Atom") -> None:
        """Both are roots of one size, and from now on the same."""
        if self is not other:
            other._same = self
            self.fixed |= other.fixed
            self.normed |= other.normed

    def split(self, first: int) -> None:
        """Of a root: into `first` times what is left."""
        assert self.parts is None and self.size % first == 0
        self.parts = (Atom(first, self.fixed), Atom(self.size // first, self.fixed))
        for part in self.parts:
            part.normed = self.normed


Dim = list[Atom]
Dims = list[Dim]


class Mismatch(Exception):
    """Two products of atoms that have no common refinement."""


def leaves(dim: Iterable[Atom]) -> Dim:
    """The roots that a dim is made of now; atoms of size 1 count nothing, but for the batch's, which is never split."""
    found: Dim = []
    for atom in dim:
        atom = atom.root()
        if atom.parts is not None:
            found += leaves(atom.parts)
        elif atom.size != 1 or isinstance(atom, Batch):
            found.append(atom)
    return found


class Batch(Atom):
    """The images of a batch."""

    __slots__ = ()


def is_batch(dim: Iterable[Atom]) -> bool:
    return any(isinstance(atom, Batch) for atom in leaves(dim))


def size_of(dim: Iterable[Atom]) -> int:
    return prod(atom.size for atom in leaves(dim))


def fix(dim: Iterable[Atom]) -> None:
    for atom in leaves(dim):
        if not isinstance(atom, Batch):
            atom.fixed = True


def fixed(size: int) -> Dim:
    return [Atom(size, fixed=True)] if size != 1 else []


def split_off(pending: Dim, size: int) -> Dim:
    """Takes atoms from the front of `pending` (leaves; changed in place) until their product is `size`. Raises: Mismatch."""
    taken: Dim = []
    if size == 1 and pending and pending[0].size == 1:  # a batch of one image
        return [pending.pop(0)]
    while size > 1:
        pending[:] = leaves(pending)  # an atom may stand in it twice, and have been split
        if not pending:
            raise Mismatch
        atom = pending.pop(0)
        if size % atom.size == 0:
            taken.append(atom)
            size //= atom.size
        elif atom.size % size == 0 and not isinstance(atom, Batch):
            atom.split(size)
            first, rest = leaves(atom.parts or ())
            taken.append(first)
            pending.insert(0, rest)
            size = 1
        else:
            raise Mismatch
    return taken


def unify(one: Dim, other: Dim) -> None:
    """Makes two dims of one size the same, atom by atom; where that is impossible both are fixed."""
    a, b = leaves(one), leaves(other)
    try:
        while (a := leaves(a)) and (b := leaves(b)):
            if isinstance(a[0], Batch) != isinstance(b[0], Batch):
                size_one = a if a[0].size == 1 else b if b[0].size == 1 else None
                if size_one is None:
                    raise Mismatch
                size_one.pop(0)
                continue
            small = min(a[0].size, b[0].size)
            (left,), (right,) = split_off(a, small), split_off(b, small)
            left.root().join(right.root())
    except Mismatch:
        fix(one)
        fix(other)


def by_members(dim: Dim, atom: Atom) -> list[int]:
    """All indices along a dim, of whose leaves `atom` is one, member by member of it."""
    every = leaves(dim)
    place = every.index(atom)
    slower, faster = size_of(every[:place]), size_of(every[place + 1 :])
    return [
        (outer * atom.size + member) * faster + inner
        for member in range(atom.size) for outer in range(slower) for inner in range(faster)
    ]  # fmt: skip


def places(dim: Dim, kept: "dict[Atom, Sequence[int]]") -> list[int]:
    """Of the indices along a dim, those that stay when of some atoms only the members `kept` do."""
    found = [0]
    for atom in leaves(dim):
        members = kept.get(atom, range(atom.size))
        found = [place * atom.size + member for place in found for member in members]
    return found
