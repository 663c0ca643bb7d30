"""`tessera package` and `tessera licence` on the vendor's machine."""

import dataclasses
import json
from pathlib import Path

import pytest

from support import keys
from support.cli import document, invoke, refusal
from support.vendor import Bench, make_bench
from tessera.keystore import grant as grants
from tessera.keystore import licence as licences
from tessera.keystore import revocation
from tessera.keystore.package.header import LENGTH_BYTES, build_header, header_length, parse_header


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A vendor's folder."""
    return make_bench(tmp_path)


def issue(bench: Bench, *options: object, out: Path | None = None) -> dict[str, object]:
    """Issue a licence for the bench's package, buyer and node."""
    return document(
        *("licence", "issue", "--issuer", bench.issuer, "--package", bench.package, "--buyer", f"{bench.buyer}.pub"),
        *("--node", bench.node / "node.pub", "--out", out or bench.licence, *options),
    )


def test_inspect_shows_the_manifest(bench: Bench) -> None:
    """What the package says, with its parts, and that nothing was verified."""
    told = document("package", "inspect", bench.package)
    assert (told["model"], told["package_id"], told["verified"]) == ("digits", keys.PACKAGE_ID, False)
    assert [part["name"] for part in told["parts"] if part["kind"] == "tensor"] == ["bias", "weight"]


def test_inspect_is_in_words_for_a_person(bench: Bench) -> None:
    """The transform as `--transform` takes it, and no notation of a programming language anywhere."""
    shown = invoke("package", "inspect", bench.package).stdout
    assert ["transform", "shf:4"] in [line.split() for line in shown.splitlines()]
    assert ["verified", "no"] in [line.split() for line in shown.splitlines()]
    assert not {"{", "}", "'"} & set(shown)


def test_verify_checks_signature_digests_and_with_the_keys_every_chunk(bench: Bench) -> None:
    """The vendor can hold a package against its keys before shipping it."""
    arguments = ("package", "verify", bench.package, "--issuer", f"{bench.issuer}.pub")
    assert document(*arguments)["decrypted"] is False
    assert document(*arguments, "--secrets", f"{bench.package}.secrets")["decrypted"] is True


def test_a_changed_byte_is_told_as_such(bench: Bench) -> None:
    """The refusal is the package's, with the reason that the node gives as well."""
    raw = bytearray(bench.package.read_bytes())
    raw[-20] ^= 1
    bench.package.write_bytes(raw)
    assert (
        refusal("package", "verify", bench.package, "--issuer", f"{bench.issuer}.pub")["reason"] == "package-tampered"
    )


def test_a_licence_carries_what_was_asked_for(bench: Bench) -> None:
    """Duration, quota, period, rate, sessions and policy of the flags are the terms of the licence."""
    options = ["--valid", "30d", "--quota", 2000, "--quota-period", "month", "--rate", 50, "--sessions", 2]
    issue(bench, *options, "--expiry-policy", "warn", "--grace", "7d")
    held = licences.read_licence_file(bench.licence)
    licence = licences.verify(held.licence, keys.ISSUERS)
    assert licence.expires_at_s - licence.not_before_s == 30 * 86_400
    assert licence.terms.quota == licences.Quota(2000, "month")
    assert (licence.terms.rate_samples_per_s, licence.terms.sessions) == (50, 2)
    assert licence.terms.expiry == licences.ExpiryPolicy("warn", 7 * 86_400)
    assert licence.buyer_id == keys.BUYER.key_id
    assert licence.terms.input_key_id == bench.manifest.input_key_id


def test_the_grant_opens_for_the_buyer(bench: Bench) -> None:
    """The licence file brings the buyer the input key, sealed."""
    issue(bench)
    held = licences.read_licence_file(bench.licence)
    licence = licences.verify(held.licence, keys.ISSUERS)
    assert held.grant is not None
    grant = grants.verify(held.grant, licence, keys.ISSUERS)
    assert grants.open_for_buyer(grant, keys.BUYER) == keys.INPUT_KEY


@pytest.mark.parametrize(
    "options",
    [
        ["--valid", "soon"],
        ["--not-before", "tomorrow"],
        ["--quota", "0"],
        ["--quota-period", "year"],
        ["--expiry-policy", "degrade"],
        ["--degrade-to", "1"],
        ["--sessions", "-1"],
    ],
)
def test_impossible_terms_are_usage_errors(bench: Bench, options: list[str]) -> None:
    """Nothing is written when a flag makes no sense."""
    arguments = ["licence", "issue", "--issuer", bench.issuer, "--package", bench.package]
    arguments += ["--buyer", f"{bench.buyer}.pub", "--node", bench.node / "node.pub", "--out", bench.licence]
    assert invoke(*arguments, *options).exit_code == 2
    assert not bench.licence.exists()


def test_swapped_identities_are_named(bench: Bench) -> None:
    """A buyer's file where the node's belongs is a mistake that the message explains."""
    arguments = ["licence", "issue", "--issuer", bench.issuer, "--package", bench.package]
    arguments += ["--buyer", bench.node / "node.pub", "--node", f"{bench.buyer}.pub", "--out", bench.licence]
    assert "identity of a node, where that of a buyer is needed" in refusal(*arguments)["message"]


def test_secrets_of_another_package_are_refused(bench: Bench, tmp_path: Path) -> None:
    """A licence with the wrong content key would open nothing."""
    other = grants.PackageSecrets("f" * 32, keys.CONTENT_KEY, keys.INPUT_KEY)
    grants.save_package_secrets(tmp_path / "other.secrets", other)
    arguments = ["licence", "issue", "--issuer", bench.issuer, "--package", bench.package, "--secrets"]
    arguments += [tmp_path / "other.secrets", "--buyer", f"{bench.buyer}.pub", "--node", bench.node / "node.pub"]
    assert refusal(*arguments, "--out", bench.licence)["reason"] == "conflict"


def test_licences_are_cut_from_what_the_issuer_itself_sealed(bench: Bench) -> None:
    """A licence repeats what the package says of itself: a changed manifest, and another issuer's package, are refused
    before anything is signed."""
    document("keys", "new", "--kind", "issuer", "--name", "Other", "--out", bench.folder / "other.key")
    arguments = ["--package", bench.package, "--buyer", f"{bench.buyer}.pub", "--node", bench.node / "node.pub"]
    arguments += ["--out", bench.licence]
    foreign = refusal("licence", "issue", "--issuer", bench.folder / "other.key", *arguments)
    assert (foreign["reason"], bench.licence.exists()) == ("conflict", False)
    raw = bench.package.read_bytes()
    begin = LENGTH_BYTES + header_length(raw[:LENGTH_BYTES])
    header = parse_header(raw[LENGTH_BYTES:begin])
    renamed = build_header(dataclasses.replace(header.manifest, model="dearer"), header.signature)
    bench.package.write_bytes(renamed + raw[begin:])
    changed = refusal("licence", "issue", "--issuer", bench.issuer, *arguments)
    assert (changed["reason"], bench.licence.exists()) == ("package-tampered", False)


def test_inspect_tells_where_a_licence_stands(bench: Bench) -> None:
    """Not yet, valid and expired are told by today's clock; the signature only when an issuer is given."""
    issue(bench, "--not-before", "2001-01-01", "--valid", "1d")
    told = document("licence", "inspect", bench.licence)
    assert (told["standing"], told["verified"], told["grant"]) == ("expired", False, True)
    assert document("licence", "inspect", bench.licence, "--issuer", f"{bench.issuer}.pub")["verified"] is True
    issue(bench, "--not-before", "2999-01-01", out=bench.folder / "later")
    assert document("licence", "inspect", bench.folder / "later")["standing"] == "not-yet"


def test_revoking_starts_and_continues_a_numbered_list(bench: Bench) -> None:
    """Each call adds to the list and counts its number up; a licence file may stand for its id."""
    issued = issue(bench)
    revoked = bench.folder / "revoked.jwt"
    arguments = ("--issuer", bench.issuer, "--list", revoked)
    assert document("licence", "revoke", "lic-1", *arguments)["number"] == 1
    assert document("licence", "revoke", bench.licence, *arguments, "--reason", "unpaid")["number"] == 2
    listed = revocation.verify(revoked.read_text().strip(), keys.ISSUERS)
    assert listed.revoked.keys() == {"lic-1", issued["licence_id"]}
    assert listed.revoked[str(issued["licence_id"])].reason == "unpaid"


def test_another_vendors_list_is_not_added_to(bench: Bench) -> None:
    """The list belongs to the issuer that signed it."""
    foreign = revocation.issue(1, {"lic-9": (1, "x")}, issuer=keys.OTHER_ISSUER, now_s=keys.NOW_S)
    path = bench.folder / "revoked.jwt"
    path.write_text(foreign.token)
    error = refusal("licence", "revoke", "lic-1", "--issuer", bench.issuer, "--list", path)
    assert error["reason"] == "licence-issuer-unknown"
    assert path.read_text() == foreign.token


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"not a token", b"a.b.c", b"{}"])
def test_a_list_that_is_none_is_refused_and_left_alone(bench: Bench, raw: bytes) -> None:
    """Whatever lies in the list's place, it is told and not replaced."""
    path = bench.folder / "revoked.jwt"
    path.write_bytes(raw)
    assert refusal("licence", "revoke", "lic-1", "--issuer", bench.issuer, "--list", path)["reason"] == "malformed"
    assert path.read_bytes() == raw


def test_nothing_is_overwritten(bench: Bench) -> None:
    """A licence that exists is not replaced by another."""
    bench.licence.write_text("kept")
    arguments = ["licence", "issue", "--issuer", bench.issuer, "--package", bench.package, "--json"]
    arguments += ["--buyer", f"{bench.buyer}.pub", "--node", bench.node / "node.pub", "--out", bench.licence]
    result = invoke(*arguments)
    assert json.loads(result.stdout)["error"]["reason"] == "conflict"
    assert bench.licence.read_text() == "kept"
