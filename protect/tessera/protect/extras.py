"""What the vendor's bench says when an optional library is missing."""

from tessera.keystore.errors import Unavailable


class MissingExtra(Unavailable):
    """An optional library is not installed; the remedy names the extra that brings it."""

    default_reason = "extra-missing"

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{library} is needed {purpose} and is not installed",
            remedy=f"Install it with: pip install 'tessera-appliance[{extra}]'",
        )
        self.extra = extra
