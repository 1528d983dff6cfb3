"""The runtime directory of an instance: one daemon at a time, and its listening sockets."""

import contextlib
import fcntl
import os
import resource
import socket
import stat
from pathlib import Path
from typing import Final

from tensord.ipc.limits import SOCKET_PATH_BYTES_MAX

from ..exits import Exit
from .failures import InstanceFailure

BACKLOG: Final = 4096
"""Clients that may wait while the front end restarts; the kernel cuts it to net.core.somaxconn."""


class RuntimeDirectory:
    """Holds the lock for as long as the process lives: the kernel drops it with the last descriptor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd = -1
        self._sockets: list[tuple[Path, int]] = []

    def take(self) -> None:
        """Make the directory (0750) and lock it. Raises InstanceFailure, and holds nothing then."""
        try:
            self.path.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._check_owner()
            while self._lock_fd < 0:
                self._try_lock()
        except OSError as error:
            sentence = f"runtime_dir {self.path}: {error.strerror}; make it, or set [daemon] runtime_dir"
            raise InstanceFailure(Exit.CONFIG, sentence) from error
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode(), 0)

    def _try_lock(self) -> None:
        """Lock the file. One that an instance which just left has removed locks nothing: the next try makes another."""
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            sentence = f"another tensord (pid {holder}) runs in {self.path}: stop it, or set another runtime_dir"
            raise InstanceFailure(Exit.RUNNING, sentence) from None
        if os.fstat(fd).st_nlink:
            self._lock_fd = fd
        else:
            os.close(fd)

    def _check_owner(self) -> None:
        """Somebody else's directory would let them replace our sockets."""
        status = self.path.stat()
        if status.st_uid not in (os.getuid(), 0) or status.st_mode & stat.S_IWOTH:
            sentence = f"runtime_dir {self.path} can be written by other users: chown it to yourself and chmod 0750"
            raise InstanceFailure(Exit.CONFIG, sentence)

    def listen(self, path: Path) -> socket.socket:
        """A listening Unix socket (0660) at `path`, replacing one that nobody listens on. Raises InstanceFailure."""
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
            sentence = f"socket path {path} is longer than {SOCKET_PATH_BYTES_MAX} bytes: set a shorter runtime_dir"
            raise InstanceFailure(Exit.CONFIG, sentence)
        self._replace_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old_umask = os.umask(0o117)
        try:
            sock.bind(str(path))
        except OSError as error:
            sock.close()
            raise InstanceFailure(Exit.RUNNING, f"socket {path}: {error.strerror}") from error
        finally:
            os.umask(old_umask)
        sock.listen(BACKLOG)
        self._sockets.append((path, path.stat().st_ino))
        return sock

    def _replace_stale(self, path: Path) -> None:
        try:
            status = path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(status.st_mode):
            sentence = f"{path} exists and is not a socket: remove it, or set another runtime_dir"
            raise InstanceFailure(Exit.RUNNING, sentence)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(path))
            except (ConnectionRefusedError, FileNotFoundError):
                path.unlink(missing_ok=True)
                return
            except OSError as error:
                sentence = f"socket {path} is in use ({error.strerror}): stop its owner, or set another runtime_dir"
                raise InstanceFailure(Exit.RUNNING, sentence) from error
        sentence = f"socket {path} is in use by another program: stop it, or set another runtime_dir"
        raise InstanceFailure(Exit.RUNNING, sentence)

    def leave(self) -> None:
        """Remove our sockets (and nobody else's), and give the lock back."""
        for path, inode in self._sockets:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == inode:
                    path.unlink()
        if self._lock_fd >= 0:
            with contextlib.suppress(OSError):
                (self.path / "lock").unlink()
            os.close(self._lock_fd)
            self._lock_fd = -1


def raise_descriptor_limit() -> None:
    """Use all descriptors that the hard limit allows: each connection takes one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
