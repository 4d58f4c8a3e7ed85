"""Access tokens (bearer tokens) with scopes.

The secret of a token is shown once; the database keeps only its SHA-256. Tokens are created on the machine of the
server, with `vitfit token create`.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import select

from models.errors import InvalidRequest
from service.core.errors import Forbidden, NotFound, Unauthorized
from service.core.logs import TOKEN_PREFIX
from service.db.tables import Store, TokenRow, now

Scope = Literal["read", "submit", "agent", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
IMPLIED: dict[str, tuple[Scope, ...]] = {
    "read": ("read",),
    "submit": ("read", "submit"),
    "agent": ("agent",),
    "admin": ("read", "submit", "agent", "admin"),
}
"""The scopes that each granted scope includes."""
MOST_LETTERS = 200


@dataclass(frozen=True)
class Token:
    """An access token without its secret."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    revoked_at: datetime | None

    @property
    def allows(self) -> frozenset[Scope]:
        return frozenset(allowed for given in self.scopes for allowed in IMPLIED[given])

    def to_json(self) -> dict[str, Any]:
        times = {
            "created_at": self.created_at.isoformat(),
            "revoked_at": self.revoked_at and self.revoked_at.isoformat(),
        }
        return {"id": self.id, "name": self.name, "scopes": list(self.scopes), **times}


class Tokens:
    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, name: str, scopes: tuple[str, ...]) -> tuple[Token, str]:
        """Create a token and return it with its secret, which cannot be read again later.

        Raises: InvalidRequest for an unknown scope, for no scope, or for a name that is empty or too long.
        """
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not scopes:
            raise InvalidRequest(
                f"A token needs one or more of the scopes {', '.join(SCOPES)}. "
                + (f"These scopes are unknown: {', '.join(unknown)}." if unknown else "No scope was given."),
                field="scopes",
                allowed=list(SCOPES),
            )
        if not 0 < len(name) <= MOST_LETTERS:
            raise InvalidRequest(
                f"The name of the token has {len(name)} characters. Use 1 to {MOST_LETTERS} characters.", field="name"
            )
        secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
        row = TokenRow(id=f"tok_{secrets.token_hex(6)}", name=name, digest=_digest(secret), scopes=" ".join(scopes))
        with self._store.write() as session:
            session.add(row)
        return _shown(row), secret

    def all(self) -> list[Token]:
        with self._store.read() as session:
            return [_shown(row) for row in session.scalars(select(TokenRow).order_by(TokenRow.created_at))]

    def revoke(self, token_id: str) -> Token:
        """Revoke a token; it is rejected from now on. Raises: NotFound."""
        with self._store.write() as session:
            row = session.get(TokenRow, token_id, with_for_update=True)
            if row is None:
                known = list(session.scalars(select(TokenRow.id)))
                raise NotFound("token", token_id, known)
            row.revoked_at = row.revoked_at or now()
            return _shown(row)

    def require(self, authorization: str | None, scope: Scope) -> Token:
        """Return the token in an Authorization header if it has the required scope.

        Raises: Unauthorized if the token is missing, unknown or revoked; Forbidden if it lacks the scope.
        """
        kind, _, secret = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not secret:
            raise Unauthorized(
                "This address needs an access token. Send it in the header `Authorization: Bearer vft_...`. "
                "The command `vitfit token create` makes an access token on the server's machine."
            )
        with self._store.read() as session:
            row = session.scalar(select(TokenRow).where(TokenRow.digest == _digest(secret.strip())))
        if row is None or row.revoked_at is not None:
            raise Unauthorized(
                "The access token is unknown or revoked. "
                "The command `vitfit token list` shows the valid access tokens on the server's machine."
            )
        found = _shown(row)
        if scope not in found.allows:
            raise Forbidden(
                f"The access token {found.id} has the scopes {', '.join(found.scopes)}, but this address needs the "
                f"scope {scope}. Use an access token with this scope.",
                scopes=list(found.scopes),
                needed=scope,
            )
        return found


def _digest(secret: str) -> str:
    """Return the SHA-256 of a secret. Secrets are long and random, so a hash without salt cannot be guessed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _shown(row: TokenRow) -> Token:
    return Token(row.id, row.name, tuple(row.scopes.split()), row.created_at, row.revoked_at)
