"""The scan: what counts as a model, and how one broken model leaves the others alone."""

from collections.abc import Callable
from pathlib import Path

from tensord.daemon.models.repository import Repository, scan

WriteModel = Callable[..., Path]


def versions(repository: Repository) -> list[tuple[str, int]]:
    return [(manifest.name, manifest.version) for manifest in repository.manifests]


def test_versions_are_ordered_by_name_and_number(write_model: WriteModel, repository: Path) -> None:
    for name, version in (("b", "2"), ("a", "10"), ("b", "1"), ("a", "9")):
        write_model(name=name, version=version)
    found = scan(repository)
    assert versions(found) == [("a", 9), ("a", 10), ("b", 1), ("b", 2)]
    assert found.broken == ()


def test_latest_is_the_highest_number(write_model: WriteModel, repository: Path) -> None:
    write_model(name="a", version="9")
    newest = write_model(name="a", version="10")
    latest = scan(repository).latest("a")
    assert latest is not None
    assert latest.directory == newest
    assert scan(repository).latest("b") is None


def test_files_hidden_directories_and_other_names_are_ignored(write_model: WriteModel, repository: Path) -> None:
    model = write_model(name="a").parent
    (repository / "README.md").write_text("")
    (repository / ".git").mkdir()
    for name in ("0", "01", "draft", ".2", "1.5"):
        (model / name).mkdir()
    (model / "3").write_text("a file")
    found = scan(repository)
    assert (versions(found), found.broken) == ([("a", 1)], ())


def test_a_broken_version_leaves_the_others(write_model: WriteModel, repository: Path) -> None:
    write_model(name="a", version="1")
    broken = write_model("format = ", name="a", version="2")
    write_model(name="b")
    found = scan(repository)
    assert versions(found) == [("a", 1), ("b", 1)]
    assert [error.path for error in found.broken] == [broken / "model.toml"]


def test_a_model_without_version_is_broken(write_model: WriteModel, repository: Path) -> None:
    (repository / "a" / "latest").mkdir(parents=True)
    write_model(name="b")
    found = scan(repository)
    assert versions(found) == [("b", 1)]
    assert [error.path for error in found.broken] == [repository / "a"]
    assert "a/1/model.toml" in found.broken[0].remedy


def test_an_empty_repository_has_no_models(repository: Path) -> None:
    assert scan(repository) == Repository((), ())


def test_a_missing_root_is_told_with_a_remedy(repository: Path) -> None:
    found = scan(repository / "nowhere")
    assert found.manifests == ()
    (error,) = found.broken
    assert error.path == repository / "nowhere"
    assert "No such file" in error.remedy


def test_a_root_that_is_a_file_is_told_with_a_remedy(repository: Path) -> None:
    (repository / "file").write_text("")
    (error,) = scan(repository / "file").broken
    assert "Not a directory" in error.remedy


def test_a_root_that_every_user_may_write_to_serves_nothing(write_model: WriteModel, repository: Path) -> None:
    write_model()
    repository.chmod(0o1777)
    found = scan(repository)
    assert found.manifests == ()
    assert found.broken[0].remedy.endswith(f"chmod o-w {repository}")


def test_a_model_directory_that_every_user_may_write_to_is_broken(write_model: WriteModel, repository: Path) -> None:
    model = write_model(name="a").parent
    write_model(name="b")
    model.chmod(0o777)
    found = scan(repository)
    assert versions(found) == [("b", 1)]
    assert [error.path for error in found.broken] == [model]
