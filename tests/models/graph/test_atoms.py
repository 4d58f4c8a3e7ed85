"""Tests of sizes as products of atoms."""

import pytest

from models.graph.tracing.atoms import Atom, Batch, Mismatch, leaves, places, size_of, split_off, unify


def sizes(dim: list[Atom]) -> list[int]:
    return [atom.size for atom in leaves(dim)]


def test_a_reshape_splits_what_it_lays_out_and_takes_what_fits() -> None:
    columns = [Atom(192)]
    pending = list(columns)
    assert [sizes(split_off(pending, size)) for size in (3, 1, 64)] == [[3], [], [64]]
    assert sizes(columns) == [3, 64]


def test_two_dims_that_are_added_are_split_alike_and_become_one() -> None:
    heads, flat = [Atom(3), Atom(64)], [Atom(192)]
    unify(flat, heads)
    assert leaves(flat) == leaves(heads) and sizes(flat) == [3, 64]


def test_what_has_no_common_parts_is_fixed_on_both_sides() -> None:
    one, other = [Atom(4), Atom(6)], [Atom(6), Atom(4)]
    unify(one, other)
    assert all(atom.fixed for atom in leaves(one + other)) and sizes(one) == [4, 6]


def test_fixed_is_passed_on_to_parts_and_to_equals() -> None:
    whole = Atom(12, fixed=True)
    whole.split(3)
    free = [Atom(3), Atom(4)]
    unify([whole], free)
    assert all(atom.fixed for atom in leaves(free))


def test_the_batch_is_never_split_even_of_one_image() -> None:
    with pytest.raises(Mismatch):
        split_off([Batch(11), Atom(2)], 22 // 11 * 2)
    pending = [Batch(1), Atom(64)]
    assert isinstance(split_off(pending, 1)[0], Batch) and size_of(pending) == 64


def test_an_atom_that_stands_twice_in_a_dim_is_split_in_both_places() -> None:
    side = Atom(6)
    pending: list[Atom] = [side, side]
    assert [sizes(split_off(pending, size)) for size in (2, 3, 2, 3)] == [[2], [3], [2], [3]]


def test_the_places_of_kept_members_along_a_dim_of_three_atoms() -> None:
    three, heads, dim = Atom(3), Atom(4), Atom(2)
    assert places([three, heads, dim], {heads: [1, 3]}) == [2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23]
