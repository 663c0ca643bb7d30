"""How to go on by hand in the folder that `--keep` left."""

import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path


def commands_to_go_on(folder: Path) -> Iterator[str]:
    """Yield lines that can be pasted into a shell, one command each, with what they do as comments."""
    place = shlex.quote(str(folder.absolute()))
    yield ""
    yield "# To go on by hand: start the server again, in the background, and wait until it serves"
    beside_python = Path(sys.executable).parent
    if shutil.which("tessera") != str(beside_python / "tessera"):
        yield f"export PATH={shlex.quote(str(beside_python))}:$PATH"
    yield f"cd {place}"
    yield "tessera serve node --threads 1 --passphrase-file passphrase 2> server.log &"
    yield "until tessera health --ca node/ca.pem > health.log 2>&1; do sleep 0.2; done"
    yield "# as Ada: ten scans, with a receipt for each request"
    yield (
        "tessera infer --ca node/ca.pem --identity ada/ada.key --licence ada/ada.licence "
        "--model digits --receipts ada/receipts scans.npy"
    )
    yield "# as the operator: what was used, and the proof for it"
    yield "tessera usage report --keystore node"
    yield "tessera usage export --keystore node --out again.jsonl"
    yield "tessera usage verify again.jsonl --node node/node.pub"
    yield "# as the vendor: look into the package, revoke Bo's licence"
    yield "tessera package inspect vendor/digits.tessera"
    yield "tessera licence inspect bo/bo.licence --issuer vendor/acme.key.pub"
    yield "tessera licence revoke bo/bo.licence --issuer vendor/acme.key --list revoked.jwt --keystore node"
    yield "# stop: the server drains and exits"
    yield "kill %1; wait"
