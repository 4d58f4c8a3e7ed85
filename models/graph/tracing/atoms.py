"""Sizes as products of atoms.

An atom is one index by which a network counts: heads, the dims of a head, neurons or images.
A dim of a tensor is an ordered list of atoms, the slowest first. For example, q, k and v have 192 columns for three
heads of 64 dims. When an operation lays these columns out by heads, the dim becomes [3, 64].

An operation can make atoms equal (an addition, a product over a common dim), split an atom (a reshape), or fix an
atom (any operation after which members cannot be left out). An atom that is never fixed can be cut.
"""

from collections.abc import Iterable, Sequence
from math import prod


class Atom:
    """One index with `size` members.

    Atoms that were joined have the same root, so compare only roots (as from `leaves`).
    """

    __slots__ = ("_same", "fixed", "normed", "parts", "size")

    def __init__(self, size: int, fixed: bool = False) -> None:
        self.size, self.fixed = size, fixed
        self.normed = False
        """Whether a norm is taken over this atom.

        Then removing members changes the divisor of the remaining members.
        """
        self.parts: tuple[Atom, Atom] | None = None
        self._same: Atom | None = None

    def root(self) -> "Atom":
        atom = self
        while atom._same is not None:
            atom = atom._same
        return atom

    def join(self, other: "Atom") -> None:
        """Make two atoms the same from now on. Both must be roots of the same size."""
        if self is not other:
            other._same = self
            self.fixed |= other.fixed
            self.normed |= other.normed

    def split(self, first: int) -> None:
        """Split a root into two atoms: `first` members, times the remaining factor of its size."""
        assert self.parts is None and self.size % first == 0
        self.parts = (Atom(first, self.fixed), Atom(self.size // first, self.fixed))
        for part in self.parts:
            part.normed = self.normed


Dim = list[Atom]
Dims = list[Dim]


class Mismatch(Exception):
    """Raised when two products of atoms have no common refinement."""


def leaves(dim: Iterable[Atom]) -> Dim:
    """Return the roots of which a dim currently consists. Atoms of size 1 are left out, except the batch.

    The batch is never split.
    """
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
    """Take atoms from the front of `pending` until their product is `size`. Raises: Mismatch.

    pending: leaves; changed in place.
    """
    taken: Dim = []
    if size == 1 and pending and pending[0].size == 1:  # a batch of one image
        return [pending.pop(0)]
    while size > 1:
        pending[:] = leaves(pending)  # an atom can occur twice, and its first occurrence may have been split already
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
    """Make two dims of the same size equal, atom by atom. If this is impossible, fix both."""
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
    """Return all indices along a dim, ordered by the members of `atom`, which must be one of the dim's leaves."""
    every = leaves(dim)
    place = every.index(atom)
    slower, faster = size_of(every[:place]), size_of(every[place + 1 :])
    return [
        (outer * atom.size + member) * faster + inner
        for member in range(atom.size)
        for outer in range(slower)
        for inner in range(faster)
    ]


def places(dim: Dim, kept: "dict[Atom, Sequence[int]]") -> list[int]:
    """Return the indices along a dim that remain if only the members `kept` of some atoms remain."""
    found = [0]
    for atom in leaves(dim):
        members = kept.get(atom, range(atom.size))
        found = [place * atom.size + member for place in found for member in members]
    return found
