"""`tessera model`: publish packages on a node, list them, load and unload them in its server."""

import time
from pathlib import Path
from typing import Annotated

import typer

from tessera.cli import console
from tessera.cli.options import MAX_VERSION, JsonFlag, KeystoreOption

model_app = typer.Typer(help="Publish, list, load and unload models on a node.", no_args_is_help=True)

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Model name.")]
ModelVersion = Annotated[int, typer.Option("--version", min=0, max=MAX_VERSION, help="Version; 0 means the newest.")]


@model_app.command("publish", epilog="Example: tessera model publish digits.tessera --keystore node")
def publish(
    package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="A sealed package, NAME.tessera.")],
    keystore: KeystoreOption,
    as_json: JsonFlag = False,
) -> None:
    """Verify a package and take a copy of it into the node; publishing the same package again changes nothing."""
    from tessera.cli import node

    entry = node.publish(keystore, package, now_s=time.time())
    console.emit(entry, as_json=as_json, show=lambda: [console.fields(entry)])


@model_app.command("list", epilog="Example: tessera model list --keystore node --json")
def list_models(keystore: KeystoreOption, as_json: JsonFlag = False) -> None:
    """List the published models and their state."""
    from tessera.cli import node

    entries = node.models(keystore)
    columns = ("model", "version", "state", "package_id", "size_bytes", "published", "reason")
    rows = [[entry[column] for column in columns] for entry in entries]
    console.emit({"models": entries}, as_json=as_json, show=lambda: [console.table(columns, rows)])


@model_app.command("load", epilog="Example: tessera model load digits --keystore node")
def load(model: ModelName, keystore: KeystoreOption, version: ModelVersion = 0, as_json: JsonFlag = False) -> None:
    """Decrypt a published model into the running server's memory; a licence for it must be installed."""
    _change(keystore, model, version, loaded=True, as_json=as_json)


@model_app.command("unload", epilog="Example: tessera model unload digits --keystore node")
def unload(model: ModelName, keystore: KeystoreOption, version: ModelVersion = 0, as_json: JsonFlag = False) -> None:
    """Free a model's memory in the running server; requests for it are refused until it is loaded again."""
    _change(keystore, model, version, loaded=False, as_json=as_json)


def _change(keystore: Path, model: str, version: int, *, loaded: bool, as_json: bool) -> None:
    from tessera.cli import admin, node
    from tessera.v1 import admin_pb2

    admin.demand_server(keystore)
    with admin.link(keystore) as stub:
        if loaded:
            wanted = admin_pb2.LoadModelRequest(name=model, version=version)
            changed = stub.call("LoadModel", wanted, admin_pb2.LoadModelResponse).model
        else:
            unwanted = admin_pb2.UnloadModelRequest(name=model, version=version)
            changed = stub.call("UnloadModel", unwanted, admin_pb2.UnloadModelResponse).model
    entry = node.of_message(changed)
    console.emit(entry, as_json=as_json, show=lambda: [console.fields(entry)])
