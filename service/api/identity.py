"""Who asks. A person is the name of his tokens: what he makes belongs to it, and nobody else learns that it exists."""

from dataclasses import dataclass

from service.api.access_tokens import SCOPES, Scope


@dataclass(frozen=True)
class Caller:
    """owner: the name that new things get."""

    owner: str
    scopes: frozenset[Scope]

    @property
    def sees(self) -> str | None:
        """Whose things: None for everybody's."""
        return None if "admin" in self.scopes else self.owner


ANYBODY = Caller("", frozenset(SCOPES))
"""On a server that its operator has left open to this machine."""
