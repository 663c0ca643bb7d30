"""`tessera package`: seal a bundle into one file, look into it, verify it."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli import console
from tessera.cli.options import IssuerKey, JsonFlag, PassphraseFile, format_moment

if TYPE_CHECKING:
    from tessera.keystore.package import Manifest, SealedPackage

package_app = typer.Typer(help="Seal a bundle into a package; inspect and verify packages.", no_args_is_help=True)

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
    version: Annotated[int, typer.Option(min=1, help="Version, a whole number from 1.")] = 1,
    input_key: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Input key the bundle was trained with; none for plain inputs.")
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
    from tessera.cli.passphrases import new_passphrase
    from tessera.keystore.grant import save_package_secrets
    from tessera.protect import seal_bundle

    secrets_path = secrets or secrets_beside(out)
    loading.existing(bundle, "bundle")
    loading.refuse_existing(out, secrets_path)
    passphrase = new_passphrase(secrets_path.name, passphrase_file) if encrypt else None
    signer = loading.identity(issuer, "issuer", passphrase_file)
    key = loading.input_key(input_key, passphrase_file) if input_key is not None else None
    with console.progress("sealing") as advance:
        manifest, package_secrets = seal_bundle(
            bundle,
            out,
            issuer=signer,
            model=model,
            version=version,
            now_s=time.time(),
            input_key=key,
            licence_text=licence_text,
            progress=advance,
        )
    save_package_secrets(secrets_path, package_secrets, passphrase)
    document = summary(manifest) | {"file": str(out), "secrets_file": str(secrets_path)}
    console.emit(document, as_json=as_json, show=lambda: [console.fields(document)])


@package_app.command("inspect", epilog="Example: tessera package inspect digits.tessera")
def inspect(package: PackageFile, as_json: JsonFlag = False) -> None:
    """Show what a package says about itself, without checking its signature."""
    from tessera.cli.loading import existing
    from tessera.keystore.package import inspect_package

    manifest = inspect_package(existing(package, "package"))
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
        show=lambda: [console.fields(document), console.table(columns, rows)],
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
    from tessera.cli.loading import existing, issuers
    from tessera.keystore.package import open_package

    with (
        open_package(existing(package, "package"), issuers(issuer)) as sealed,
        console.progress("verifying") as advance,
    ):
        sealed.verify_digests(advance)
        if secrets is not None:
            _decrypt_all(sealed, secrets, passphrase_file)
        document = summary(sealed.manifest)
    document |= {"file": str(package), "verified": True, "decrypted": secrets is not None}
    console.emit(document, as_json=as_json, show=lambda: [console.fields(document)])


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
        "inputs": [f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in manifest.inputs],
        "outputs": [f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in manifest.outputs],
        "max_batch": manifest.max_batch,
        "tiers": [{"tier": tier.tier, "name": tier.name, "quality": dict(tier.quality)} for tier in manifest.tiers],
        "torch_version": manifest.torch_version,
    }


def _decrypt_all(sealed: "SealedPackage", secrets: Path, passphrase_file: Path | None) -> None:
    from tessera.cli.passphrases import lazily
    from tessera.keystore.grant import load_package_secrets

    keys = load_package_secrets(secrets, lazily(secrets.name, passphrase_file))
    opened = sealed.unlock(keys.content_key)
    for part in opened.tensors:
        opened.read_tensor_into(part.name, memoryview(bytearray(part.size)))
    opened.read_program()
