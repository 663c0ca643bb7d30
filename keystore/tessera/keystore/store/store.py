"""The store of one node: everything that must outlive the process, in one directory (docs/spec.md, S rules).

DIR/keystore.db                 secrets (wrapped), issuers, packages, licences, usage; SQLite
DIR/models/<package id>.tessera the sealed packages
DIR/node.pub  DIR/ca.pem        public: the node's identity, and the authority that buyers' clients trust
DIR/tls/server.pem, server.key  what the server shows and proves

store = Store.open(directory)   sealed: packages, licences and usage can be read, no secret
store.unseal(passphrase)        WrongKey, or every secret can be read
store.seal(); store.close()
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tessera.keystore._files import PRIVATE_MODE, PUBLIC_MODE, read_limited, write_atomically
from tessera.keystore.errors import Conflict, NotFound, Tampered
from tessera.keystore.grant import Grant, PackageSecrets
from tessera.keystore.identity import Identity, PublicIdentity, require_role
from tessera.keystore.keyfile import KdfCost
from tessera.keystore.licence import Licence
from tessera.keystore.revocation import RevocationList
from tessera.keystore.secrets import MasterKey, Passphrase, SecretBytes
from tessera.keystore.store import meta, tls
from tessera.keystore.store.barrier import Barrier, TermInfo
from tessera.keystore.store.database import Database
from tessera.keystore.store.files import close_to_others, make_private, storage_errors
from tessera.keystore.store.ledger import Appended, Ledger, UsageTotals
from tessera.keystore.store.licences import InstalledLicence, Licences
from tessera.keystore.store.packages import Packages, PublishedPackage
from tessera.keystore.store.upgrade import upgrade
from tessera.keystore.usage import UsageDraft, UsageRecord

DATABASE = "keystore.db"
MODELS = "models"
NODE_FILE = "node.pub"
CA_FILE = "ca.pem"
TLS_FOLDER = "tls"
SERVER_CERTIFICATE = "server.pem"
SERVER_KEY = "server.key"
MAX_CERTIFICATE_BYTES = 65_536
DEFAULT_HOSTS = ("localhost", "127.0.0.1", "::1")

NODE_IDENTITY, ISSUER_IDENTITY, PACKAGE_SECRETS, TLS_CA = (
    "node-identity",
    "issuer-identity",
    "package-secrets",
    "tls-ca",
)
"""Kinds of secrets that the store itself writes; the first, second and fourth have the one name "main"."""
MAIN = "main"


class Store:
    """One node's store. Thread-safe, and several processes may have it open. Close it, or use it as a context manager.

    What concerns public things works while sealed; the methods on secrets raise `SealedError` then. Every method raises
    `Unavailable` when the database cannot be read or written, `Tampered` or `Malformed` when what it holds is not ours.
    """

    def __init__(self, directory: Path, database: Database, node: PublicIdentity) -> None:
        self.directory = directory
        """Where the store lies."""
        self.node = node
        """The node's public identity; `node.key_id` is the node id."""
        self._database = database
        self._barrier = Barrier(database, node.key_id)
        self._licences = Licences(database, node.key_id)
        self._packages = Packages(database, directory / MODELS, self.issuers)
        self._ledger = Ledger(database, node.key_id)

    @classmethod
    def create(
        cls,
        directory: Path | str,
        *,
        master: Passphrase | MasterKey,
        node_name: str,
        hosts: Sequence[str] = DEFAULT_HOSTS,
        now_s: float,
        cost: KdfCost = KdfCost.moderate,
    ) -> Self:
        """Make a store with a fresh node identity and certificate authority, and return it unsealed.

        `cost` is what a guess at the passphrase costs. Raises `Conflict` ("already-initialised") when there is a store,
        `Malformed` for a node name or host outside the rules; a store that was not finished is made anew.
        """
        from tessera.keystore.store.creation import create_files

        directory = Path(directory)
        create_files(directory, master, Identity.generate("node", node_name), hosts, now_s, cost)
        store = cls.open(directory)
        try:
            store.unseal(master)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open(cls, directory: Path | str) -> Self:
        """Open the store, sealed, after bringing its tables up to date.

        Raises `NotFound` ("not-initialised"), `Conflict` ("store-newer"), `Malformed` or `Tampered` when keystore.db is
        something else, `Denied` when others have access to it and that cannot be changed.
        """
        directory = Path(directory)
        path = directory / DATABASE
        with storage_errors("the key store's directory"):
            present = path.is_file()
        if not present:
            raise NotFound("there is no key store here", reason="not-initialised", remedy="run: tessera keystore init")
        for place in (directory, *directory.glob(f"{DATABASE}*")):
            close_to_others(place)
        database = Database(path)
        try:
            upgrade(database)
            with database.reading() as connection:
                node = PublicIdentity.from_json(meta.require(connection, meta.NODE))
            require_role(node, "node")
            return cls(directory, database, node)
        except BaseException:
            database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Seal the store and close its files; may be called twice."""
        self._barrier.seal()
        self._database.close()

    @property
    def sealed(self) -> bool:
        """Whether the master key has yet to be given."""
        return self._barrier.sealed

    def unseal(self, master: Passphrase | MasterKey) -> None:
        """Make the secrets readable. Raises `WrongKey` ("wrong-passphrase" or "wrong-key") and stays as it was."""
        self._barrier.unseal(master)

    def seal(self) -> None:
        """Drop every key from memory; may be called twice."""
        self._barrier.seal()

    # --- secrets: every method raises SealedError while sealed ---

    def node_identity(self) -> Identity:
        """Return the node's identity with its secret half."""
        identity = Identity.from_secret("node", self.node.name, self._barrier.secret(NODE_IDENTITY, MAIN))
        if identity.public != self.node:
            raise Tampered("the node's public identity does not belong to its secret")
        return identity

    def issuer_identity(self) -> Identity | None:
        """Return the issuer identity that this node signs licences with, or None when it was not given one."""
        try:
            secret = self._barrier.secret(ISSUER_IDENTITY, MAIN)
        except NotFound:
            return None
        names = self.issuer_names()
        identity = Identity.from_secret("issuer", "issuer", secret)
        return Identity.from_secret("issuer", names.get(identity.key_id, "issuer"), secret)

    def set_issuer_identity(self, identity: Identity) -> None:
        """Let this node sign licences as `identity`, and trust it. Raises `Conflict` when it signs as another one."""
        require_role(identity.public, "issuer")
        present = self.issuer_identity()
        if present is not None and present.key_id != identity.key_id:
            raise Conflict("this store holds another issuer's key already")
        self.trust_issuer(identity.public)
        self._barrier.put(ISSUER_IDENTITY, MAIN, identity.export_secret())

    def package_secrets(self, package_id: str) -> PackageSecrets | None:
        """Return what grants for a package are made from, or None when it was never given."""
        try:
            return PackageSecrets.from_secret(self._barrier.secret(PACKAGE_SECRETS, package_id))
        except NotFound:
            return None

    def put_package_secrets(self, secrets: PackageSecrets) -> None:
        """Keep what grants for a package are made from."""
        self._barrier.put(PACKAGE_SECRETS, secrets.package_id, secrets.to_secret())

    def put_secret(self, kind: str, name: str, secret: SecretBytes) -> None:
        """Write a secret, in place of the former one of that kind and name; durable on return."""
        self._barrier.put(kind, name, secret)

    def secret(self, kind: str, name: str) -> SecretBytes:
        """Return a secret. Raises `NotFound`, or `Tampered` when it was changed on the disk."""
        return self._barrier.secret(kind, name)

    def has_secret(self, kind: str, name: str) -> bool:
        """Tell whether there is a secret of that kind and name."""
        return name in self._barrier.names(kind)

    def secret_names(self, kind: str) -> list[str]:
        """Return the names of all secrets of a kind, sorted."""
        return self._barrier.names(kind)

    def rotate_term(self) -> int:
        """Begin a new term and return its number; secrets are wrapped in it from now on, older terms stay readable."""
        return self._barrier.rotate_term()

    def rewrap(self) -> int:
        """Wrap every secret in the newest term, forget the older terms, and return how many secrets that concerned."""
        return self._barrier.rewrap()

    def terms(self) -> list[TermInfo]:
        """Return every term, oldest first, without its key."""
        return self._barrier.terms()

    def change_master(self, master: Passphrase | MasterKey, *, cost: KdfCost = KdfCost.moderate) -> None:
        """Wrap the keyring under another master key or passphrase; other processes must unseal again (rule S-13)."""
        self._barrier.change_master(master, cost)

    def renew_server_certificate(self, hosts: Sequence[str] | None = None, *, now_s: float) -> None:
        """Replace the server's key and certificate; `hosts` are by default those of the present certificate."""
        key = self._barrier.secret(TLS_CA, MAIN)
        folder = self.directory / TLS_FOLDER
        if hosts is None:
            hosts = tls.hosts_of(self.server_certificate())
        with self._database.reading() as connection:
            certificate = meta.require(connection, meta.CA_CERTIFICATE)
        write_server_files(folder, tls.issue_server_certificate(tls.Credentials(certificate, key), hosts, now_s=now_s))

    # --- what is public: works sealed and unsealed ---

    def server_certificate(self) -> bytes:
        """Return the server's certificate in PEM. Raises `NotFound` when the folder `tls` is lost."""
        return read_limited(self.directory / TLS_FOLDER / SERVER_CERTIFICATE, max_bytes=MAX_CERTIFICATE_BYTES)

    def trust_issuer(self, public: PublicIdentity) -> None:
        """Accept packages, licences and revocation lists of an issuer. Raises `Malformed` for another role."""
        self._licences.trust(public)

    def issuers(self) -> Mapping[str, bytes]:
        """Return key id → Ed25519 public key of every trusted issuer."""
        return {issuer.key_id: issuer.verify_key for issuer in self._licences.issuers()}

    def issuer_names(self) -> dict[str, str]:
        """Return key id → name of every trusted issuer; names are labels, not proof of anything."""
        return {issuer.key_id: issuer.name for issuer in self._licences.issuers()}

    def publish(self, path: Path | str, *, now_s: float) -> PublishedPackage:
        """Verify the package at `path` with every digest and keep a copy; the same package again changes nothing.

        Raises what `open_package` raises, and `Conflict` when another package has its model and version.
        """
        return self._packages.publish(Path(path), now_s=now_s)

    def packages(self) -> list[PublishedPackage]:
        """Return every published package, by model and version."""
        return self._packages.all()

    def package(self, model: str, version: int = 0) -> PublishedPackage:
        """Return one package; version 0 means the newest. Raises `NotFound` ("model-unknown")."""
        return self._packages.find(model, version)

    def install_licence(self, licence: Licence, grant: Grant, *, now_s: float) -> None:
        """Verify and keep a licence with a grant of it; a later grant for the same package replaces the former.

        Raises what verifying raises, `Denied` ("grant-mismatch") for another node's grant, `Conflict` when another
        licence has the id.
        """
        self._licences.install(licence, grant, now_s=now_s)

    def installed(self, licence_id: str) -> InstalledLicence | None:
        """Return an installed licence, or None."""
        return self._licences.installed(licence_id)

    def licences(self) -> list[InstalledLicence]:
        """Return every installed licence, in the order of installation."""
        return self._licences.all()

    def apply_revocations(self, new: RevocationList) -> None:
        """Verify a revocation list and put it in force. Raises `Conflict` ("revocation-rollback") for an older one."""
        self._licences.apply(new)

    def revocation_list(self, issuer_id: str) -> RevocationList | None:
        """Return the list of an issuer that is in force, or None."""
        return self._licences.revocation_list(issuer_id)

    def revoked(self) -> dict[tuple[str, str], str]:
        """Return (issuer id, licence id) → reason for every revoked licence."""
        return self._licences.revoked()

    def append_usage(self, drafts: Sequence[UsageDraft]) -> list[Appended]:
        """Record usage in one transaction that is on the disk on return; one result for each draft, in their order.

        A known licence and request id brings back its first record, uncharged, with `conflict` set when the payload
        differs.
        Raises `Unavailable` ("ledger-unavailable") when nothing could be recorded.
        """
        return self._ledger.append(drafts)

    def find_usage(self, licence_id: str, request_id: str) -> UsageRecord | None:
        """Return the record of a licence's request id, or None."""
        return self._ledger.find(licence_id, request_id)

    def usage_records(self, from_sequence: int = 1, limit: int = 1000) -> list[UsageRecord]:
        """Return up to `limit` records (1 to 100,000) from `from_sequence` on, in order."""
        return self._ledger.records(from_sequence, limit)

    def ledger_head(self) -> tuple[int, str]:
        """Return the last record's sequence and digest; 0 and the genesis digest before the first."""
        return self._ledger.head()

    def samples_used(self, licence_id: str, since_us: int) -> int:
        """Return the samples that a licence was charged for at or after `since_us` (microseconds since 1970)."""
        return self._ledger.samples_used(licence_id, since_us)

    def usage_totals(self, licence_id: str | None = None) -> list[UsageTotals]:
        """Return what every licence, or the one named, has used, by licence and model."""
        return self._ledger.totals(licence_id)

    def clock_mark_us(self) -> int:
        """Return the latest time ever recorded or noted, in microseconds since 1970; 0 before the first."""
        return self._ledger.clock_mark_us()

    def note_time(self, time_us: int) -> None:
        """Remember `time_us` if it is later than all before; a clock set back is then noticed after a restart."""
        self._ledger.note_time(time_us)


def write_server_files(folder: Path, server: tls.Credentials) -> None:
    """Put the server's key (0600) and certificate in place, the key first."""
    make_private(folder)
    write_atomically(folder / SERVER_KEY, server.key.reveal(), mode=PRIVATE_MODE, overwrite=True)
    write_atomically(folder / SERVER_CERTIFICATE, server.certificate, mode=PUBLIC_MODE, overwrite=True)
