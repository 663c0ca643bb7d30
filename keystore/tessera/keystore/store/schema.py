"""The tables as they are now; `migrations/` holds how they came to be, and a test holds the two equal (rule S-5).

Times are integers: `…_us` microseconds and `…_s` seconds since 1970, UTC. Digests and ids are text as they stand in the
signed documents. What must be readable while the store is sealed is plain here; only `secrets.envelope` and the entry
"keyring" of `meta` are ciphertext.
"""

from sqlalchemy import Column, ForeignKey, Index, MetaData, Table, UniqueConstraint

from tessera.keystore.store.cells import BlobCell, IntegerCell, TextCell

METADATA = MetaData()

META = Table(
    "meta",
    METADATA,
    Column("key", TextCell, primary_key=True),
    Column("value", BlobCell, nullable=False),
)

SECRETS = Table(
    "secrets",
    METADATA,
    Column("kind", TextCell, primary_key=True),
    Column("name", TextCell, primary_key=True),
    Column("envelope", BlobCell, nullable=False),
)

ISSUERS = Table(
    "issuers",
    METADATA,
    Column("key_id", TextCell, primary_key=True),
    Column("document", BlobCell, nullable=False),
)

PACKAGES = Table(
    "packages",
    METADATA,
    Column("package_id", TextCell, primary_key=True),
    Column("model", TextCell, nullable=False),
    Column("version", IntegerCell, nullable=False),
    Column("size_bytes", IntegerCell, nullable=False),
    Column("published_at_s", IntegerCell, nullable=False),
    Column("manifest", BlobCell, nullable=False),
    UniqueConstraint("model", "version", name="packages_model_version"),
)

LICENCES = Table(
    "licences",
    METADATA,
    Column("licence_id", TextCell, primary_key=True),
    Column("token", TextCell, nullable=False),
    Column("installed_at_s", IntegerCell, nullable=False),
)

GRANTS = Table(
    "grants",
    METADATA,
    Column("licence_id", TextCell, ForeignKey("licences.licence_id"), primary_key=True),
    Column("package_id", TextCell, primary_key=True),
    Column("token", TextCell, nullable=False),
    Column("installed_at_s", IntegerCell, nullable=False),
)

REVOCATIONS = Table(
    "revocations",
    METADATA,
    Column("issuer_id", TextCell, primary_key=True),
    Column("number", IntegerCell, nullable=False),
    Column("token", TextCell, nullable=False),
)

USAGE = Table(
    "usage",
    METADATA,
    Column("sequence", IntegerCell, primary_key=True, autoincrement=False),
    Column("time_us", IntegerCell, nullable=False),
    Column("licence_id", TextCell, nullable=False),
    Column("buyer_id", TextCell, nullable=False),
    Column("package_id", TextCell, nullable=False),
    Column("model", TextCell, nullable=False),
    Column("version", IntegerCell, nullable=False),
    Column("tier", IntegerCell, nullable=False),
    Column("samples", IntegerCell, nullable=False),
    Column("bytes_in", IntegerCell, nullable=False),
    Column("compute_us", IntegerCell, nullable=False),
    Column("request_id", TextCell, nullable=False),
    Column("payload_digest", TextCell, nullable=False),
    Column("session_id", TextCell, nullable=False),
    Column("previous", TextCell, nullable=False),
    Column("digest", TextCell, nullable=False),
    Column("latest_us", IntegerCell, nullable=False),
    UniqueConstraint("licence_id", "request_id", name="usage_licence_request"),
    Index("usage_licence_time_samples", "licence_id", "time_us", "samples"),
)
"""`digest` is the record's own, the next one's `previous`; `latest_us` is the largest `time_us` up to this row."""
