"""The authenticated caller.

A caller is identified by the name of the access token. Everything that a caller creates belongs to this name. Callers
with other names cannot see it; they get 404.
"""

from dataclasses import dataclass

from service.api.access_tokens import SCOPES, Scope


@dataclass(frozen=True)
class Caller:
    """A caller and the scopes of the access token.

    owner: name of the token; new models, data sets and jobs belong to it.
    """

    owner: str
    scopes: frozenset[Scope]

    @property
    def sees(self) -> str | None:
        """The owner whose resources this caller may see; None if the caller may see those of all owners."""
        return None if "admin" in self.scopes else self.owner


ANYBODY = Caller("", frozenset(SCOPES))
"""The caller without a token, on a server whose operator allows anonymous access from this machine."""
