"""One session as the client knows it: token, contract, the node's receipt key, the transform under the input key."""

import json
from dataclasses import dataclass, field
from typing import Final

from tessera.client._types import Array, ModelContract, SessionInfo, TensorContract
from tessera.client.errors import InvalidTensor, ProtocolError, WrongInputKey
from tessera.keystore.errors import ApiMisuse, Malformed
from tessera.keystore.identity import PublicIdentity
from tessera.keystore.licence import Licence
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey, SecretBytes
from tessera.transforms import Transform, TransformError, TransformSpec

RENEW_AT: Final = 0.7
"""Share of a session's life after which the client renews it."""
MIN_LIFE_S: Final = 5.0
"""A session that seems shorter is the mark of two clocks apart; it is then renewed on the server's word only."""
MAX_TRANSFORM_CHARS: Final = 4096


class Keying:
    """Applies a contract's transform under one input key, set up once for each image shape. Safe between threads."""

    def __init__(self, contract: ModelContract, key: InputKey | None) -> None:
        """Raise `WrongInputKey` unless `key` is the contract's; `ProtocolError` for a spec that cannot be used."""
        self._names = frozenset(spec.name for spec in contract.inputs if _keyed(spec))
        self._spec = _spec_of(contract) if contract.transform and contract.input_key_id else None
        self._ready: dict[tuple[int, ...], Transform] = {}
        self._key = key
        if not contract.input_key_id:
            return
        if key is None or input_key_id(key) != contract.input_key_id:
            raise WrongInputKey(
                "the input key is not the one that the model's contract names; nothing was sent",
                remedy="Use the input key of this licence's grant, or leave input_key out to have it taken from there.",
            )
        if self._spec is not None and not self._names:
            raise ProtocolError("the model's contract has a transform and no input that it could be applied to")

    def __call__(self, arrays: dict[str, Array]) -> dict[str, Array]:
        """Return the arrays, keyed where the contract asks for it. Raises `InvalidTensor` for sizes that do not fit."""
        if self._spec is None:
            return arrays
        return {name: self._apply(name, array) if name in self._names else array for name, array in arrays.items()}

    def _apply(self, name: str, images: Array) -> Array:
        shape = images.shape[1:]
        transform = self._ready.get(shape)
        if transform is None:
            if self._spec is None or self._key is None:
                raise ApiMisuse("no transform to apply")
            channels, height, width = shape
            try:
                transform = self._ready[shape] = Transform(self._spec, self._key, channels, height, width)
            except TransformError as error:
                raise InvalidTensor(error.public, tensor=name, remedy=error.remedy) from None
        return transform(images)


def _keyed(spec: TensorContract) -> bool:
    return spec.datatype == "UINT8" and spec.layout == "NCHW" and len(spec.shape) == 4


def _spec_of(contract: ModelContract) -> TransformSpec:
    try:
        if len(contract.transform) > MAX_TRANSFORM_CHARS:
            raise ValueError
        return TransformSpec.from_json(json.loads(contract.transform))
    except (ValueError, RecursionError, Malformed):
        raise ProtocolError("the transform of the model's contract is not one that this client knows") from None


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """An open session. `token` is shown to nobody but the server."""

    token: SecretBytes
    session_id: str
    licence: Licence
    contract: ModelContract
    node: PublicIdentity
    keying: Keying = field(repr=False)
    expires_at_s: float
    renew_at_s: float | None
    """On the client's monotonic clock; None when only the server's word counts."""
    samples_left: int | None = None
    notice: str = ""

    def due(self, monotonic_s: float) -> bool:
        """Whether it is time to renew."""
        return self.renew_at_s is not None and monotonic_s >= self.renew_at_s

    def info(self) -> SessionInfo:
        """Return what may be shown."""
        return SessionInfo(
            session_id=self.session_id,
            licence_id=self.licence.licence_id,
            node_id=self.node.key_id,
            model=self.contract.name,
            version=self.contract.version,
            tier=self.contract.tier,
            expires_at_s=self.expires_at_s,
            samples_left=self.samples_left,
            notice=self.notice,
        )


def renewal_s(expires_at_s: float, now_s: float, monotonic_s: float) -> float | None:
    """Return when to renew, on the monotonic clock, or None when the two clocks disagree too much to tell."""
    life_s = expires_at_s - now_s
    return monotonic_s + RENEW_AT * life_s if life_s >= MIN_LIFE_S else None
