"""Where a passphrase comes from."""

from pathlib import Path

import pytest

from support.cli import passphrase_file
from tessera.cli import passphrases
from tessera.keystore.errors import Denied, Malformed, NotFound, WrongKey


def test_a_file_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is named on the command line is what was meant."""
    monkeypatch.setenv(passphrases.ENVIRONMENT, "from the environment")
    assert passphrases.passphrase("it", passphrase_file(tmp_path)).reveal() == b"correct horse battery staple"
    assert passphrases.passphrase("it").reveal() == b"from the environment"


def test_only_the_final_line_end_is_taken_off(tmp_path: Path) -> None:
    """Editors add one line end; everything else belongs to the passphrase, as for the server."""
    path = passphrase_file(tmp_path, " two\nlines ")
    assert passphrases.passphrase("it", path).reveal() == b" two\nlines "


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """The same rule as for key files, with the command that mends it."""
    path = passphrase_file(tmp_path)
    path.chmod(0o640)
    with pytest.raises(Denied) as refused:
        passphrases.passphrase("it", path)
    assert (refused.value.reason, refused.value.remedy) == ("key-file-exposed", f"chmod 600 {path}")


def test_a_systemd_credential_may_show_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd admits the service by an access list, whose mask looks like group permission."""
    path = passphrase_file(tmp_path)
    path.chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert passphrases.passphrase("it", path).reveal()


@pytest.mark.parametrize("raw", [b"", b"\n", b"x" * 5000])
def test_empty_and_oversize_files_are_refused(tmp_path: Path, raw: bytes) -> None:
    """Neither can be a passphrase that somebody chose."""
    path = passphrase_file(tmp_path)
    path.write_bytes(raw)
    with pytest.raises(Malformed):
        passphrases.passphrase("it", path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The path is in the message."""
    with pytest.raises(NotFound, match="absent"):
        passphrases.passphrase("it", tmp_path / "absent")


def test_with_nobody_to_ask_the_ways_to_give_one_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script without a terminal gets a refusal, not a prompt that waits for ever."""
    monkeypatch.delenv(passphrases.ENVIRONMENT, raising=False)
    with pytest.raises(WrongKey) as refused:
        passphrases.passphrase("the store")
    assert refused.value.reason == "wrong-passphrase"
    assert "--passphrase-file" in refused.value.remedy


def test_the_new_passphrase_never_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable holds the one that is being replaced."""
    monkeypatch.setenv(passphrases.ENVIRONMENT, "old")
    with pytest.raises(WrongKey):
        passphrases.replacement("the store")
