"""Column types that trust no file: SQLite stores any type in any column, and a flipped bit makes text of a number.

A cell of the wrong type is `Tampered` when it is read. Above them, each module checks what the value says.
"""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast

from sqlalchemy import BigInteger, Dialect, Integer, LargeBinary, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

from tessera.keystore.errors import Tampered

T = TypeVar("T")


class _Cell(TypeDecorator[T]):
    cache_ok = True
    python_type_stored: ClassVar[type]

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], T | None]:  # noqa: ARG002
        """Check the type and convert nothing; SQLAlchemy's own processor takes 10**9 for a gigabyte of zero bytes."""
        kind = self.python_type_stored

        def check(value: Any) -> T | None:
            if value is not None and type(value) is not kind:
                raise Tampered("keystore.db holds a value of the wrong type", remedy="restore it from a backup")
            return cast("T | None", value)

        return check


class TextCell(_Cell[str]):
    """A string."""

    impl = Text
    cache_ok = True
    python_type_stored = str


class BlobCell(_Cell[bytes]):
    """A byte string."""

    impl = LargeBinary
    cache_ok = True
    python_type_stored = bytes


class IntegerCell(_Cell[int]):
    """A signed integer of 64 bits on every database; SQLite's INTEGER has them, and only INTEGER can be its row id."""

    impl = BigInteger
    cache_ok = True
    python_type_stored = int

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the type that the database itself knows."""
        return dialect.type_descriptor(Integer() if dialect.name == "sqlite" else BigInteger())
