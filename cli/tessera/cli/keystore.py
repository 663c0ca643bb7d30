"""`tessera keystore`: the node's store of keys, licences and usage, under one master passphrase."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli import console
from tessera.cli.options import JsonFlag, KeystoreArgument, PassphraseFile, format_moment
from tessera.cli.reading import argument

if TYPE_CHECKING:
    from tessera.keystore.store import Store

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

keystore_app = typer.Typer(help="Make and keep the node's key store.", no_args_is_help=True)


@keystore_app.command("init", epilog="Example: tessera keystore init node --name node-1 --host gpu1.example.com")
def init(
    keystore: KeystoreArgument,
    name: Annotated[str, typer.Option(help="The node's name, shown beside its key id.")] = "node",
    host: Annotated[
        list[str] | None,
        typer.Option(help="DNS name or IP address for the server certificate; repeatable; localhost is always in."),
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key store: node identity, CA, empty ledger. Give node.pub to vendors and ca.pem to buyers."""
    from tessera.cli import loading
    from tessera.cli.passphrases import new_passphrase
    from tessera.keystore.identity import Identity
    from tessera.keystore.store import Store

    loading.possible_folder(keystore)
    hosts = [*LOCAL_HOSTS, *(host or [])]
    master = new_passphrase(f"the key store {keystore}", passphrase_file)
    with argument("--name", "give 1 to 64 printable characters"):
        Identity.generate("node", name)  # the store makes its own; this one only shows whether the name will do
    with argument("--host", "give a DNS name or an IP address, without a port"):
        created = Store.create(keystore, master=master, node_name=name, hosts=hosts, now_s=time.time())
    try:
        document = _described(created, keystore) | {"ca": str(keystore / "ca.pem"), "hosts": hosts}
    finally:
        created.close()
    console.emit(document, as_json=as_json, show=lambda: [console.fields(document)])


@keystore_app.command("status", epilog="Example: tessera keystore status node --json")
def status(keystore: KeystoreArgument, as_json: JsonFlag = False) -> None:
    """Show the node, whether its server runs and is unsealed, and what it holds; needs no passphrase."""
    from tessera.cli import admin, node

    with node.store(keystore) as opened:
        document = _described(opened, keystore) | {
            "issuers": dict(opened.issuer_names()),
            "models": len(opened.packages()),
            "licences": len(opened.licences()),
            "ledger_records": opened.ledger_head()[0],
            **_certificate(opened),
            "server": "stopped",
            "sealed": True,
        }
    if admin.server_is_running(keystore):
        document |= _live(keystore)
    console.emit(document, as_json=as_json, show=lambda: [console.fields(document)])


@keystore_app.command("trust", epilog="Example: tessera keystore trust node acme.key.pub")
def trust(
    keystore: KeystoreArgument,
    issuer: Annotated[list[Path], typer.Argument(metavar="PUB", help="Public identities of issuers.")],
    as_json: JsonFlag = False,
) -> None:
    """Trust an issuer: its packages may be published here and its licences are honoured."""
    from tessera.cli import loading, node

    publics = [loading.public_identity(path, "issuer") for path in issuer]
    with node.store(keystore) as opened:
        for public in publics:
            opened.trust_issuer(public)
    document = {"trusted": [{"name": public.name, "key_id": public.key_id} for public in publics]}
    console.emit(document, as_json=as_json, show=lambda: [f"trusted {p.name} {p.key_id}" for p in publics])


@keystore_app.command("unseal", epilog="Example: tessera keystore unseal node --passphrase-file pass.txt")
def unseal(keystore: KeystoreArgument, passphrase_file: PassphraseFile = None, as_json: JsonFlag = False) -> None:
    """Give the running server its master passphrase, over the operator's socket."""
    from tessera.cli import admin
    from tessera.cli.passphrases import passphrase
    from tessera.v1 import admin_pb2

    admin.demand_server(keystore)
    master = passphrase(f"the key store {keystore}", passphrase_file)
    with admin.link(keystore) as stub:
        stub.call("Unseal", admin_pb2.UnsealRequest(passphrase=master.reveal()), admin_pb2.UnsealResponse)
    _emit_seal_state(keystore, sealed=False, as_json=as_json)


@keystore_app.command("seal", epilog="Example: tessera keystore seal node")
def seal(keystore: KeystoreArgument, as_json: JsonFlag = False) -> None:
    """Make the running server forget its master key, unload every model and close every session."""
    from tessera.cli import admin
    from tessera.v1 import admin_pb2

    admin.demand_server(keystore)
    with admin.link(keystore) as stub:
        stub.call("Seal", admin_pb2.SealRequest(), admin_pb2.SealResponse)
    _emit_seal_state(keystore, sealed=True, as_json=as_json)


@keystore_app.command("rotate", epilog="Example: tessera keystore rotate node --rewrap")
def rotate(
    keystore: KeystoreArgument,
    rewrap: Annotated[bool, typer.Option("--rewrap", help="Wrap everything stored under the new term.")] = False,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Start a new term of the store's keys: new secrets are wrapped under it, old ones stay readable."""
    from tessera.cli import admin, node
    from tessera.cli.passphrases import passphrase

    admin.demand_no_server(keystore)
    with node.store(keystore) as opened:
        opened.unseal(passphrase(f"the key store {keystore}", passphrase_file))
        document = {"term": opened.rotate_term(), "rewrapped": opened.rewrap() if rewrap else 0}
    console.emit(document, as_json=as_json, show=lambda: [console.fields(document)])


@keystore_app.command("passphrase", epilog="Example: tessera keystore passphrase node --new-passphrase-file new.txt")
def change_passphrase(
    keystore: KeystoreArgument,
    new_passphrase_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read the new passphrase from FILE; else a prompt.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Change the store's master passphrase."""
    from tessera.cli import admin, node, passphrases

    admin.demand_no_server(keystore)
    with node.store(keystore) as opened:
        opened.unseal(passphrases.passphrase(f"the key store {keystore}", passphrase_file))
        opened.change_master(passphrases.replacement(f"the key store {keystore}", new_passphrase_file))
    document = {"keystore": str(keystore), "changed": True}
    console.emit(document, as_json=as_json, show=lambda: [f"the passphrase of {keystore} is changed"])


@keystore_app.command("certificate", epilog="Example: tessera keystore certificate node --host gpu2.example.com")
def certificate(
    keystore: KeystoreArgument,
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="DNS name or IP address for the certificate; repeatable; localhost is always in. Default: as before."
        ),
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Renew the server's certificate for two years, under the same CA; a running server shows it to the next client."""
    from tessera.cli import node
    from tessera.cli.passphrases import passphrase

    hosts = [*LOCAL_HOSTS, *host] if host else None
    with node.store(keystore) as opened:
        opened.unseal(passphrase(f"the key store {keystore}", passphrase_file))
        with argument("--host", "give a DNS name or an IP address, without a port"):
            opened.renew_server_certificate(hosts, now_s=time.time())
        document = {"keystore": str(keystore)} | _certificate(opened)
    console.emit(document, as_json=as_json, show=lambda: [console.fields(document)])


def _described(opened: "Store", keystore: Path) -> dict[str, Any]:
    public = opened.node
    return {
        "keystore": str(keystore),
        "name": public.name,
        "node_id": public.key_id,
        "public_file": str(keystore / "node.pub"),
    }


def _certificate(opened: "Store") -> dict[str, Any]:
    """Return what clients check of the server's certificate; None where it is lost or damaged."""
    from tessera.keystore.errors import Malformed, NotFound
    from tessera.keystore.store import tls

    try:
        found = opened.server_certificate()
        return {"hosts": list(tls.hosts_of(found)), "certificate_ends": format_moment(tls.expires_at_s(found))}
    except (Malformed, NotFound):
        return {"hosts": None, "certificate_ends": None}


def _live(keystore: Path) -> dict[str, Any]:
    from tessera.cli import admin
    from tessera.v1 import admin_pb2

    with admin.link(keystore) as stub:
        live = stub.call("GetStatus", admin_pb2.GetStatusRequest(), admin_pb2.GetStatusResponse)
    return {
        "server": "draining" if live.draining else "running",
        "sealed": live.sealed,
        "version": live.version,
        "sessions": live.sessions,
    }


def _emit_seal_state(keystore: Path, *, sealed: bool, as_json: bool) -> None:
    document = {"keystore": str(keystore), "sealed": sealed}
    console.emit(document, as_json=as_json, show=lambda: [f"{keystore} is {'sealed' if sealed else 'unsealed'}"])
