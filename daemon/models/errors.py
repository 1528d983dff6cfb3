"""The error of the model repository, and how what a model's code raised is put into one line."""

import re
from dataclasses import dataclass
from pathlib import Path

_SHOWN_CHARACTERS_MAX = 80
_REASON_CHARACTERS_MAX = 200

_QUOTED_PATH = re.compile(r"""(['"])(?:~|\.{1,2})?/.*?\1""")
_BARE_PATH = re.compile(r"""(?<![\w./])(?:~|\.{1,2})?(?:/[^\s/'",:;()]+)+/?""")


@dataclass(eq=False, repr=False)
class ManifestError(Exception):
    """A model that cannot be served because of its files; it never travels to a client (it holds paths).

    `str(error)` is one sentence: `<path>: <key> is <value>: <remedy>`.
    """

    path: Path
    """The file or directory at fault."""
    key: str
    """What in it is wrong, as a path into the manifest where it stands there: `inputs[0].dtype`."""
    value: str
    """What was found."""
    remedy: str
    """What would be right, or what to do."""

    def __str__(self) -> str:
        return _printable(f"{self.path}: {self.key} is {self.value}: {self.remedy}")

    def __reduce__(self) -> tuple[type["ManifestError"], tuple[Path, str, str, str]]:
        return (ManifestError, (self.path, self.key, self.value, self.remedy))


def shown(value: object) -> str:
    """A value as it may stand in a sentence: on one line and not longer than a line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python converts
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else text[: _SHOWN_CHARACTERS_MAX - 1] + "…"


def reason_of(error: BaseException) -> str:
    """What was raised as one line of at most 200 characters: its class, and the first line of its message.

    Paths are left out, since clients read this.
    """
    try:
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    except Exception:
        message = ""  # an exception of the model's own that cannot even be printed
    line = next(iter(message.strip().splitlines()), "")
    line = _BARE_PATH.sub("<path>", _QUOTED_PATH.sub("<path>", line))
    text = _printable(f"{type(error).__name__}: {line}" if line else type(error).__name__)
    return text if len(text) <= _REASON_CHARACTERS_MAX else text[: _REASON_CHARACTERS_MAX - 1] + "…"


def _printable(text: str) -> str:
    """`text` with all that would break a line, or that has no UTF-8, as its escape."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
