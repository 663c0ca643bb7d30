"""`tessera package`: seal a bundle into one file, look into it, verify it."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli import console, kinds
from tessera.cli.options import MAX_VERSION, IssuerKey, JsonFlag, PassphraseFile, format_moment
from tessera.cli.reading import argument, reading

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tessera.keystore.canonical import Json
    from tessera.keystore.grant import PackageSecrets
    from tessera.keystore.package import Manifest, SealedPackage

package_app = typer.Typer(help="Seal a bundle into a package; inspect and verify packages.", no_args_is_help=True)

_MODEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""What licences can name; a package alone would take more, and then nobody could be licensed to use it."""

PackageFile = Annotated[Path, typer.Argument(metavar="PACKAGE", help="A sealed package, NAME.tessera.")]


@package_app.command(
    "build",
    epilog="Example: tessera package build digits-bundle --issuer acme.key --input-key digits.key "
    "--model digits --version 1 --out digits.tessera",
)
def build(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder written by `tessera protect train`.")],
    issuer: IssuerKey,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Package to write; never replaced.")],
    model: Annotated[str, typer.Option(help="Name under which buyers will ask for the model.")],
    version: Annotated[int, typer.Option(min=1, max=MAX_VERSION, help="Version, a whole number from 1.")] = 1,
    input_key: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Input key the bundle was trained with; none for plain inputs.")
    ] = None,
    buyers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Copyright records (JSON list) of an input-sensitive network's buyers."),
    ] = None,
    secrets: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the package's keys go, mode 0600; default FILE.secrets beside --out."),
    ] = None,
    licence_text: Annotated[str, typer.Option(help="Where the licence's text is, or a line of it; signed.")] = "",
    encrypt: Annotated[bool, typer.Option("--encrypt", help="Protect the .secrets file with a passphrase.")] = False,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Encrypt and sign a bundle. Ship the package; keep its .secrets file, licences are cut from it."""
    from tessera.cli import loading
    from tessera.cli.isnn import read_records
    from tessera.cli.passphrases import new_passphrase
    from tessera.keystore.grant import save_package_secrets

    secrets_path = secrets or secrets_beside(out)
    _check_texts(model, licence_text)
    loading.new_file(out, secrets_path)
    if out.absolute() == secrets_path.absolute():
        raise typer.BadParameter("names the same file as --out", param_hint="--secrets")
    passphrase = new_passphrase(secrets_path.name, passphrase_file) if encrypt else None
    signer = loading.identity(issuer, "issuer", passphrase_file)
    key = loading.input_key(input_key, passphrase_file) if input_key is not None else None
    records = read_records(buyers) if buyers is not None else ()
    with reading(bundle, kinds.BUNDLE):
        from tessera.protect import read_bundle, seal_bundle  # bring torch: after everything that is quick to refuse

        found = read_bundle(bundle)
    with console.progress("sealing") as advance:
        manifest, package_secrets = seal_bundle(
            found,
            out,
            issuer=signer,
            model=model,
            version=version,
            now_s=time.time(),
            input_key=key,
            records=records,
            licence_text=licence_text,
            progress=advance,
        )
    save_package_secrets(secrets_path, package_secrets, passphrase)
    document = summary(manifest) | {"file": str(out), "secrets_file": str(secrets_path)}
    console.emit(document, as_json=as_json, show=lambda: _shown(document))


@package_app.command("inspect", epilog="Example: tessera package inspect digits.tessera")
def inspect(package: PackageFile, as_json: JsonFlag = False) -> None:
    """Show what a package says about itself, without checking its signature."""
    from tessera.cli import loading

    manifest = loading.manifest(package)
    document = summary(manifest) | {"file": str(package), "verified": False}
    parts = [
        {"name": part.name, "kind": part.kind, "dtype": part.dtype, "shape": list(part.shape), "size_bytes": part.size}
        for part in manifest.parts
    ]
    rows = [[part["name"], part["kind"], part["dtype"], part["shape"], part["size_bytes"]] for part in parts]
    columns = ("part", "kind", "type", "shape", "bytes")
    console.emit(
        document | {"parts": parts},
        as_json=as_json,
        show=lambda: [*_shown(document), console.table(columns, rows, title="parts")],
    )


@package_app.command(
    "verify",
    epilog="Example: tessera package verify digits.tessera --issuer acme.key.pub",
)
def verify(
    package: PackageFile,
    issuer: Annotated[list[Path], typer.Option(metavar="PUB", help="Public identity of a trusted issuer; repeatable.")],
    secrets: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The package's keys: decrypt every chunk as well.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Check signature, structure and the digest of every part; with --secrets, decrypt everything too."""
    from tessera.cli import loading
    from tessera.keystore.package import open_package

    trusted = loading.issuers(issuer)
    keys = loading.package_secrets(secrets, passphrase_file) if secrets is not None else None
    with (
        reading(package, kinds.PACKAGE),
        open_package(package, trusted) as sealed,
        console.progress("verifying") as advance,
    ):
        sealed.verify_digests(advance)
        if keys is not None:
            _decrypt_all(sealed, keys)
        document = summary(sealed.manifest)
    document |= {"file": str(package), "verified": True, "decrypted": secrets is not None}
    console.emit(document, as_json=as_json, show=lambda: _shown(document))


def secrets_beside(package: Path) -> Path:
    """Return where the keys of `package` lie unless told otherwise."""
    return package.with_name(package.name + ".secrets")


def summary(manifest: "Manifest") -> dict[str, Any]:
    """Return what a person wants to know of a manifest, as JSON values."""
    return {
        "model": manifest.model,
        "version": manifest.version,
        "package_id": manifest.package_id,
        "issuer_id": manifest.issuer_id,
        "created": format_moment(manifest.created_at_s),
        "algorithm": manifest.algorithm,
        "transform": manifest.transform,
        "input_key_id": manifest.input_key_id,
        **({"input_key_ids": list(manifest.input_key_ids)} if manifest.input_key_ids else {}),
        "inputs": [f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in manifest.inputs],
        "outputs": [f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in manifest.outputs],
        "max_batch": manifest.max_batch,
        "tiers": tiers(manifest),
        "torch_version": manifest.torch_version,
    }


def tiers(manifest: "Manifest") -> list[dict[str, Any]]:
    """Return the tiers, lowest first; `patch_bytes` is what a tier adds in the file, None where tiers have no keys."""
    patches = {int(part.name): part.size for part in manifest.patches}
    return [
        {"tier": tier.tier, "name": tier.name, "quality": dict(tier.quality), "patch_bytes": patches.get(tier.tier)}
        for tier in manifest.tiers
    ]


def _shown(document: dict[str, Any]) -> list["RenderableType"]:
    """Return a summary as a person reads it: the tiers in a table of their own."""
    rows = [
        [tier["tier"], tier["name"], quality_text(tier["quality"]), tier["patch_bytes"]] for tier in document["tiers"]
    ]
    read = document | {"transform": _transform_text(document["transform"])}
    return [
        console.fields({name: value for name, value in read.items() if name != "tiers"}),
        console.table(("tier", "name", "quality", "patch bytes"), rows, title="tiers"),
    ]


def _transform_text(steps: list["Json"] | None) -> str | list["Json"] | None:
    """Return a manifest's steps as `--transform` takes them; as they are where they are of a later release."""
    from tessera.keystore.errors import Malformed
    from tessera.transforms import TransformSpec

    try:
        return str(TransformSpec.from_json(steps)) if steps else None
    except Malformed:
        return steps


def quality_text(quality: Mapping[str, float]) -> str:
    """Return what was measured of a tier, for people."""
    return ", ".join(f"{name} {value:.4g}" for name, value in quality.items()) or "not measured"


def _check_texts(model: str, licence_text: str) -> None:
    from tessera.keystore.package import fields

    if _MODEL.fullmatch(model) is None:
        raise typer.BadParameter(
            f"{model!r} is no model name; write 1 to 64 of a-z, 0-9, '.', '_' and '-', like digits",
            param_hint="--model",
        )
    with argument("--licence-text", "leave out control characters"):
        fields.prose(licence_text, "the licence text")


def _decrypt_all(sealed: "SealedPackage", keys: "PackageSecrets") -> None:
    opened = sealed.unlock(keys.content_key)
    for part in opened.tensors:
        opened.read_tensor_into(part.name, memoryview(bytearray(part.size)))
    opened.read_program()
    for tier in range(1, 1 + (0 if keys.tier_key is None else keys.tier_key.tier)):
        assert keys.tier_key is not None
        opened.read_patch(keys.tier_key.at(tier))
