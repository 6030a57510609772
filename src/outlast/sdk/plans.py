"""Plans: how values of one type become payloads and come back. Made once per type, when a function is registered.

Theory of operation. Writers of JSON do not check types: msgspec writes a str into an int field, and NaN as null. So
whoever writes also reads, at once, with the reader that will be used later, and compares. A value that does not fit,
or that would come back as another value, is refused at its caller before anything is recorded. Exact values of a few
built-in types need no second look. What is recorded is what was compared; so the value that a workflow is given live
is the one that it is given on replay.

Which library reads and writes a type is chosen in `sdk/languages.py`. Refused: pickle (unreadable, unsafe, bound to
code); a repr in place of a value; guessing.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn, Protocol

from msgspec import Raw

from outlast.model.errors import PayloadError
from outlast.model.payloads import JSON, Payload
from outlast.sdk.hints import MISSING, Names
from outlast.sdk.ignored import ignored_key
from outlast.sdk.languages import Language, UnknownObject, choose_language, encode_plain, plain_json
from outlast.sdk.roundtrip import MAX_DEPTH, first_loss, has_surrogate, is_nonfinite, locate, too_deep

MAX_PAYLOAD_BYTES: Final = 2 * 1024 * 1024
"""2 MiB. A history is read as a whole whenever its run is loaded, and a turn is written as one row: a few such values
are affordable, more are not. The same limit as elsewhere in the field, so that what fits there fits here."""


class Codec(Protocol):
    """Turns the bytes of every payload into other bytes and back: to encrypt or compress what the database holds.

    `name` is stored with each payload and must not be "json". Payloads without a codec's name are read as they are,
    so a codec can be added while runs are open; removing one makes what it wrote unreadable. A codec that changes its
    keys puts a key id into its bytes. Failures (messages, tracebacks) do not pass through it.
    """

    name: str

    def encode(self, data: bytes) -> bytes: ...

    def decode(self, data: bytes) -> bytes: ...


class Plan(Protocol):
    """How to write and read values of one type. Both raise PayloadError, which names the value and the field."""

    def encode(self, value: Any) -> Payload: ...

    def decode(self, payload: Payload) -> Any: ...

    def from_json(self, value: Any) -> Payload:
        """The payload for a value that was given as plain JSON, such as "2024-01-31" for a date."""
        ...


class TypedPlan:
    """The one Plan there is: a language, the check that nothing is lost, the limits, and the codec."""

    def __init__(
        self, language: Language, codec: Codec | None, max_bytes: int, *, where: str, root: str, typed: bool
    ) -> None:
        self._language = language
        self._write = language.write
        self._read = language.read
        self._exact = language.exact
        self._codec = codec
        self._max_bytes = max_bytes
        self._where = where
        self._root = root
        self._typed = typed

    def encode(self, value: Any) -> Payload:
        try:
            text = self._write(value)
        except Exception as error:
            self._cannot_write(value, error)
        if type(value) not in self._exact:
            try:
                back = self._read(text)
                same = (back == value) is True
            except Exception as error:
                back = self._read_again(value, text, error)
                same = False
            if not same:
                self._compare(value, back)
        if len(text) > 2 * MAX_DEPTH:
            self._check_limits(text)
        return Payload(Raw(text)) if self._codec is None else self._close(self._codec, text)

    def decode(self, payload: Payload) -> Any:
        text = payload.data if payload.encoding == JSON else self._open(payload)
        try:
            return self._read(text)
        except Exception as error:
            raise PayloadError(
                f"{self._where}: the value does not fit the type that the code expects now: "
                f"{self._language.explain(error, self._root)}. What is recorded stays as it was written: if the type "
                "was changed since, keep reading the old form, for example by giving new fields a default."
            ) from error

    def from_json(self, value: Any) -> Payload:
        try:
            decoded = self._read(encode_plain(value))
        except Exception as error:
            self._does_not_fit(value, error)
        payload = self.encode(decoded)
        ignored = ignored_key(value, self._write(decoded), lambda text: self._write(self._read(text)), self._root)
        if ignored is not None:
            raise PayloadError(
                f"{self._where}: nothing reads {ignored}, so what was given there would be lost. The type that is "
                "annotated has no such field. Correct the name, or leave it out."
            )
        return payload

    def _read_again(self, value: Any, text: bytes, error: Exception) -> Any:
        """Either `__eq__` of the user's class failed, and the value is good, or the value does not fit."""
        try:
            return self._read(text)
        except Exception:
            self._does_not_fit(value, error)

    def _compare(self, value: Any, back: Any) -> None:
        try:
            loss = first_loss(value, back, self._root, strict=self._language.strict)
        except RecursionError as error:
            self._cannot_write(value, error)
        if loss is None:
            return
        if self._typed:
            advice = "Pass a value of exactly the annotated types, or change the annotation."
        else:
            advice = "Without a type hint only plain JSON comes back as it was: annotate it with its type."
        raise PayloadError(f"{self._where}: the value would not come back as it is: {loss}. {advice}")

    def _cannot_write(self, value: Any, error: Exception) -> NoReturn:
        if "serializer warnings" in str(error):  # pydantic's writer does check types
            self._does_not_fit(value, error)
        raise PayloadError(f"{self._where}: {self._unwritable(value, error)}") from error

    def _unwritable(self, value: Any, error: Exception) -> str:
        if isinstance(error, RecursionError):
            return f"the value refers to itself or is nested too deeply (at most {MAX_DEPTH} levels)."
        if (path := locate(value, has_surrogate, self._root)) is not None:
            return (
                f"at {path}: the text has half of a surrogate pair, which UTF-8 and databases cannot hold. "
                'Clean it, for example with text.encode("utf-8", "replace").decode().'
            )
        at = ""
        if isinstance(error, UnknownObject):
            path = locate(value, lambda each: each is error.value, self._root)
            at = f" at {path}" if path else ""
        advice = "Pass plain data: dataclasses, or what their fields may hold."
        if not self._typed:
            advice = "Annotate it with its type, or pass plain JSON."
        return f"the value cannot be written{at}: {self._language.explain(error, self._root)}. {advice}"

    def _does_not_fit(self, value: Any, error: Exception) -> NoReturn:
        if isinstance(error, RecursionError):
            self._cannot_write(value, error)
        if (path := locate(value, is_nonfinite, self._root)) is not None:
            raise PayloadError(
                f"{self._where}: at {path}: NaN and infinity cannot be written as JSON. Use None, a Decimal, or text."
            ) from error
        raise PayloadError(
            f"{self._where} does not fit its type hint: {self._language.explain(error, self._root)}. "
            "Pass a value of the annotated type, or change the annotation."
        ) from error

    def _check_limits(self, text: bytes) -> None:
        if len(text) > self._max_bytes:
            raise PayloadError(
                f"{self._where}: the value is {len(text):,} bytes as JSON; at most {self._max_bytes:,} are recorded. "
                "Store it elsewhere (a file, an object store, a table) and pass its name."
            )
        if too_deep(text):
            raise PayloadError(
                f"{self._where}: the value is nested too deeply (at most {MAX_DEPTH} levels of lists and objects). "
                "Flatten it, or pass it as text."
            )

    def _close(self, codec: Codec, text: bytes) -> Payload:
        try:
            return Payload.from_bytes(codec.encode(text), codec.name)
        except Exception as error:
            raise PayloadError(f"{self._where}: the codec {codec.name!r} failed to encode it: {error!r}") from error

    def _open(self, payload: Payload) -> bytes:
        codec = self._codec
        if codec is None or codec.name != payload.encoding:
            known = f"the codec here is {codec.name!r}" if codec else "there is no codec here"
            raise PayloadError(
                f"{self._where}: it is encoded as {payload.encoding!r}, and {known}. Configure the codec that wrote it."
            )
        try:
            return codec.decode(payload.to_bytes())
        except Exception as error:
            raise PayloadError(f"{self._where}: the codec {codec.name!r} failed to decode it: {error!r}") from error


def make_plan(
    hint: Any, codec: Codec | None, max_bytes: int, *, where: str, root: str, localns: Names | None = None
) -> TypedPlan:
    """Raises PayloadError if there is no way to read values of this type back, with the reason and the way out."""
    typed = hint is not MISSING and hint is not Any and hint is not object
    language = choose_language(hint, where, localns or {}) if typed else plain_json()
    return TypedPlan(language, codec, max_bytes, where=where, root=root, typed=typed)
