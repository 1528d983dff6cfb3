"""The command line: `tensord serve`, `demo`, `infer`, `models`, `status`, `get`, `set`, `bench`,
`check-config`, `version`.
"""

from .app import main

__all__ = ["main"]
