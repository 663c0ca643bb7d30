"""What a client has to show: an identity, licences, and the input keys they name. Reads files; talks to nobody."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tessera.client._types import LicenceInfo, WhoAmI
from tessera.client.errors import LicenceMissing
from tessera.keystore.errors import ApiMisuse
from tessera.keystore.identity import Identity
from tessera.keystore.keyfile import load_identity, load_input_key
from tessera.keystore.licence import Licence, LicenceFile, parse_without_verification, read_licence_file
from tessera.keystore.secrets import InputKey, Passphrase

PassphraseSource = Callable[[], Passphrase]
IdentitySource = Identity | str | Path
LicenceSource = LicenceFile | str | Path
InputKeySource = InputKey | str | Path

_TOKEN = re.compile(r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Held:
    """One licence, as it states itself, and its grant if the licence file had one."""

    licence: Licence
    grant: str | None


@dataclass(frozen=True, slots=True)
class Credentials:
    """Everything the handshake needs. `input_key` overrides the keys of all grants."""

    identity: Identity
    held: tuple[Held, ...]
    input_key: InputKey | None = field(default=None, repr=False)

    def for_model(self, model: str) -> Held:
        """Return the first licence given for `model`. Raises `LicenceMissing`."""
        for held in self.held:
            if held.licence.terms.model == model:
                return held
        named = ", ".join(sorted({held.licence.terms.model for held in self.held})) or "none at all"
        raise LicenceMissing(
            f"no licence was given for model {model!r}; those given are for {named}",
            remedy="Give the licence file that the vendor issued for this model.",
        )

    def whoami(self) -> WhoAmI:
        """Return the buyer and the licences, without secrets."""
        infos = (
            LicenceInfo(
                licence_id=held.licence.licence_id,
                model=held.licence.terms.model,
                expires_at_s=held.licence.expires_at_s,
                has_input_key=held.licence.terms.input_key_id is not None,
                copyright=held.licence.terms.copyright,
            )
            for held in self.held
        )
        return WhoAmI(self.identity.key_id, self.identity.public.name, tuple(infos))


def load(
    identity: IdentitySource,
    licence: LicenceSource | Sequence[LicenceSource],
    input_key: InputKeySource | None,
    passphrase: PassphraseSource | None,
) -> Credentials:
    """Read what is given as paths. Raises the errors of `tessera.keystore.keyfile` and `tessera.keystore.licence`."""
    if not isinstance(identity, Identity):
        identity = load_identity(identity, passphrase)
    if isinstance(input_key, str | Path):
        input_key = load_input_key(input_key, passphrase)
    sources: Iterable[LicenceSource] = [licence] if isinstance(licence, LicenceFile | str | Path) else licence
    return Credentials(identity, tuple(_held(source) for source in sources), input_key)


def _held(source: LicenceSource) -> Held:
    if isinstance(source, str) and _TOKEN.fullmatch(source.strip()):
        file = LicenceFile(source.strip(), None)
    elif isinstance(source, str | Path):
        file = read_licence_file(source)
    elif isinstance(source, LicenceFile):
        file = source
    else:
        raise ApiMisuse("a licence is a path, a token or a LicenceFile")
    return Held(parse_without_verification(file.licence), file.grant)
