from pathlib import Path

import pytest

from tensord.daemon.models.errors import ManifestError
from tensord.daemon.models.names import check_name
from tensord.ipc.limits import NAME_BYTES_MAX

PATH = Path("model.toml")


@pytest.mark.parametrize("name", ["a", "Z", "0", "digits", "v1.2", "a_b-c.d", "x" * NAME_BYTES_MAX])
def test_letters_digits_and_a_few_signs_are_a_name(name: str) -> None:
    check_name(PATH, "its name", name, "rename it")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "-a", "_a", "a b", "a/b", "a:1", "a\n", "\na", "ä", "a\x00", "١", "x" * (NAME_BYTES_MAX + 1)],
)
def test_whatever_could_be_taken_for_something_else_is_none(name: str) -> None:
    with pytest.raises(ManifestError) as caught:
        check_name(PATH, "its name", name, "rename it")
    error = caught.value
    assert (error.path, error.key) == (PATH, "its name")
    assert error.remedy == ("a name is up to 128 of A-Z a-z 0-9 _ . -, and starts with a letter or digit; rename it")
    assert str(error).isprintable()
