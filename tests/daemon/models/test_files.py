import os
from pathlib import Path

import pytest

from tensord.daemon.models.errors import ManifestError
from tensord.daemon.models.files import file_inside, refuse_writable_by_all


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version directory with one file, and one more in a folder."""
    directory = tmp_path / "model" / "1"
    (directory / "data").mkdir(parents=True)
    (directory / "weights").touch()
    (directory / "data" / "sample").touch()
    return directory


def found(directory: Path, name: str) -> Path:
    return file_inside(directory, name, directory / "model.toml", "a.key")


def refusal(directory: Path, name: str) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        found(directory, name)
    return caught.value


@pytest.mark.parametrize("name", ["weights", "data/sample", "./weights", "data//sample"])
def test_a_plain_file_is_found_where_it_is_named(version: Path, name: str) -> None:
    assert found(version, name) == version / name


@pytest.mark.parametrize("name", ["", ".", "..", "../1/weights", "data/../weights", "/weights", "a\0b", "a\nb"])
def test_a_name_that_is_not_plain_is_refused_whatever_is_there(version: Path, name: str) -> None:
    error = refusal(version, name)
    assert (error.path, error.key, error.value) == (version / "model.toml", "a.key", repr(name))
    assert error.remedy == "name a file inside the version directory, without '..'"


def test_a_file_that_is_not_there_is_told_with_the_reason(version: Path) -> None:
    assert "(No such file or directory)" in refusal(version, "other").remedy
    assert "(Not a directory)" in refusal(version, "weights/more").remedy


def test_links_may_lead_anywhere_inside_and_nowhere_outside(version: Path) -> None:
    (version / "inside").symlink_to("data/sample")
    (version / "outside").symlink_to(version.parent / "2")
    (version.parent / "2").touch()
    assert found(version, "inside") == version / "inside"
    assert "symbolic link out of the version directory" in refusal(version, "outside").remedy


def test_the_version_directory_may_be_a_link_itself(version: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(version)
    assert found(tmp_path / "link", "data/sample") == tmp_path / "link" / "data" / "sample"


def test_only_regular_files_are_read(version: Path) -> None:
    os.mkfifo(version / "pipe")
    for name in ("pipe", "data"):
        assert refusal(version, name).remedy == "it is not a regular file; name one"


@pytest.mark.parametrize("at_fault", ["data/sample", "data"])
def test_a_file_that_every_user_could_change_or_replace_is_refused(version: Path, at_fault: str) -> None:
    (version / at_fault).chmod(0o757)
    error = refusal(version, "data/sample")
    assert (error.path, error.key, error.value) == (version / at_fault, "its mode", "0757")


def test_behind_a_link_the_file_itself_is_looked_at(version: Path) -> None:
    (version / "link").symlink_to("data/sample")
    (version / "data" / "sample").chmod(0o666)
    assert refusal(version, "link").path == version / "data" / "sample"


def test_the_version_directory_and_what_is_above_it_are_not_looked_at(version: Path) -> None:
    version.chmod(0o777)
    version.parent.chmod(0o777)
    assert found(version, "weights") == version / "weights"


def test_the_mending_command_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "with a space"
    path.touch()
    path.chmod(0o602)
    with pytest.raises(ManifestError) as caught:
        refuse_writable_by_all(path)
    assert caught.value.remedy.endswith(f"chmod o-w '{path}'")
    path.chmod(0o660)
    refuse_writable_by_all(path)


def test_a_path_that_is_gone_is_told_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        refuse_writable_by_all(tmp_path / "gone")
    assert (caught.value.key, caught.value.value) == ("the path", "not accessible")
    assert "(No such file or directory)" in caught.value.remedy
