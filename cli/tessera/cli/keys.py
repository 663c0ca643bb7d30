"""`tessera keys`: the vendor's keys, and those of buyers by name. `tessera identity`: who a buyer is."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli import console
from tessera.cli.options import JsonFlag, PassphraseFile
from tessera.cli.reading import argument

if TYPE_CHECKING:
    from tessera.keystore.identity import PublicIdentity, Role
    from tessera.keystore.secrets import Passphrase

keys_app = typer.Typer(help="Make the vendor's keys.", no_args_is_help=True)
identity_app = typer.Typer(help="Make and show a buyer's identity.", no_args_is_help=True)

Out = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Key file to write, mode 0600; never replaced.")]
Encrypt = Annotated[bool, typer.Option("--encrypt", help="Protect the key file with a passphrase (Argon2id).")]
Name = Annotated[str, typer.Option("--name", help="Name that others will see beside the key id.")]


class KeyKind(StrEnum):
    """What `tessera keys new` makes."""

    issuer = "issuer"
    input = "input"


@keys_app.command("new", epilog="Example: tessera keys new --kind issuer --name 'Acme Vision' --out acme.key")
def new_key(
    kind: Annotated[
        KeyKind,
        typer.Option(help="issuer: signs packages and licences. input: 32 bytes that key a model's inputs."),
    ],
    out: Out,
    name: Name = "",
    encrypt: Encrypt = False,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Make an issuer key (with its public half in FILE.pub) or an input key."""
    passphrase = _chosen_passphrase(out, encrypt, passphrase_file)
    if kind is KeyKind.issuer:
        if not name:
            raise typer.BadParameter("an issuer needs one: buyers and operators will see it", param_hint="--name")
        _emit_identity(_new_identity("issuer", name, out, passphrase), out, as_json=as_json)
        return
    from tessera.cli.loading import new_file
    from tessera.keystore.keyfile import save_input_key
    from tessera.keystore.proof import input_key_id
    from tessera.keystore.secrets import InputKey

    new_file(out)
    key = InputKey.generate()
    save_input_key(out, key, passphrase)
    document = {"kind": "input", "input_key_id": input_key_id(key), "key_file": str(out)}
    console.emit(document, as_json=as_json, show=lambda: [console.fields(document)])


@identity_app.command("new", epilog="Example: tessera identity new --name 'Ada Ltd' --out ada.key")
def new_identity(
    name: Name,
    out: Out,
    encrypt: Encrypt = False,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a buyer's identity: FILE stays with you, FILE.pub goes to the vendor."""
    public = _new_identity("buyer", name, out, _chosen_passphrase(out, encrypt, passphrase_file))
    _emit_identity(public, out, as_json=as_json)


@identity_app.command("show", epilog="Example: tessera identity show ada.key.pub")
def show_identity(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A public identity, or the key file beside it.")],
    as_json: JsonFlag = False,
) -> None:
    """Show who a public identity belongs to; needs no passphrase."""
    from tessera.cli.loading import public_identity

    _emit_identity(public_identity(file), None, as_json=as_json)


@keys_app.command(
    "buyer", epilog="Example: tessera keys buyer --key master.key --copyright globex.json --out globex.key"
)
def buyer_key(
    key: Annotated[Path, typer.Option(metavar="KEY", help="The master input key that the model was trained with.")],
    record: Annotated[
        Path, typer.Option("--copyright", metavar="FILE", help="The buyer's copyright record, a JSON object.")
    ],
    out: Out,
    encrypt: Annotated[bool, typer.Option("--encrypt", help="Protect the new file with a passphrase.")] = False,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Write one buyer's own input key, for a model made for records; grants carry it already, sealed to the buyer."""
    from tessera.cli import loading
    from tessera.cli.isnn import read_record
    from tessera.cli.passphrases import new_passphrase
    from tessera.keystore.copyright import bound_key, buyer_input_key
    from tessera.keystore.keyfile import save_input_key
    from tessera.keystore.proof import input_key_id

    loading.new_file(out)
    found = read_record(record)
    master = loading.input_key(key, passphrase_file)
    own = buyer_input_key(master, found)
    save_input_key(out, own, new_passphrase(out.name, passphrase_file) if encrypt else None)
    document = {
        "kind": "input",
        "copyright": found.to_json(),
        "input_key_id": input_key_id(bound_key(own, found)),
        "key_file": str(out),
    }
    console.emit(document, as_json=as_json, show=lambda: [console.fields(document)])


def _chosen_passphrase(out: Path, encrypt: bool, file: Path | None) -> "Passphrase | None":
    from tessera.cli.passphrases import new_passphrase

    return new_passphrase(out.name, file) if encrypt or file is not None else None


def _new_identity(role: "Role", name: str, out: Path, passphrase: "Passphrase | None") -> "PublicIdentity":
    from tessera.cli.loading import new_file
    from tessera.keystore.identity import Identity
    from tessera.keystore.keyfile import save_identity

    new_file(out, out.parent / f"{out.name}.pub")
    with argument("--name", "give 1 to 64 printable characters, such as --name 'Ada Ltd'"):
        identity = Identity.generate(role, name)
    save_identity(out, identity, passphrase)
    return identity.public


def _emit_identity(public: "PublicIdentity", out: Path | None, *, as_json: bool) -> None:
    document: dict[str, Any] = {"role": public.role, "name": public.name, "key_id": public.key_id}
    if out is not None:
        document |= {"key_file": str(out), "public_file": f"{out}.pub"}
    console.emit(document, as_json=as_json, show=lambda: [console.fields(document)])
