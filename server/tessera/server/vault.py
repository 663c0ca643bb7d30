"""What the node may do with secrets while the store is unsealed: open grants, sign, issue.

The node's identity is decrypted once and kept until `forget`, because every receipt needs it; nothing else is kept.
"""

import threading

from tessera.keystore import grant as grants
from tessera.keystore.errors import NotFound, TesseraError
from tessera.keystore.grant import Grant, NodeKeys, PackageSecrets
from tessera.keystore.identity import Identity
from tessera.keystore.secrets import ContentKey
from tessera.keystore.store import Store
from tessera.keystore.tiers import TierKey
from tessera.keystore.usage import UsageRecord, sign_checkpoint, sign_receipt


class Vault:
    """The store's secrets, put to their uses. Every method raises `SealedError` while the store is sealed; any
    thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._identity: Identity | None = None

    def identity(self) -> Identity:
        """Return the node's identity."""
        with self._lock:
            if self._identity is None:
                self._identity = self._store.node_identity()
            return self._identity

    def forget(self) -> None:
        """Drop the identity from memory, for sealing."""
        with self._lock:
            self._identity = None

    def open_grant(self, grant: Grant) -> NodeKeys:
        """Return the keys that a verified grant holds for this node. Raises `Denied` or `WrongKey`."""
        return grants.open_for_node(grant, self.identity())

    def content_key(self, package_id: str) -> ContentKey:
        """Return a package's key from an installed grant, or from its secrets where the store has them.

        Raises `NotFound` `grant-missing` when neither is there.
        """
        for grant in self._grants(package_id):
            return self.open_grant(grant).content_key
        secrets = self._store.package_secrets(package_id)
        if secrets is not None:
            return secrets.content_key
        raise NotFound(
            "no installed grant holds the package's key",
            reason="grant-missing",
            remedy="install a licence with its grant; the first buyer to open a session with a grant does so too",
        )

    def tier_key(self, package_id: str, tier: int | None = None) -> TierKey:
        """Return the key of a package's tier from the installed grants, or from its secrets where the store has them.

        A grant for a higher tier will do, as its key gives those below. None means the highest tier of any grant, else
        the package's top. Raises `NotFound` `grant-missing` when there is no such key.
        """
        grants_here = [grant for grant in self._grants(package_id) if grant.tier is not None]
        for grant in sorted(grants_here, key=lambda grant: grant.tier or 0, reverse=tier is None):
            key = self.open_grant(grant).tier_key if tier is None or (grant.tier or 0) >= tier else None
            if key is not None:
                return key.at(key.tier if tier is None else tier)
        secrets = self._store.package_secrets(package_id)
        if secrets is not None and secrets.tier_key is not None and (tier is None or secrets.tier_key.tier >= tier):
            return secrets.tier_key.at(secrets.tier_key.tier if tier is None else tier)
        raise NotFound(
            "no installed grant holds the key of this tier",
            reason="grant-missing",
            remedy="install a licence for this tier, or for a higher one, with its grant",
        )

    def _grants(self, package_id: str) -> list[Grant]:
        """Return the installed grants for a package that its own issuer signed: what another vendor, whom the node
        trusts as well, seals for it is no key of this package.
        """
        issuers = {package.manifest.issuer_id for package in self._store.packages() if package.package_id == package_id}
        return [
            grant
            for installed in self._store.licences()
            for grant in installed.grants
            if grant.package_id == package_id and grant.issuer_id in (issuers or {grant.issuer_id})
        ]

    def has_content_key(self, package_id: str) -> bool:
        """Tell whether `content_key` would find one."""
        try:
            self.content_key(package_id)
        except TesseraError:
            return False
        return True

    def receipt(self, record: UsageRecord) -> str:
        """Return the node's signature over a record."""
        return sign_receipt(record, self.identity())

    def checkpoint(self, now_s: float) -> str:
        """Return the node's signature over the ledger's head as it is now."""
        sequence, head = self._store.ledger_head()
        identity = self.identity()
        return sign_checkpoint(identity.key_id, sequence, head, int(now_s * 1_000_000), identity)

    def issuer(self, issuer_id: str) -> Identity:
        """Return the vendor's identity that this node issues licences as. Raises `NotFound` `issuer-absent`."""
        issuer = self._store.issuer_identity()
        if issuer is None or issuer.key_id != issuer_id:
            raise NotFound(
                "this store does not hold the issuer key of that package",
                reason="issuer-absent",
                remedy="issue the licence where the issuer key is, and install it here",
            )
        return issuer

    def package_secrets(self, package_id: str) -> PackageSecrets:
        """Return what grants for a package are made from. Raises `NotFound` `issuer-absent` when they were not
        given."""
        secrets = self._store.package_secrets(package_id)
        if secrets is None:
            raise NotFound(
                "this store does not hold the secrets of that package",
                reason="issuer-absent",
                remedy="publish the package with its secrets, or issue the licence where they are",
            )
        return secrets
