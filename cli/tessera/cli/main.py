"""The `tessera` command: what there is, and the entry point."""

from typing import Annotated

import typer

from tessera.cli import console
from tessera.cli.audit import audit
from tessera.cli.boundary import BoundaryGroup
from tessera.cli.demo.command import demo
from tessera.cli.encrypt import encrypt
from tessera.cli.fingerprint import fingerprint, identify
from tessera.cli.health import health
from tessera.cli.infer import infer
from tessera.cli.keys import identity_app, keys_app
from tessera.cli.keystore import keystore_app
from tessera.cli.licence import licence_app
from tessera.cli.lock import lock
from tessera.cli.model import model_app
from tessera.cli.options import JsonFlag
from tessera.cli.package import package_app
from tessera.cli.protect import protect_app
from tessera.cli.serve import serve
from tessera.cli.usage import usage_app

app = typer.Typer(
    name="tessera",
    cls=BoundaryGroup,
    epilog="Every command takes --help. Exit status: 0 done, 1 refused or failed, 2 usage.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _tell_version(asked: bool) -> None:
    if asked:
        from tessera.client._version import __version__

        print(f"tessera {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    """Models that work for licensed buyers only: protect, package, license, serve, meter."""


VENDOR, OPERATOR, BUYER, ALL = "Vendor", "Operator", "Buyer", "Everyone"

protect_app.command(
    "encrypt",
    epilog="Example: tessera protect encrypt digits-bundle --recipe digits --key digits.key --budget 0.3 --out tiered",
)(encrypt)
protect_app.command(
    "lock",
    epilog="Example: tessera protect lock digits-bundle --old-key digits.key --key ada-input.key --out ada-bundle",
)(lock)
protect_app.command(
    "audit", epilog="Example: tessera protect audit digits-bundle --recipe digits --key digits.key --out digits-audit"
)(audit)
protect_app.command(
    "fingerprint",
    epilog="Example: tessera protect fingerprint digits-bundle --key master.key --record globex.json --out globex-copy",
)(fingerprint)
protect_app.command(
    "identify",
    epilog="Example: tessera protect identify leaked.safetensors --original digits-bundle --key master.key "
    "--buyers buyers.json",
)(identify)
app.add_typer(keys_app, name="keys", rich_help_panel=VENDOR)
app.add_typer(protect_app, name="protect", rich_help_panel=VENDOR)
app.add_typer(package_app, name="package", rich_help_panel=VENDOR)
app.add_typer(licence_app, name="licence", rich_help_panel=VENDOR)
app.add_typer(keystore_app, name="keystore", rich_help_panel=OPERATOR)
app.command("serve", rich_help_panel=OPERATOR, epilog="Example: tessera serve node --listen 0.0.0.0:8001")(serve)
app.add_typer(model_app, name="model", rich_help_panel=OPERATOR)
app.add_typer(usage_app, name="usage", rich_help_panel=OPERATOR)
app.add_typer(identity_app, name="identity", rich_help_panel=BUYER)
app.command(
    "infer",
    rich_help_panel=BUYER,
    epilog="Example: tessera infer --server node:8001 --ca ca.pem --identity ada.key --licence ada.licence "
    "--model digits scans.npy",
)(infer)
app.command("health", rich_help_panel=ALL, epilog="Example: tessera health --server node:8001 --ca ca.pem")(health)
app.command("demo", rich_help_panel=ALL, epilog="Example: tessera demo --keep demo-out --json demo.json")(demo)


@app.command("version", rich_help_panel=ALL, epilog="Example: tessera version --json")
def version(as_json: JsonFlag = False) -> None:
    """Print the versions of Tessera and of Python."""
    import platform

    from tessera.client._version import __version__

    document = {"tessera": __version__, "python": platform.python_version(), "platform": platform.platform()}
    console.emit(document, as_json=as_json, show=lambda: [console.fields(document)])


def main() -> None:
    """Run the command line; never returns."""
    app()
