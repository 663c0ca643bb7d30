"""The store of a node: barrier, packages, licences, usage ledger and TLS in one directory (docs/spec.md, S rules).

Needs SQLAlchemy, Alembic and `cryptography`, which the buyer's light install does not have.
"""

from tessera.keystore.store.barrier import TermInfo
from tessera.keystore.store.ledger import Appended, UsageTotals
from tessera.keystore.store.licences import InstalledLicence
from tessera.keystore.store.packages import PublishedPackage
from tessera.keystore.store.store import Store

__all__ = ["Appended", "InstalledLicence", "PublishedPackage", "Store", "TermInfo", "UsageTotals"]
