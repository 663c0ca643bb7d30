"""`tessera keys` and `tessera identity`."""

import json
import stat
from pathlib import Path

import pytest

from support.cli import PASSPHRASE, document, invoke, passphrase_file, refusal
from tessera.keystore.keyfile import load_identity, load_input_key
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import Passphrase


def test_an_issuer_key_has_a_public_half(tmp_path: Path) -> None:
    """The secret file is private, the public one names the same key."""
    out = tmp_path / "acme.key"
    made = document("keys", "new", "--kind", "issuer", "--name", "Acme", "--out", out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert load_identity(out).key_id == made["key_id"]
    assert document("identity", "show", f"{out}.pub")["key_id"] == made["key_id"]
    assert document("identity", "show", out)["role"] == "issuer"


def test_an_input_key_is_named_by_its_id(tmp_path: Path) -> None:
    """The id may be shown; the key stays in its file."""
    out = tmp_path / "input.key"
    result = invoke("keys", "new", "--kind", "input", "--out", out, "--json")
    key = load_input_key(out)
    assert json.loads(result.stdout)["input_key_id"] == input_key_id(key)
    assert key.reveal().hex() not in result.output


def test_no_key_is_ever_replaced(tmp_path: Path) -> None:
    """A lost issuer key loses every package, so nothing overwrites one."""
    out = tmp_path / "ada.key"
    document("identity", "new", "--name", "Ada", "--out", out)
    before = out.read_bytes()
    error = refusal("identity", "new", "--name", "Ada", "--out", out)
    assert error["reason"] == "conflict"
    assert out.read_bytes() == before


@pytest.mark.slow
def test_an_encrypted_key_needs_its_passphrase(tmp_path: Path) -> None:
    """--passphrase-file locks the key file."""
    out = tmp_path / "ada.key"
    document("identity", "new", "--name", "Ada", "--out", out, "--passphrase-file", passphrase_file(tmp_path))
    assert load_identity(out, lambda: Passphrase(PASSPHRASE.encode())).public.name == "Ada"
    assert b'"protection":"none"' not in out.read_bytes()


def test_an_issuer_without_a_name_is_a_usage_error(tmp_path: Path) -> None:
    """Operators see the name when they decide whom to trust."""
    assert invoke("keys", "new", "--kind", "issuer", "--out", tmp_path / "x").exit_code == 2


def test_people_get_lines_instead_of_json(tmp_path: Path) -> None:
    """Without --json the same facts come as a listing."""
    result = invoke("identity", "new", "--name", "Ada [bold]", "--out", tmp_path / "ada.key")
    assert result.exit_code == 0
    assert "Ada [bold]" in result.stdout
