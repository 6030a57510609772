"""Values on their way through the history.

A payload is bytes with a name for how to read them. What the native SDK writes is JSON, kept inline, so that
a history can be read with the `sqlite3` shell. Any other encoding (encrypted, compressed, another language's)
stands as a base64 string in the same place.
"""

from __future__ import annotations

import base64

from msgspec import Raw, Struct
from msgspec.json import decode as decode_json

JSON = "json"


class Payload(Struct, frozen=True, omit_defaults=True, gc=False):
    """One value. `data` is JSON text: the value itself if `encoding` is "json", else a base64 string."""

    data: Raw
    encoding: str = JSON
    metadata: dict[str, str] | None = None

    @classmethod
    def from_json(cls, text: bytes) -> Payload:
        """`text` must be one valid JSON value; it is kept as it is and not checked."""
        return cls(Raw(text))

    @classmethod
    def from_bytes(cls, data: bytes, encoding: str, metadata: dict[str, str] | None = None) -> Payload:
        assert encoding != JSON
        return cls(Raw(b'"' + base64.b64encode(data) + b'"'), encoding, metadata)

    def to_bytes(self) -> bytes:
        """The bytes that `from_json` or `from_bytes` was given."""
        text = bytes(self.data)
        if self.encoding == JSON:
            return text
        decoded: str = decode_json(text, type=str)
        return base64.b64decode(decoded)


class Arguments(Struct, frozen=True, omit_defaults=True, gc=False):
    """The arguments of a call, positional and by keyword as the caller gave them; defaults are not filled in."""

    args: tuple[Payload, ...] = ()
    kwargs: dict[str, Payload] = {}


NO_ARGUMENTS = Arguments()
NULL = Payload.from_json(b"null")
