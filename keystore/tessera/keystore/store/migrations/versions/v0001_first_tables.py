"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_INT64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(name: str, *, primary_key: bool = False) -> "sa.Column[str]":
    return sa.Column(name, sa.Text, nullable=False, primary_key=primary_key)


def _int(name: str) -> "sa.Column[int]":
    return sa.Column(name, _INT64, nullable=False)


def _blob(name: str) -> "sa.Column[bytes]":
    return sa.Column(name, sa.LargeBinary, nullable=False)


def upgrade() -> None:
    """Create every table of the first release."""
    op.create_table("meta", _text("key", primary_key=True), _blob("value"))
    op.create_table("secrets", _text("kind", primary_key=True), _text("name", primary_key=True), _blob("envelope"))
    op.create_table("issuers", _text("key_id", primary_key=True), _blob("document"))
    _documents()
    _usage()


def _documents() -> None:
    op.create_table(
        "packages",
        _text("package_id", primary_key=True),
        _text("model"),
        _int("version"),
        _int("size_bytes"),
        _int("published_at_s"),
        _blob("manifest"),
        sa.UniqueConstraint("model", "version", name="packages_model_version"),
    )
    op.create_table("licences", _text("licence_id", primary_key=True), _text("token"), _int("installed_at_s"))
    op.create_table(
        "grants",
        sa.Column("licence_id", sa.Text, sa.ForeignKey("licences.licence_id"), primary_key=True, nullable=False),
        _text("package_id", primary_key=True),
        _text("token"),
        _int("installed_at_s"),
    )
    op.create_table("revocations", _text("issuer_id", primary_key=True), _int("number"), _text("token"))


def _usage() -> None:
    op.create_table(
        "usage",
        sa.Column("sequence", _INT64, primary_key=True, autoincrement=False, nullable=False),
        _int("time_us"),
        *map(_text, ("licence_id", "buyer_id", "package_id", "model")),
        *map(_int, ("version", "tier", "samples", "bytes_in", "compute_us")),
        *map(_text, ("request_id", "payload_digest", "session_id", "previous", "digest")),
        _int("latest_us"),
        sa.UniqueConstraint("licence_id", "request_id", name="usage_licence_request"),
    )
    op.create_index("usage_licence_time_samples", "usage", ["licence_id", "time_us", "samples"])
