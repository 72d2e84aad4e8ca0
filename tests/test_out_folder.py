"""A program's folder is replaced on request only, and is there whole or not at all."""

import json
from pathlib import Path

import pytest

from strata.errors import UserError
from strata.out_folder import begin_folder, check_free, new_folder, unfinished_beside


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


def test_a_folder_is_gone_on_with_only_when_told_and_only_with_its_record(tmp_path: Path) -> None:
    def check_resumable(*, resume: bool, overwrite: bool = False) -> None:
        check_free(tmp_path, record="mine.json", what="things", overwrite=overwrite, resume=resume)

    with pytest.raises(UserError, match=r"`resume` needs a folder of things.*holds no mine\.json.*Leave resume out"):
        check_resumable(resume=True)
    check_resumable(resume=False)
    (tmp_path / ".mine.json.unfinished").write_text("{")  # of a process that was killed when it had begun
    check_resumable(resume=False)
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(UserError, match=r"exists already.*--out, go on with --resume, or replace it with --overwrite"):
        check_resumable(resume=False)
    check_resumable(resume=True)
    check_resumable(resume=False, overwrite=True)


def test_runs_are_replaced_by_runs(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    check_free(tmp_path, record="run.json", what="runs", overwrite=True, resume=False)


def test_a_begun_folder_holds_its_record_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin_folder(out, record="mine.json", content={"number": 1})
    (out / "more").write_text("more")
    begin_folder(out, record="mine.json", content={"number": 2})
    assert [path.name for path in out.iterdir()] == ["mine.json"]
    assert json.loads((out / "mine.json").read_text()) == {"number": 2}


def test_an_empty_folder_stays_itself_when_it_is_begun(tmp_path: Path) -> None:
    before = tmp_path.stat().st_ino
    begin_folder(tmp_path, record="mine.json", content={})
    assert tmp_path.stat().st_ino == before and (tmp_path / "mine.json").is_file()
