"""Secrets stay unseen whatever ordinary code does with them."""

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable

import pytest

from tessera.keystore import secrets
from tessera.keystore.errors import ApiMisuse, Malformed
from tessera.keystore.secrets import ContentKey, InputKey, Key32, Passphrase, SecretBytes

CANARY = b"canary-canary-canary-canary-0123"
TYPES = [
    thing
    for thing in vars(secrets).values()
    if isinstance(thing, type) and issubclass(thing, SecretBytes) and thing is not SecretBytes
] + [SecretBytes]


@dataclasses.dataclass
class Holder:
    """Something that has a secret for a field."""

    secret: SecretBytes


def shown(text: str) -> bool:
    """Tell whether `text` holds the canary in any usual spelling."""
    return any(form in text for form in ("canary", CANARY.hex(), str(list(CANARY))[1:20], "Y2FuYXJ5"))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    "render",
    [
        repr,
        str,
        format,
        lambda s: f"{s}",
        lambda s: f"{s!r:>80}",
        lambda s: format(s, ">80"),
        lambda s: "%s %r" % (s, s),  # noqa: UP031
        lambda s: str([s]),
        lambda s: repr(Holder(s)),
        lambda s: repr({"key": s}),
        lambda s: json.dumps({"key": s}, default=str),
        lambda s: str(dir(s)),
        ascii,
    ],
)
def test_no_rendering_shows_the_bytes(kind: type[SecretBytes], render: Callable[[SecretBytes], str]) -> None:
    """Printing, formatting and the repr of a holder show type and length only."""
    assert not shown(render(kind(CANARY)))


def test_print_shows_the_length_only(capsys: pytest.CaptureFixture[str]) -> None:
    """`print` writes the type and the number of bytes."""
    print(InputKey(CANARY))  # noqa: T201
    assert capsys.readouterr().out == "<InputKey of 32 bytes>\n"


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    "leak",
    [
        pickle.dumps,
        lambda s: pickle.dumps(s, protocol=0),
        lambda s: pickle.dumps(Holder(s)),
        copy.copy,
        copy.deepcopy,
        lambda s: dataclasses.asdict(Holder(s)),
        hash,
        lambda s: {s},
        bytes,
        bytearray,
        memoryview,
        list,
        json.dumps,
        vars,
        lambda s: s + s,
        lambda s: s[0],
        lambda s: b"".join([s]),
    ],
)
def test_every_copy_is_refused(kind: type[SecretBytes], leak: Callable[[SecretBytes], object]) -> None:
    """Pickling, copying, hashing, converting and indexing raise `TypeError` and say nothing of the bytes."""
    with pytest.raises(TypeError) as caught:
        leak(kind(CANARY))
    assert not shown(str(caught.value))


def test_reveal_is_the_door() -> None:
    """`reveal` returns what was put in, as immutable bytes of its own."""
    source = bytearray(CANARY)
    secret = SecretBytes(source)
    source[0] ^= 1
    assert secret.reveal() == CANARY
    assert len(secret) == len(CANARY)


def test_equality_compares_the_bytes() -> None:
    """Equal bytes are equal secrets; anything that is no secret is different."""
    assert InputKey(CANARY) == InputKey(CANARY)
    assert InputKey(CANARY) != InputKey(bytes(32))
    assert SecretBytes(b"a") != SecretBytes(b"ab")
    assert InputKey(CANARY) != CANARY


@pytest.mark.parametrize("length", [0, 31, 33])
def test_keys_have_32_bytes(length: int) -> None:
    """A key of another length is the caller's mistake."""
    with pytest.raises(ApiMisuse):
        ContentKey(bytes(length))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("raw", [32, "a" * 32, [1] * 32, None])
def test_only_bytes_are_secrets(kind: Callable[[object], SecretBytes], raw: object) -> None:
    """Of a number Python makes that many zeros: `InputKey(32)` was a key that everybody knows."""
    with pytest.raises(ApiMisuse, match="made from bytes"):
        kind(raw)


def test_generate_gives_fresh_keys_of_the_class() -> None:
    """Two generated keys differ, and are of the class that was asked."""
    first, second = InputKey.generate(), InputKey.generate()
    assert type(first) is InputKey
    assert first != second


def test_a_passphrase_is_never_empty() -> None:
    """The empty passphrase is refused, any other length is kept."""
    with pytest.raises(Malformed):
        Passphrase(b"")
    assert len(Passphrase(b"x")) == 1


def test_key_classes_are_nominal() -> None:
    """Every kind of key is a class of its own, so that a type checker tells them apart."""
    assert all(issubclass(kind, Key32) for kind in TYPES if kind not in (SecretBytes, Passphrase))
    assert not issubclass(InputKey, ContentKey)
