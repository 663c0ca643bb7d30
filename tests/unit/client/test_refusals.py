"""Every status and every reason ends in one exception that says what to do."""

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tessera.client
from tessera.client import errors
from tessera.client._refusals import BY_REASON, BY_STATUS, RpcFailed, refusal, retryable, session_lost
from tessera.keystore import errors as base
from tessera.keystore.errors import REASONS

CLASSES = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ClientError)}
RETRYABLE = {
    "unavailable", "draining", "store-sealed", "ledger-unavailable", "unreachable", "queue-full", "challenge-unknown",
}  # fmt: skip


def failed(slug: str = "", status: str = "PERMISSION_DENIED", text: str = "no", /, **more: str) -> RpcFailed:
    """Return a call that our server refused; `more` is trailing metadata without its prefix."""
    trailing = {"tessera-" + name: value for name, value in more.items()}
    return RpcFailed(status, f"{slug}: {text}" if slug else text, trailing)


def test_every_grpc_status_has_a_class() -> None:
    """Whatever status a server or proxy ends a call with, there is an exception for it."""
    assert set(BY_STATUS) == {code.name for code in grpc.StatusCode} - {"OK"}


def test_every_reason_has_a_class() -> None:
    """The table of reasons and REASONS are equal, so a new reason cannot be forgotten here."""
    assert set(BY_REASON) == set(REASONS)


def test_every_default_reason_is_its_own_class() -> None:
    """A leaf's default reason leads back to it; only `ProtocolError` is never a server's word."""
    leaves = {kind for kind in CLASSES if not kind.__subclasses__()}
    for kind in leaves - {errors.ProtocolError}:
        assert BY_REASON[kind.default_reason] is kind


def test_the_tree_in_the_docstring_names_every_class() -> None:
    """The drawing shows each class, indented under its parent, and no other."""
    drawn = [line.replace("│", " ") for line in str(errors.__doc__).splitlines() if "──" in line]
    parents = {0: "ClientError"}
    for line in drawn:
        depth = (line.index("├") if "├" in line else line.index("└")) // 4
        name = line.split("── ")[1].split()[0]
        assert parents[depth - 1] in {parent.__name__ for parent in getattr(errors, name).__bases__}, name
        parents[depth] = name
    names = {line.split("── ")[1].split()[0] for line in drawn}
    assert names | {"ClientError"} == {kind.__name__ for kind in CLASSES}


def test_every_class_is_public() -> None:
    """All exceptions can be imported from `tessera.client`."""
    assert {kind.__name__ for kind in CLASSES} <= set(tessera.client.__all__)


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_a_reason_from_the_metadata_reaches_the_caller(reason: str) -> None:
    """Class, reason, remedy, status and request id come through, and the text without its tag."""
    error = refusal(failed(reason, "PERMISSION_DENIED", "why not", reason=reason, remedy="do that"), request_id="r-1")
    assert (type(error), error.reason, error.remedy) == (BY_REASON[reason], reason, "do that")
    assert (error.public, error.status, error.request_id) == ("why not", "PERMISSION_DENIED", "r-1")
    assert isinstance(error, base.TesseraError)


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_a_reason_survives_a_proxy_that_drops_metadata(reason: str) -> None:
    """The tag in the status message is enough."""
    assert type(refusal(failed(reason))) is BY_REASON[reason]


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_a_foreign_status_keeps_its_text(code: grpc.StatusCode) -> None:
    """A server without our reasons still gives a typed exception with its own words, or the transport's meaning."""
    error = refusal(RpcFailed(code.name, "something foreign: happened"))
    if code.name in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
        assert isinstance(error, errors.Unreachable | errors.DeadlineExceeded)
    else:
        assert (type(error), error.public) == (BY_STATUS[code.name], "something foreign: happened")


def test_a_newer_servers_reason_is_kept() -> None:
    """An unknown slug gives the status's class, and stays readable."""
    error = refusal(failed("moon-phase", "PERMISSION_DENIED", reason="moon-phase"))
    assert (type(error), error.reason) == (errors.PermissionRefused, "moon-phase")


def test_an_invalid_tensor_is_named() -> None:
    """The trailing metadata names the tensor."""
    error = refusal(failed("invalid-tensor", "INVALID_ARGUMENT", reason="invalid-tensor", tensor="image"))
    assert isinstance(error, errors.InvalidTensor)
    assert error.tensor == "image"


@pytest.mark.parametrize(
    "details",
    [
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:4: Tls handshake failed "
        "(TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED",
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:3: Custom verification check failed "
        "with error: UNAUTHENTICATED: Hostname Verification Check failed.",
    ],
)
def test_a_certificate_that_does_not_hold_is_not_an_outage(details: str) -> None:
    """A failed TLS check is `ServerUnverified` and is never tried again."""
    error = refusal(RpcFailed("UNAVAILABLE", details))
    assert isinstance(error, errors.ServerUnverified)
    assert not retryable(error)
    assert error.detail.startswith("failed to connect")


def test_a_refused_connection_is_unreachable() -> None:
    """Nobody at the address is `Unreachable`, which may be tried again."""
    error = refusal(RpcFailed("UNAVAILABLE", "failed to connect to all addresses; last error: Connection refused"))
    assert isinstance(error, errors.Unreachable)
    assert error.public == "nothing answers at the server's address"
    assert retryable(error)


@pytest.mark.parametrize("details", ["Internal error from Core", "Received RST_STREAM with error code 2"])
def test_a_connection_that_breaks_inside_grpc_is_unreachable(details: str) -> None:
    """What gRPC calls INTERNAL when the connection ends at the wrong moment may be tried again, ours may not."""
    assert retryable(refusal(RpcFailed("INTERNAL", details)))
    assert not retryable(refusal(RpcFailed("INTERNAL", "internal: internal error", {"tessera-reason": "internal"})))


def test_messages_beyond_a_limit_are_named() -> None:
    """Grpc's own size limit, on either side, is `MessageTooLarge`."""
    error = refusal(RpcFailed("RESOURCE_EXHAUSTED", "CLIENT: Sent message larger than max (9 vs. 4)"))
    assert isinstance(error, errors.MessageTooLarge)


def test_only_what_charged_nothing_is_repeated() -> None:
    """The reasons after which the same request, or a handshake, is sent again are exactly these."""
    again = {reason for reason in REASONS if retryable(refusal(failed(reason, "UNAVAILABLE")))}
    assert again == RETRYABLE


def test_only_a_lost_session_is_reopened() -> None:
    """A missing token, a bad proof or an expired licence are not cured by another session."""
    lost = {reason for reason in REASONS if session_lost(refusal(failed(reason)))}
    assert lost == {"session-unknown", "session-expired"}


def test_peer_text_is_cut_and_cannot_steer_a_terminal() -> None:
    """Escape sequences and megabytes do not reach a log through an exception."""
    error = refusal(
        failed("denied", "PERMISSION_DENIED", "\x1b[2J" + "x" * 10_000, reason="denied", remedy="\x07" * 9000)
    )
    assert error.public.isprintable()
    assert len(error.public) <= 500
    assert error.remedy == ""


@given(
    status=st.sampled_from([*BY_STATUS, "", "NONSENSE"]),
    details=st.text(max_size=60),
    trailing=st.dictionaries(
        st.sampled_from(["tessera-reason", "tessera-remedy", "tessera-tensor"]), st.text(max_size=30)
    ),
)
@settings(max_examples=200, deadline=None)
def test_whatever_a_peer_writes_becomes_a_client_error(status: str, details: str, trailing: dict[str, str]) -> None:
    """The translation never fails and never lets control characters through."""
    error = refusal(RpcFailed(status, details, trailing))
    assert isinstance(error, errors.ClientError)
    assert error.public.isprintable()
