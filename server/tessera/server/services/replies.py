"""The appliance's own types as messages of `tessera.v1`."""

from collections.abc import Iterable
from typing import Any

from tessera.keystore import canonical
from tessera.keystore.identity import PublicIdentity
from tessera.keystore.licence import Licence
from tessera.keystore.package import Manifest, TensorSpec
from tessera.keystore.store import UsageTotals
from tessera.server.engine import ModelEntry
from tessera.v1 import admin_pb2, types_pb2

_PER_SECOND = 1_000_000


def milliseconds(time_s: float) -> int:
    """Return Unix seconds as the wire's milliseconds."""
    return int(time_s * 1000)


def node_identity(node: PublicIdentity) -> types_pb2.NodeIdentity:
    """Return the public half of the node."""
    return types_pb2.NodeIdentity(node_id=node.key_id, verify_key=node.verify_key, seal_key=node.seal_key)


def model_contract(manifest: Manifest, licence: Licence, tier: int, max_batch: int) -> types_pb2.ModelContract:
    """Return what the licence's buyer must know to call the model, at `tier`, up to `max_batch` samples a request."""
    return types_pb2.ModelContract(
        name=manifest.model,
        version=manifest.version,
        package_id=manifest.package_id,
        tier=tier,
        inputs=[_tensor(spec) for spec in manifest.inputs],
        outputs=[_tensor(spec) for spec in manifest.outputs],
        transform="" if manifest.transform is None else _json(manifest.transform),
        input_key_id=licence.terms.input_key_id or "",
        max_batch=max_batch,
    )


def published_model(entry: ModelEntry) -> admin_pb2.PublishedModel:
    """Return one published model and its state."""
    manifest = entry.manifest
    return admin_pb2.PublishedModel(
        name=manifest.model,
        version=manifest.version,
        package_id=manifest.package_id,
        state=entry.state,
        reason=entry.reason,
        size_bytes=entry.published.size_bytes,
        published_at_ms=milliseconds(entry.published.published_at_s),
        tiers=_json([{"tier": t.tier, "name": t.name, "quality": t.quality} for t in manifest.tiers]),
    )


def licence_usage(
    licence_id: str, buyer_id: str, model: str, totals: Iterable[UsageTotals], licence: Licence | None, left: int | None
) -> types_pb2.LicenceUsage:
    """Return the sums of one licence; without its licence at hand, nothing is said about a quota."""
    mine = list(totals)
    usage = types_pb2.LicenceUsage(
        licence_id=licence_id,
        buyer_id=buyer_id,
        model=model,
        requests=sum(total.requests for total in mine),
        samples=sum(total.samples for total in mine),
        bytes_in=sum(total.bytes_in for total in mine),
        compute_seconds=sum(total.compute_us for total in mine) / _PER_SECOND,
    )
    if licence is not None and licence.terms.quota is not None:
        usage.quota_samples = licence.terms.quota.samples
    if left is not None:
        usage.samples_left = left
    return usage


def _tensor(spec: TensorSpec) -> types_pb2.TensorContract:
    return types_pb2.TensorContract(
        name=spec.name, datatype=spec.datatype, shape=spec.shape, layout=spec.layout, finite=spec.finite
    )


def _json(value: Any) -> str:
    return canonical.dumps(value).decode("utf-8")
