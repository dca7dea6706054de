"""What every message of the device's telemetry has in common.

A message is a JSON object in canonical form. ``schema_version`` rises only when an older reader
would misunderstand; whatever is added otherwise is a field more. Readers keep the fields that they
do not know and write them back, and read the versions of the last two releases, whose messages
stand in ``tests/data/contracts/v<version>/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from edgekit.contracts.canonical import canonical_bytes, parse_document
from edgekit.contracts.fields import check_choice, check_fields, show
from edgekit.contracts.topics import check_segment
from edgekit.errors import BundleError, MessageError

SCHEMA_VERSION = 1
READABLE_VERSIONS = (1,)
"""The newest is written, all are read."""
CLOCKS = ("synced", "unsynced", "redated")
"""What a time is worth: of a clock that NTP held, of one that it did not, or worked out afterwards
from the monotonic clock once it did."""

_Message = TypeVar("_Message", bound="Message")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """The base of all messages.

    Attributes:
        unknown: Fields of a newer sender, written back as they came.
    """

    NAME: ClassVar[str]
    """What to call it in errors."""
    FIELDS: ClassVar[Mapping[str, str]]
    """Fields that every sender writes, and their kinds (``edgekit.contracts.fields``)."""
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Fields that may be missing."""
    MAX_BYTES: ClassVar[int] = 64 * 1024
    """Largest message that is parsed."""

    unknown: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**self.unknown, "schema_version": SCHEMA_VERSION, **self._written()}

    def to_bytes(self) -> bytes:
        """Return the payload.

        Raises:
            MessageError: A value is not JSON.
        """
        try:
            return canonical_bytes(self.to_dict())
        except BundleError as error:
            raise MessageError(f"{self.NAME}: {error.message}") from error

    @classmethod
    def from_bytes(cls: type[_Message], payload: bytes) -> _Message:  # noqa: PYI019  # Self is of 3.11
        """Read a payload.

        Raises:
            MessageError: It is no such message, of a newer version, or too large.
        """
        try:
            data = parse_document(payload, cls.NAME, cls.MAX_BYTES)
        except BundleError as error:
            raise MessageError(error.message) from error
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls: type[_Message], data: Mapping[str, Any]) -> _Message:  # noqa: PYI019
        """Read the JSON form.

        Raises:
            MessageError: It is no such message, or of a newer version.
        """
        version = data.get("schema_version")
        if type(version) is not int or version not in READABLE_VERSIONS:
            raise MessageError(
                f"{cls.NAME} has schema_version {show(version)}, this edgekit reads "
                f"{', '.join(map(str, READABLE_VERSIONS))}"
            )
        try:
            check_fields(data, cls.FIELDS, cls.NAME)
        except BundleError as error:
            raise MessageError(error.message) from error
        known = {"schema_version", *cls.FIELDS, *cls.OPTIONAL}
        unknown = {name: value for name, value in data.items() if name not in known}
        return cls(unknown=unknown, **cls._read(data))

    def _written(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        raise NotImplementedError

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the constructor's arguments; the kinds of ``FIELDS`` are checked already."""
        raise NotImplementedError


def check_boot(boot: Any, where: str) -> str:
    """Return the name of a boot.

    Raises:
        MessageError: It is none.
    """
    return check_segment(boot, f"{where}: boot")


def check_one_of(value: str, choices: tuple[str, ...], where: str) -> str:
    """Return a value that is one of some.

    Raises:
        MessageError: It is not.
    """
    try:
        check_choice(value, choices, where)
    except BundleError as error:
        raise MessageError(error.message) from error
    return value
