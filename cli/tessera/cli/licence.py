"""`tessera licence`: issue, look into, install, list and revoke licences."""

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli import console
from tessera.cli.options import (
    MAX_MOMENT_S,
    IssuerKey,
    JsonFlag,
    KeystoreOption,
    PassphraseFile,
    format_duration,
    format_moment,
    parse_duration,
    parse_moment,
)
from tessera.cli.revocation import revoke

if TYPE_CHECKING:
    from tessera.keystore.licence import ExpiryPolicy, Licence, Quota
    from tessera.keystore.package import Manifest

licence_app = typer.Typer(help="Issue, inspect, install, list and revoke licences.", no_args_is_help=True)
licence_app.command(
    "revoke",
    epilog="Example: tessera licence revoke 7c9e… --issuer acme.key --list revoked.jwt --keystore node",
)(revoke)


class Period(StrEnum):
    """Over what a quota counts."""

    total = "total"
    day = "day"
    month = "month"


class Action(StrEnum):
    """What happens when a licence expires."""

    stop = "stop"
    degrade = "degrade"
    warn = "warn"


PackageOption = Annotated[Path, typer.Option("--package", metavar="FILE", help="The sealed package to license.")]
SecretsOption = Annotated[
    Path | None, typer.Option("--secrets", metavar="FILE", help="The package's keys; default PACKAGE.secrets.")
]
BuyerOption = Annotated[Path, typer.Option("--buyer", metavar="PUB", help="The buyer's public identity.")]
NodeOption = Annotated[Path, typer.Option("--node", metavar="PUB", help="The node's public identity, node.pub.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Licence file to write; never replaced.")]
ValidOption = Annotated[
    str, typer.Option("--valid", metavar="DURATION", help="How long from its start, like 30d or 12h.")
]
StartOption = Annotated[
    str | None, typer.Option("--not-before", metavar="DATE", help="Start, like 2027-01-31 (UTC); default: now.")
]
QuotaOption = Annotated[
    int | None, typer.Option("--quota", metavar="N", min=1, max=10**12, help="Samples allowed; default: no limit.")
]
PeriodOption = Annotated[Period, typer.Option("--quota-period", help="Over what the quota counts (UTC).")]
RateOption = Annotated[
    int | None, typer.Option("--rate", metavar="N", min=1, max=10**9, help="Samples a second; default: no limit.")
]
SessionsOption = Annotated[
    int, typer.Option("--sessions", min=1, max=100_000, metavar="N", help="Sessions open at the same time.")
]
TierOption = Annotated[
    str | None, typer.Option("--tier", metavar="N|NAME", help="Tier of quality, by number or name; default: the best.")
]
PolicyOption = Annotated[Action, typer.Option("--expiry-policy", help="What happens at the end of the licence.")]
GraceOption = Annotated[str, typer.Option("--grace", metavar="DURATION", help="Grace after the end, like 7d.")]
DegradeOption = Annotated[
    int | None, typer.Option("--degrade-to", min=1, max=255, metavar="N", help="Tier during grace, with degrade.")
]
CopyrightOption = Annotated[
    Path | None,
    typer.Option(
        "--copyright", metavar="FILE", help="The buyer's copyright record, for a model that was made for records."
    ),
]
LicenceFiles = Annotated[list[Path], typer.Argument(metavar="LICENCE", help="Licence files.")]


@licence_app.command(
    "issue",
    epilog="Example: tessera licence issue --issuer acme.key --package digits.tessera --buyer ada.key.pub "
    "--node node/node.pub --valid 30d --quota 2000 --out ada.licence",
)
def issue(
    issuer: IssuerKey,
    package: PackageOption,
    buyer: BuyerOption,
    node: NodeOption,
    out: OutOption,
    secrets: SecretsOption = None,
    valid: ValidOption = "365d",
    not_before: StartOption = None,
    quota: QuotaOption = None,
    quota_period: PeriodOption = Period.total,
    rate: RateOption = None,
    sessions: SessionsOption = 4,
    tier: TierOption = None,
    expiry_policy: PolicyOption = Action.stop,
    grace: GraceOption = "0s",
    degrade_to: DegradeOption = None,
    record: CopyrightOption = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Cut a licence for one buyer on one node; the keys inside are sealed to the two of them."""
    from tessera.cli import loading
    from tessera.cli.isnn import read_record
    from tessera.cli.issuing import Offer, cut
    from tessera.cli.package import quality_text, secrets_beside
    from tessera.keystore.licence import Quota

    loading.new_file(out)
    now_s = int(time.time())
    start_s = parse_moment(not_before, "--not-before") if not_before else now_s
    expires_at_s = start_s + parse_duration(valid, "--valid", min_s=1)
    if expires_at_s > MAX_MOMENT_S:
        raise typer.BadParameter("the licence would end after the year 9999", param_hint="--not-before")
    offer = Offer(
        package=package,
        secrets=secrets or secrets_beside(package),
        buyer=loading.public_identity(buyer, "buyer"),
        node=loading.public_identity(node, "node"),
        not_before_s=start_s,
        expires_at_s=expires_at_s,
        quota=Quota(quota, quota_period.value) if quota else None,
        rate_samples_per_s=rate,
        sessions=sessions,
        tier=tier,
        expiry=_expiry(expiry_policy, grace, degrade_to),
        record=read_record(record) if record is not None else None,
        passphrase_file=passphrase_file,
    )
    licence = cut(offer, out, issuer=loading.identity(issuer, "issuer", passphrase_file), now_s=now_s)
    manifest = loading.manifest(package)
    worth = _worth(licence, manifest)
    document = summary(licence) | worth | {"file": str(out)}
    told = document | {name: quality_text(quality) for name, quality in worth.items()}
    console.emit(document, as_json=as_json, show=lambda: [console.fields(told)])


@licence_app.command("inspect", epilog="Example: tessera licence inspect ada.licence --issuer acme.key.pub")
def inspect(
    file: Annotated[Path, typer.Argument(metavar="LICENCE", help="A licence file, or a bare licence token.")],
    issuer: Annotated[
        list[Path] | None, typer.Option(metavar="PUB", help="Public identity of an issuer: verify the signature.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the terms of a licence and where it stands today."""
    from tessera.cli import kinds, loading
    from tessera.cli.reading import reading
    from tessera.keystore import licence as licences

    trusted = loading.issuers(issuer or [])
    held = loading.licence_file(file)
    with reading(file, kinds.LICENCE):
        licence = (
            licences.verify(held.licence, trusted) if issuer else licences.parse_without_verification(held.licence)
        )
    standing = licences.standing(licence, time.time()).value
    document = summary(licence) | {"standing": standing, "verified": bool(issuer), "grant": held.grant is not None}
    console.emit(document, as_json=as_json, show=lambda: [console.fields(document)])


@licence_app.command("install", epilog="Example: tessera licence install ada.licence --keystore node")
def install(files: LicenceFiles, keystore: KeystoreOption, as_json: JsonFlag = False) -> None:
    """Give licences and their grants to a node, so that it can load the model and serve the buyer."""
    from tessera.cli import node

    installed = [node.install_licence(keystore, file, now_s=time.time()) for file in files]
    document = {"installed": installed}
    console.emit(document, as_json=as_json, show=lambda: [f"installed {licence_id}" for licence_id in installed])


@licence_app.command("list", epilog="Example: tessera licence list --keystore node --json")
def list_installed(keystore: KeystoreOption, as_json: JsonFlag = False) -> None:
    """List the licences installed on a node and where each stands today."""
    from tessera.cli import node

    entries = node.installed_licences(keystore, now_s=time.time())
    columns = ("licence_id", "buyer_id", "model", "tier", "expires", "standing")
    rows = [[entry[column] for column in columns] for entry in entries]
    console.emit({"licences": entries}, as_json=as_json, show=lambda: [console.table(columns, rows)])


def summary(licence: "Licence") -> dict[str, Any]:
    """Return what a person wants to know of a licence, as JSON values."""
    terms = licence.terms
    return {
        "licence_id": licence.licence_id,
        "issuer_id": licence.issuer_id,
        "buyer_id": licence.buyer_id,
        "node_id": licence.node_id,
        "model": terms.model,
        "versions": f"{terms.min_version} to {terms.max_version or 'newest'}",
        "tier": terms.tier,
        "valid_from": format_moment(licence.not_before_s),
        "expires": format_moment(licence.expires_at_s),
        "expiry_policy": terms.expiry.action,
        **({} if terms.expiry.tier is None else {"degrade_to": terms.expiry.tier}),
        "grace": format_duration(terms.expiry.grace_s),
        "quota": _quota_text(terms.quota),
        "rate_samples_per_s": terms.rate_samples_per_s,
        "sessions": terms.sessions,
        "input_key_id": terms.input_key_id,
        **({} if terms.copyright is None else {"copyright": terms.copyright.to_json()}),
    }


def _worth(licence: "Licence", manifest: "Manifest") -> dict[str, dict[str, float]]:
    """Return what the package says that the licence's tier is worth, and the one it degrades to."""
    qualities = {tier.tier: dict(tier.quality) for tier in manifest.tiers}
    worth = {"quality": qualities[licence.terms.tier]}
    if licence.terms.expiry.tier is not None:
        worth["degraded_quality"] = qualities[licence.terms.expiry.tier]
    return worth


def _quota_text(quota: "Quota | None") -> str | None:
    if quota is None:
        return None
    return f"{quota.samples} samples {'in total' if quota.period == 'total' else 'a ' + quota.period}"


def _expiry(action: Action, grace: str, degrade_to: int | None) -> "ExpiryPolicy":
    from tessera.keystore.licence import MAX_GRACE_S, ExpiryPolicy

    if action is Action.degrade and degrade_to is None:
        raise typer.BadParameter("degrade needs --degrade-to TIER", param_hint="--expiry-policy")
    if action is not Action.degrade and degrade_to is not None:
        raise typer.BadParameter("goes with --expiry-policy degrade only", param_hint="--degrade-to")
    grace_s = parse_duration(grace, "--grace", max_s=MAX_GRACE_S)
    if action is not Action.stop and not grace_s:
        raise typer.BadParameter(f"{action.value} holds for --grace DURATION, which is 0", param_hint="--expiry-policy")
    return ExpiryPolicy(action=action.value, grace_s=grace_s, tier=degrade_to)
