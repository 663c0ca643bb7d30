"""Issuers that a node trusts, licences and grants that it keeps, revocation lists in force (rules S-22 to S-25)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select
from sqlalchemy.dialects.sqlite import insert

from tessera.keystore import grant as grants
from tessera.keystore import licence as licences
from tessera.keystore import revocation
from tessera.keystore.errors import Conflict, Denied, Malformed
from tessera.keystore.grant import Grant
from tessera.keystore.identity import PublicIdentity, require_role
from tessera.keystore.licence import Licence
from tessera.keystore.revocation import RevocationList
from tessera.keystore.store.database import Database
from tessera.keystore.store.schema import GRANTS, ISSUERS, LICENCES, REVOCATIONS


@dataclass(frozen=True, slots=True)
class InstalledLicence:
    """A licence that this node keeps, with its grants: one for each package that it opens here."""

    licence: Licence
    grants: tuple[Grant, ...]
    """Newest first; at least one."""
    installed_at_s: int
    revoked: str | None
    """Why the issuer has revoked it, or None."""

    @property
    def grant(self) -> Grant:
        """The grant that was installed last."""
        return self.grants[0]


class Licences:
    """Who is trusted and who is licensed. Thread-safe; all of it is public, so it is readable while sealed."""

    def __init__(self, database: Database, node_id: str) -> None:
        self._database = database
        self._node_id = node_id
        self._parsed: tuple[frozenset[tuple[str, int]], dict[str, RevocationList]] = (frozenset(), {})

    def trust(self, issuer: PublicIdentity) -> None:
        """Accept what `issuer` signs from now on. Raises `Malformed` for an identity of another role."""
        require_role(issuer, "issuer")
        row = {"document": issuer.to_json()}
        statement = insert(ISSUERS).values(key_id=issuer.key_id, **row)
        with self._database.writing() as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=["key_id"], set_=row))

    def issuers(self) -> list[PublicIdentity]:
        """Return every trusted issuer."""
        with self._database.reading() as connection:
            return _issuers(connection)

    def install(self, licence: Licence, grant: Grant, *, now_s: float) -> None:
        """Keep a licence and a grant of it; a later grant for the same package replaces the former.

        Both are verified here. Raises what their `verify` raises, `Denied` when the grant is another node's, and
        `Conflict` when another licence has the same id.
        """
        with self._database.writing() as connection:
            keys = {issuer.key_id: issuer.verify_key for issuer in _issuers(connection)}
            licence = licences.verify(licence.token, keys)
            grant = grants.verify(grant.token, licence, keys)
            if grant.node_id != self._node_id:
                raise Denied("the grant is for another node", reason="grant-mismatch")
            self._install(connection, licence, grant, int(now_s))

    def installed(self, licence_id: str) -> InstalledLicence | None:
        """Return a licence that was installed, or None."""
        query = select(LICENCES).where(LICENCES.c.licence_id == licence_id)
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
            return None if row is None else self._load(connection, [row])[0]

    def all(self) -> list[InstalledLicence]:
        """Return every installed licence, in the order of installation."""
        with self._database.reading() as connection:
            query = select(LICENCES).order_by(LICENCES.c.installed_at_s, LICENCES.c.licence_id)
            return self._load(connection, connection.execute(query).all())

    def apply(self, new: RevocationList) -> None:
        """Put a revocation list in force; the list in force again changes nothing.

        It is verified here. Raises what its `verify` raises and `Conflict` ("revocation-rollback").
        """
        with self._database.writing() as connection:
            keys = {issuer.key_id: issuer.verify_key for issuer in _issuers(connection)}
            new = revocation.verify(new.token, keys)
            current = self._revocations(connection).get(new.issuer_id)
            if current is not None and current.token == new.token:
                return
            revocation.supersede(current, new)
            row = {"number": new.number, "token": new.token}
            statement = insert(REVOCATIONS).values(issuer_id=new.issuer_id, **row)
            connection.execute(statement.on_conflict_do_update(index_elements=["issuer_id"], set_=row))

    def revocation_list(self, issuer_id: str) -> RevocationList | None:
        """Return the list of an issuer that is in force, or None."""
        with self._database.reading() as connection:
            return self._revocations(connection).get(issuer_id)

    def revoked(self) -> dict[tuple[str, str], str]:
        """Return (issuer id, licence id) → reason for all that is revoked; a list speaks for its own issuer's licences,
        and two issuers may have chosen one id.
        """
        with self._database.reading() as connection:
            lists = self._revocations(connection)
        return {
            (issuer_id, licence_id): entry.reason
            for issuer_id, issued in lists.items()
            for licence_id, entry in issued.revoked.items()
        }

    def _revocations(self, connection: Connection) -> dict[str, RevocationList]:
        """Return the lists in force by issuer; parsed and verified once a change, as every request asks for them."""
        numbers = connection.execute(select(REVOCATIONS.c.issuer_id, REVOCATIONS.c.number)).all()
        in_force = frozenset((row.issuer_id, row.number) for row in numbers)
        known, lists = self._parsed
        if known != in_force:
            keys = {issuer.key_id: issuer.verify_key for issuer in _issuers(connection)}
            rows = connection.execute(select(REVOCATIONS)).all()
            lists = {row.issuer_id: revocation.verify(row.token, keys) for row in rows}
            self._parsed = in_force, lists
        return lists

    def _install(self, connection: Connection, licence: Licence, grant: Grant, now_s: int) -> None:
        known = connection.execute(select(LICENCES.c.token).where(LICENCES.c.licence_id == licence.licence_id)).scalar()
        if known is None:
            row = {"licence_id": licence.licence_id, "token": licence.token, "installed_at_s": now_s}
            connection.execute(insert(LICENCES).values(**row))
        elif known != licence.token:
            raise Conflict(
                "another licence with this id is installed", remedy="ask the issuer for a licence with a new id"
            )
        place = {"licence_id": licence.licence_id, "package_id": grant.package_id}
        value = {"token": grant.token, "installed_at_s": now_s}
        statement = insert(GRANTS).values(**place, **value)
        connection.execute(statement.on_conflict_do_update(index_elements=list(place), set_=value))

    def _load(self, connection: Connection, rows: Sequence[Row[Any]]) -> list[InstalledLicence]:
        tokens: dict[str, list[str]] = {}
        query = select(GRANTS).order_by(GRANTS.c.installed_at_s.desc(), GRANTS.c.package_id)
        if len(rows) == 1:
            query = query.where(GRANTS.c.licence_id == rows[0].licence_id)
        for row in connection.execute(query):
            tokens.setdefault(row.licence_id, []).append(row.token)
        lists = self._revocations(connection)
        return [_installed(row, tokens.get(row.licence_id, []), lists) for row in rows]


def _installed(row: Row[Any], tokens: list[str], lists: dict[str, RevocationList]) -> InstalledLicence:
    if not tokens:
        raise Malformed("keystore.db holds a licence without a grant")
    licence = licences.parse_without_verification(row.token)
    issued = lists.get(licence.issuer_id)
    entry = None if issued is None else issued.revoked.get(licence.licence_id)
    return InstalledLicence(
        licence,
        tuple(grants.parse_without_verification(token) for token in tokens),
        row.installed_at_s,
        None if entry is None else entry.reason,
    )


def _issuers(connection: Connection) -> list[PublicIdentity]:
    documents = connection.execute(select(ISSUERS.c.document).order_by(ISSUERS.c.key_id)).scalars()
    return [PublicIdentity.from_json(document) for document in documents]
