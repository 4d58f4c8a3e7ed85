"""The registry of spaces: name -> how a method's space is built for one network and its ranking."""

from collections.abc import Callable

from models.structure import Structure
from search.methods import Method, check_suits, space_for
from search.ranking import Ranking
from search.spaces.cascade import CascadeSpace
from search.spaces.compact import CompactSpace
from search.spaces.gates import GateSpace
from search.spaces.paper import PaperSpace
from search.spaces.space import Space

SPACES: dict[str, Callable[[Method, Structure, Ranking], Space]] = {
    "compact": lambda method, structure, ranking: CompactSpace(structure, ranking, method.axes, method.tokens),
    "cascade": lambda method, structure, ranking: CascadeSpace(structure, ranking, method.axes, method.tokens),
    "paper": lambda method, structure, ranking: PaperSpace(structure, ranking, method.tokens),
    "gates": lambda _method, structure, ranking: GateSpace(structure, ranking),
}


def space_of(method: Method, structure: Structure, ranking: Ranking, wanted: str | None = None) -> Space:
    """Build a method's space for one network. wanted: another of the method's spaces; None: its default space.

    Raises: UnknownName, InvalidRequest.
    """
    check_suits(method, structure)
    return SPACES[space_for(method, wanted)](method, structure, ranking)
