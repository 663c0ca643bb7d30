"""What a file is told to be, and how an error of a room becomes one that names the file."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.zoo import Zoo, make_zoo
from tessera.cli import kinds
from tessera.cli.reading import argument, explaining, reading
from tessera.keystore.errors import Denied, Malformed, NotFound, Tampered, TesseraError, Unavailable, WrongKey

WORDS = {
    "package": "a sealed package",
    "package.secrets": "a package's secrets file",
    "licence": "a licence file",
    "issuer.key": "the key file of an identity",
    "locked.key": "the key file of an identity",
    "input.key": "an input key",
    "buyer.key.pub": "a public identity",
    "revocations": "a revocation list",
    "usage": "a usage export",
    "receipt": "a usage receipt",
    "scans.npy": "a .npy array",
    "sample.npz": "a zip archive or a torch checkpoint",
    "picture.png": "a PNG image",
    "ca.pem": "a certificate",
    "empty": "an empty file",
    "database": "a database file",
    "bundle": "the folder of a bundle",
    "node": "the folder of a key store",
    "folder": "a folder",
    "random": None,
    "words": None,
    "absent": None,
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """One of every kind."""
    return make_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.mark.parametrize("name", WORDS)
def test_a_file_is_recognised_by_what_is_in_it(zoo: Zoo, name: str) -> None:
    """Its name plays no part; what we do not know is not guessed at."""
    assert kinds.recognised(zoo[name]) == WORDS[name]


@given(raw=st.binary(max_size=300) | st.text(max_size=100).map(str.encode) | st.from_regex(rb"[{\[]{1,20}.{0,50}"))
@settings(max_examples=200, deadline=None)
def test_recognition_never_fails(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    """It only serves messages, so it must not make one worse."""
    path = tmp_path_factory.mktemp("raw") / "x"
    path.write_bytes(raw)
    assert kinds.recognised(path) is None or kinds.recognised(path)


def told(error: TesseraError, path: Path, kind: kinds.Kind = kinds.LICENCE) -> TesseraError:
    """Return what becomes of an error raised while `path` is read."""
    with pytest.raises(type(error)) as caught, reading(path, kind):
        raise error
    assert caught.value is error
    assert str(error) == error.public
    return error


def test_another_kind_is_called_by_its_name(zoo: Zoo) -> None:
    """The room's own words about bytes are of no use then."""
    path = zoo["issuer.key"]
    error = told(Malformed("a compact JWS has three parts", reason="licence-malformed"), path)
    assert error.public == f"{path} is the key file of an identity, not a licence file"
    assert (error.reason, error.remedy) == ("licence-malformed", kinds.LICENCE.remedy)


def test_an_unknown_file_keeps_the_detail(zoo: Zoo) -> None:
    """So that who made it can find what is wrong."""
    error = told(Malformed("not JSON"), zoo["words"])
    assert error.public == f"{zoo['words']} is not a licence file: not JSON"


def test_a_damaged_file_of_the_right_kind_is_called_damaged(zoo: Zoo) -> None:
    """It may also come from a newer release."""
    error = told(Malformed("jti is missing"), zoo["licence"])
    assert error.public == f"{zoo['licence']} is damaged or not a licence file of this version: jti is missing"


@pytest.mark.parametrize(
    "error",
    [
        WrongKey("it does not open"),
        Denied("no"),
        NotFound("gone"),
        Unavailable("disk full"),
        Tampered("it does not hold"),
    ],
)
def test_other_errors_get_the_name_and_a_remedy(zoo: Zoo, error: TesseraError) -> None:
    """Class and reason stay what they are; a remedy that is there stays too."""
    path = zoo["licence"]
    sentence, reason = error.public, error.reason
    told(error, path)
    assert error.public == f"{path}: {sentence}"
    assert error.remedy
    assert error.reason == reason
    assert told(Denied("no", remedy="ask"), path).remedy == "ask"


def test_the_innermost_context_knows_best(zoo: Zoo) -> None:
    """A passphrase file that fails while a key file is read is the passphrase file's error."""
    with pytest.raises(Malformed) as caught, reading(zoo["issuer.key"], kinds.IDENTITY):  # noqa: SIM117
        with reading(zoo["empty"], kinds.PASSPHRASE):
            raise Malformed("nothing in it")
    assert caught.value.public == f"{zoo['empty']} is an empty file, not a passphrase file"


def test_an_operating_systems_error_becomes_one_of_ours(tmp_path: Path) -> None:
    """With the path, and never as a traceback."""
    with pytest.raises(Denied, match="x may not be read"), explaining(tmp_path / "x", kinds.LICENCE):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(Unavailable, match="x cannot be read: I/O error"), explaining(tmp_path / "x", kinds.LICENCE):
        raise OSError(5, "I/O error")


def test_an_option_is_named(zoo: Zoo) -> None:
    """For values that only a room can judge."""
    with pytest.raises(Malformed) as caught, argument("--name", "give a name"):
        raise Malformed("too long")
    assert (caught.value.public, caught.value.remedy) == ("--name: too long", "give a name")
    with pytest.raises(Denied, match=r"^no$"), argument("--name"):
        raise Denied("no")
