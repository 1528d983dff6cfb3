"""What the front end needs for the second tier of the response cache: the library, and the secret in the key file."""

import os
import secrets
import stat
from importlib.util import find_spec
from pathlib import Path

from ..config import Config
from ..exits import Exit
from ..frontend.cache.key import SECRET_BYTES
from .failures import InstanceFailure


def second_tier(config: Config) -> tuple[str, bytes]:
    """The server's socket and the secret; nothing of both where there is no second tier. Raises InstanceFailure.

    The secret outlives the daemon, as the answers do; instances that are to share answers share the file.
    """
    if config.redis is None or config.key_file is None:
        return "", b""
    if find_spec("redis") is None:
        sentence = f"[cache] redis = {config.redis}: the library is missing: pip install 'tensord[redis]'"
        raise InstanceFailure(Exit.CONFIG, sentence)
    try:
        return str(config.redis), _secret(config.key_file)
    except OSError as error:
        sentence = f"[cache] key_file {config.key_file}: {error.strerror}: give a file that this user can read or make"
        raise InstanceFailure(Exit.CONFIG, sentence) from error


def _secret(path: Path) -> bytes:
    """The file's, or a new one's. Raises OSError or InstanceFailure."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return _read(path)
    with os.fdopen(fd, "wb") as file:
        made = secrets.token_bytes(SECRET_BYTES)
        file.write(made)
    return made


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            sentence = f"[cache] key_file {path} can be used by other users: chown it to yourself and chmod 0600"
            raise InstanceFailure(Exit.CONFIG, sentence)
        secret = file.read(SECRET_BYTES + 1)
    if len(secret) != SECRET_BYTES:
        sentence = f"[cache] key_file {path} has not {SECRET_BYTES} bytes: remove it, and a new one is made"
        raise InstanceFailure(Exit.CONFIG, sentence)
    return secret
