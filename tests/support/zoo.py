"""One small file of every kind that Tessera knows, and of some that it does not: what commands are given by mistake."""

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from support import keys
from support.vendor import PASSPHRASE, Bench, make_bench
from tessera.keystore import usage
from tessera.keystore.keyfile import KdfCost, save_identity, save_input_key
from tessera.keystore.licence import LicenceFile, write_licence_file
from tessera.keystore.revocation import issue as revoke
from tessera.keystore.secrets import Passphrase


@dataclass(frozen=True)
class Zoo:
    """The folder with the files; `zoo["licence"]` is the path of one."""

    bench: Bench

    def __getitem__(self, name: str) -> Path:
        return self.bench.folder / name


FILES = (
    "package", "package.secrets", "licence", "issuer.key", "issuer.key.pub", "buyer.key", "buyer.key.pub",
    "locked.key", "input.key", "node.pub", "revocations", "usage", "receipt", "scans.npy", "floats.npy", "sample.npz",
    "picture.png", "plain.safetensors", "ca.pem", "settings.toml", "record.json", "buyers.json", "passphrase",
    "empty", "random", "words", "database",
    "bundle", "node", "folder",
)  # fmt: skip
"""Everything in the zoo; the last three are folders."""
FOLDERS = ("bundle", "node", "folder")


def make_zoo(folder: Path) -> Zoo:
    """Fill `folder`; the bundle is one in name only."""
    zoo = Zoo(make_bench(folder))
    for made, name in (
        (zoo.bench.package, "package"),
        (zoo.bench.issuer, "issuer.key"),
        (zoo.bench.buyer, "buyer.key"),
    ):
        made.rename(zoo[name])
    (folder / "digits.tessera.secrets").rename(zoo["package.secrets"])
    for name in ("acme.key.pub", "ada.key.pub"):
        (folder / name).rename(folder / name.replace("acme", "issuer").replace("ada", "buyer"))
    _documents(zoo)
    _foreign(zoo)
    return zoo


def _documents(zoo: Zoo) -> None:
    licence = keys.licence()
    write_licence_file(zoo["licence"], LicenceFile(licence.token, keys.grant(licence).token))
    save_identity(zoo["locked.key"], keys.BUYER, Passphrase(PASSPHRASE), cost=KdfCost.danger_for_tests)
    zoo["locked.key.pub"].unlink()
    save_input_key(zoo["input.key"], keys.INPUT_KEY)
    zoo["node.pub"].write_bytes(keys.NODE.public.to_json())
    zoo["revocations"].write_text(revoke(1, {"lic-9": (1, "x")}, issuer=keys.ISSUER, now_s=keys.NOW_S).token)
    records = keys.chain(2)
    checkpoint = usage.sign_checkpoint(keys.NODE.key_id, 2, records[-1].digest, 1, keys.NODE)
    usage.write_export(zoo["usage"], records, checkpoint)
    zoo["receipt"].write_text(usage.sign_receipt(records[0], keys.NODE))
    (zoo["node"] / "ca.pem").rename(zoo["ca.pem"])


def _foreign(zoo: Zoo) -> None:
    np.save(zoo["scans.npy"], np.zeros((2, 1, 8, 8), np.uint8))
    np.save(zoo["floats.npy"], np.zeros((2, 1, 8, 8), np.float32))
    np.savez(zoo["sample.npz"], images=np.zeros((40, 1, 8, 8), np.uint8), labels=np.arange(40) % 2)
    Image.new("L", (8, 8)).save(zoo["picture.png"])
    save_file({"w": np.ones((20, 20), np.float32)}, zoo["plain.safetensors"])
    zoo["settings.toml"].write_text('device = "cpu"\n')
    record = '{"owner":"Acme","buyer":"Globex","licence":"L-17"}'
    zoo["record.json"].write_text(record)
    zoo["buyers.json"].write_text(f"[{record}]")
    zoo["passphrase"].touch(mode=0o600)
    zoo["passphrase"].write_bytes(PASSPHRASE)
    zoo["empty"].touch()
    zoo["random"].write_bytes(np.random.default_rng(1).bytes(5000))
    zoo["words"].write_text("dear vendor, please find attached\n" * 200)
    database = sqlite3.connect(zoo["database"])
    database.execute("CREATE TABLE t (x)")
    database.close()
    zoo["folder"].mkdir()
    zoo["bundle"].mkdir()
    (zoo["bundle"] / "bundle.json").write_text('{"format":"tessera-bundle/1"}')
    for name in ("empty", "random", "words", "database"):
        os.chmod(zoo[name], 0o600)  # so that what is told is the content, not the mode
