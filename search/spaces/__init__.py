"""The registry of spaces: name -> how a method's space is built for one network and its ranking."""

from collections.abc import Callable

from models.structure import Structure
from search.methods import Method
from search.ranking import Ranking
from search.spaces.compact import CompactSpace
from search.spaces.gates import GateSpace
from search.spaces.space import Space

SPACES: dict[str, Callable[[Method, Structure, Ranking], Space]] = {
    "compact": lambda method, structure, ranking: CompactSpace(structure, ranking, method.axes, method.tokens),
    "gates": lambda _method, structure, ranking: GateSpace(structure, ranking),
}


def space_of(method: Method, structure: Structure, ranking: Ranking) -> Space:
    return SPACES[method.space](method, structure, ranking)
