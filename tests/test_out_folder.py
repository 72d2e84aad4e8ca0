"""A program's folder is replaced on request only, and is there whole or not at all."""

from pathlib import Path

import pytest

from strata.errors import UserError
from strata.out_folder import check_free, new_folder, unfinished_beside


def check(folder: Path, *, overwrite: bool) -> None:
    check_free(folder, record="mine.json", what="things", overwrite=overwrite)


def test_new_and_empty_folders_are_free(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "new"):
        check(folder, overwrite=False)
        check(folder, overwrite=True)


def test_a_folder_is_replaced_only_when_told_and_only_by_its_like(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(UserError, match=r"exists already.*--out.*--overwrite"):
        check(tmp_path, overwrite=False)
    check(tmp_path, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        check(tmp_path / "mine.json", overwrite=True)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"replaces things only.*is a run's"):
        check(tmp_path, overwrite=True)
    (tmp_path / "mine.json").unlink()
    with pytest.raises(UserError, match=r"replaces things only.*holds no mine\.json"):
        check(tmp_path, overwrite=True)


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    for text in ("first", "second"):
        with new_folder(out) as folder:
            assert folder != out and list(folder.iterdir()) == []
            (folder / text).write_text(text)
            assert out.exists() == (text == "second")
        assert [path.name for path in out.iterdir()] == [text]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [OSError(28, "None left on device"), UserError("Not so."), KeyboardInterrupt("stop")])
def test_what_fails_leaves_the_old_folder_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    (unfinished_beside(out) / "whole").mkdir(parents=True)
    (unfinished_beside(out) / "kept").write_text("kept")

    def fail() -> None:
        with new_folder(out, at=unfinished_beside(out) / "whole") as folder:
            (folder / "new").write_text("new")
            raise error

    is_ours = isinstance(error, OSError)
    with pytest.raises(UserError if is_ours else type(error), match=r"left on device. Give" if is_ours else str(error)):
        fail()
    assert [path.name for path in out.iterdir()] == ["old"]
    assert [path.name for path in unfinished_beside(out).iterdir()] == ["kept"]
