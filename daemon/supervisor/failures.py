"""Why an instance cannot start, or had to end: a sentence for the operator and an exit code."""

from dataclasses import dataclass

from ..exits import Exit


@dataclass(eq=False)
class InstanceFailure(Exception):
    """`str()` is one line that names the thing, the value and the remedy."""

    exit: Exit
    sentence: str

    def __str__(self) -> str:
        return self.sentence
