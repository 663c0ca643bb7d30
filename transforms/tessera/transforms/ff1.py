"""FF1 format-preserving encryption (NIST SP 800-38G), and the byte tables of FFX steps (rules T-15 to T-18).

    cipher = FF1(key, radix=10)
    assert cipher.decrypt(cipher.encrypt([0, 1, 2, 3, 4, 5])) == [0, 1, 2, 3, 4, 5]

AES comes from the library `cryptography`, imported when the first cipher is made: who uses no FFX never loads it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tessera.transforms.spec import TransformError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import Cipher, modes

MIN_RADIX: Final = 2
MAX_RADIX: Final = 65_536
MIN_DOMAIN: Final = 100
"""Fewest values of a domain (radix to the power of the length), as SP 800-38G of 2016 asks; its revision asks for a
million, which single bytes cannot have: no confidentiality is claimed for them."""
MAX_DIGITS: Final = 4096
"""Longest text here; the standard allows 2**32 - 1, and integers of that size are nobody's input."""
MAX_TWEAK_BYTES: Final = 4096
KEY_BYTES: Final = (16, 24, 32)

ROUNDS: Final = 10
BYTE_TABLE_TWEAKS: Final = 4096
"""Most tables that are made in one piece; ten rounds of sixteen AES blocks for each."""


class FF1:
    """FF1 under one AES key and radix. Texts are sequences of digits, whole numbers from 0 to radix - 1.

    Raises `TransformError` for a key that is not 16, 24 or 32 bytes and a radix outside 2 … 65,536.
    """

    __slots__ = ("_cbc", "_ecb", "radix")

    def __init__(self, key: bytes, radix: int) -> None:
        if isinstance(radix, bool) or not isinstance(radix, int) or not MIN_RADIX <= radix <= MAX_RADIX:
            raise TransformError(
                f"the radix of FF1 is a whole number from {MIN_RADIX} to {MAX_RADIX}, not {radix!r}",
                remedy="Give the number of different digits.",
            )
        self.radix = radix
        self._ecb, self._cbc = _ciphers(key)

    def __repr__(self) -> str:
        return f"FF1(radix={self.radix})"

    def encrypt(self, digits: Sequence[int], tweak: bytes = b"") -> list[int]:
        """Return as many digits as given (2 … 4096, and radix ** length at least 100). Raises `TransformError`."""
        left, right = self._halves(digits, tweak)
        prefix, width = self._prefix(len(digits), tweak)
        moduli = self.radix ** (len(digits) // 2), self.radix ** (len(digits) - len(digits) // 2)
        for number in range(ROUNDS):
            left, right = right, (left + self._round(prefix, width, tweak, number, right)) % moduli[number % 2]
        return self._joined(left, right, len(digits))

    def decrypt(self, digits: Sequence[int], tweak: bytes = b"") -> list[int]:
        """Return the digits that `encrypt` turns into `digits`; same limits and errors."""
        left, right = self._halves(digits, tweak)
        prefix, width = self._prefix(len(digits), tweak)
        moduli = self.radix ** (len(digits) // 2), self.radix ** (len(digits) - len(digits) // 2)
        for number in reversed(range(ROUNDS)):
            left, right = (right - self._round(prefix, width, tweak, number, left)) % moduli[number % 2], left
        return self._joined(left, right, len(digits))

    def _halves(self, digits: Sequence[int], tweak: bytes) -> tuple[int, int]:
        if not 2 <= len(digits) <= MAX_DIGITS or self.radix ** min(len(digits), 7) < MIN_DOMAIN:
            raise TransformError(
                f"FF1 does not take {len(digits)} digits of radix {self.radix}",
                remedy=f"Give 2 to {MAX_DIGITS} digits, and enough for {MIN_DOMAIN} different texts.",
            )
        if len(tweak) > MAX_TWEAK_BYTES:
            raise TransformError(
                f"the tweak has {len(tweak)} bytes", remedy=f"Give at most {MAX_TWEAK_BYTES}, for example a hash."
            )
        if not all(isinstance(digit, int) and 0 <= digit < self.radix for digit in digits):
            raise TransformError(
                f"a digit of the text is not a whole number from 0 to {self.radix - 1}",
                remedy="Give digits of the radix.",
            )
        middle = len(digits) // 2
        return _number(digits[:middle], self.radix), _number(digits[middle:], self.radix)

    def _prefix(self, length: int, tweak: bytes) -> tuple[bytes, int]:
        """Return the first block P of the standard and b, the bytes that hold the longer half."""
        longer = length - length // 2
        # Exact: with floating logarithms 29 digits of radix 256 seem to need 30 bytes.
        width = ((self.radix**longer - 1).bit_length() + 7) // 8
        fixed = bytes([1, 2, 1]) + self.radix.to_bytes(3, "big") + bytes([10, (length // 2) % 256])
        return fixed + length.to_bytes(4, "big") + len(tweak).to_bytes(4, "big"), width

    def _round(self, prefix: bytes, width: int, tweak: bytes, number: int, half: int) -> int:
        """Return y of the standard, the number that one round adds to the other half."""
        wanted = 4 * -(-width // 4) + 4
        padding = bytes(-(len(tweak) + width + 1) % 16)
        message = prefix + tweak + padding + bytes([number]) + half.to_bytes(width, "big")
        mac = self._cbc.encryptor().update(message)[-16:]
        stream, counter = mac, 1
        while len(stream) < wanted:
            block = int.from_bytes(mac, "big") ^ counter
            stream += self._ecb.encryptor().update(block.to_bytes(16, "big"))
            counter += 1
        return int.from_bytes(stream[:wanted], "big")

    def _joined(self, left: int, right: int, length: int) -> list[int]:
        return _digits(left, self.radix, length // 2) + _digits(right, self.radix, length - length // 2)


def byte_tables(key: bytes, tweaks: Sequence[bytes]) -> NDArray[np.uint8]:
    """Return (number of tweaks, 256) uint8: row i, column v is FF1 of v as eight binary digits under `tweaks[i]`.

    The first digit is the byte's highest bit (rule T-17). Raises `TransformError` for a key of a wrong length and when
    a tweak is longer than 14 bytes or not as long as the others.
    """
    if len({len(tweak) for tweak in tweaks}) > 1 or any(len(tweak) > 14 for tweak in tweaks):
        raise TransformError("tweaks of byte tables are equally long, at most 14 bytes", remedy="Hash longer ones.")
    ecb, _ = _ciphers(key)
    found = np.empty((len(tweaks), 256), dtype=np.uint8)
    for first in range(0, len(tweaks), BYTE_TABLE_TWEAKS):
        some = tweaks[first : first + BYTE_TABLE_TWEAKS]
        found[first : first + len(some)] = _byte_tables(ecb, some)
    return found


def inverted(tables: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the inverse of each row of `tables`, (K, 256) uint8, each row a permutation of all bytes."""
    found = np.empty_like(tables)
    np.put_along_axis(found, tables.astype(np.int64), np.arange(256, dtype=np.uint8)[np.newaxis], axis=1)
    return found


def digits_of(text: str, alphabet: str) -> list[int]:
    """Return each character's place in `alphabet`. Raises `TransformError` for a character that is not in it."""
    places = {character: place for place, character in enumerate(alphabet)}
    if not set(text) <= set(places):
        raise TransformError("a character of the text is not in the alphabet", remedy="Remove or replace it first.")
    return [places[character] for character in text]


def _byte_tables(ecb: "Cipher[modes.ECB]", tweaks: Sequence[bytes]) -> NDArray[np.uint8]:
    """Ask AES for all round values at once: halves have four bits, so a round function has sixteen of them."""
    length = len(tweaks[0])
    start = bytes([1, 2, 1, 0, 0, 2, 10, 4, 0, 0, 0, 8]) + length.to_bytes(4, "big")
    chained = np.frombuffer(ecb.encryptor().update(start), dtype=np.uint8)
    blocks = np.zeros((len(tweaks), ROUNDS, 16, 16), dtype=np.uint8)
    if length:
        blocks[..., :length] = np.frombuffer(b"".join(tweaks), dtype=np.uint8).reshape(-1, 1, 1, length)
    blocks[..., 14] = np.arange(ROUNDS, dtype=np.uint8)[:, np.newaxis]
    blocks[..., 15] = np.arange(16, dtype=np.uint8)
    blocks ^= chained
    stream = np.frombuffer(ecb.encryptor().update(blocks.tobytes()), dtype=np.uint8).reshape(blocks.shape)
    added = stream[..., 7] & 15  # y has eight bytes and counts modulo 2**4
    halves = np.divmod(np.arange(256, dtype=np.uint8), 16)
    left, right = (np.broadcast_to(half, (len(tweaks), 256)) for half in halves)
    for number in range(ROUNDS):
        add = np.take_along_axis(added[:, number], right.astype(np.int64), axis=1)
        left, right = right, (left + add) & 15
    found: NDArray[np.uint8] = left << 4 | right
    return found


def _ciphers(key: bytes) -> "tuple[Cipher[modes.ECB], Cipher[modes.CBC]]":
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    if len(key) not in KEY_BYTES:
        raise TransformError(f"the key of FF1 has {len(key)} bytes", remedy="Give an AES key: 16, 24 or 32 bytes.")
    aes = algorithms.AES(key)
    return Cipher(aes, modes.ECB()), Cipher(aes, modes.CBC(bytes(16)))  # noqa: S305 - FF1 is built on both


def _number(digits: Sequence[int], radix: int) -> int:
    number = 0
    for digit in digits:
        number = number * radix + digit
    return number


def _digits(number: int, radix: int, length: int) -> list[int]:
    found = []
    for _ in range(length):
        number, digit = divmod(number, radix)
        found.append(digit)
    return found[::-1]
