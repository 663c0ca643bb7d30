"""The guide for application developers is run as it stands."""

import os
import re
from pathlib import Path

import pytest

from support import keys
from support.background import Background, file
from tessera.keystore.keyfile import save_identity
from tessera.keystore.licence import write_licence_file

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "client.md"


@pytest.mark.slow
def test_every_block_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Top to bottom, in one namespace, against a real appliance and the files the guide speaks of."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 7
    with Background(tmp_path) as site:
        monkeypatch.chdir(tmp_path)
        save_identity(tmp_path / "me.key", keys.BUYER)
        write_licence_file(tmp_path / "digits.licence", file(site))
        (tmp_path / "ca.pem").write_bytes(site.root_certificates)
        names: dict[str, object] = {"__name__": "guide"}
        for number, block in enumerate(blocks):
            source = block.replace("localhost:8001", site.target)
            exec(compile(source, f"{GUIDE.name} block {number}", "exec"), names)
    assert "samples used" in capsys.readouterr().out
    assert os.stat(tmp_path / "me.key").st_mode & 0o077 == 0
