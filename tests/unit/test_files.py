"""Files that are whole or not there."""

import errno
import hashlib
import resource
from contextlib import contextmanager

import pytest

from evasion.components.common.files import remove, replacing, sha256_of


@contextmanager
def files_up_to(size):
    """Let no file of this process grow further, as a full disk does: the write fails half-way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "new" / "folder" / "file"
    with replacing(target) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == target.parent  # the same file system, so that renaming is one step
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_appears_when_it_is_whole(tmp_path):
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "file").touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]


def half_a_file(path):
    path.write_text("half")


def half_a_folder(path):
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "file").touch()


def nothing(path):
    pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("work", [half_a_file, half_a_folder, nothing])
def test_a_failure_leaves_what_was_there(tmp_path, error, work):
    target = tmp_path / "file"
    target.write_text("before")

    def failing():
        with replacing(target) as temporary:
            work(temporary)
            raise error

    with pytest.raises(error):
        failing()
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    with replacing(tmp_path / "file") as temporary:
        abandoned = temporary
        temporary.touch()
    abandoned.write_text("left by a process that was killed")
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "file").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_a_killed_process_left_is_not_in_the_way(tmp_path):
    half_a_folder(tmp_path / ".folder.partial")
    half_a_folder(tmp_path / "folder")  # and an earlier output
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "file").touch()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["folder", "folder/file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_names_the_file(tmp_path, code):
    with pytest.raises(OSError, match="the incomplete file was removed") as error, replacing(tmp_path / "file"):
        raise OSError(code, "from deep inside")
    assert error.value.errno == code
    assert str(tmp_path / "file") in str(error.value)


def test_a_full_disk_leaves_nothing(tmp_path):
    with (
        files_up_to(100_000),
        pytest.raises(OSError, match="the incomplete file was removed"),
        replacing(tmp_path / "file") as path,
    ):
        path.write_bytes(bytes(1_000_000))
    assert not list(tmp_path.iterdir())


def test_other_errors_of_the_system_are_reported_as_they_are(tmp_path):
    with pytest.raises(PermissionError, match=r"^no$"), replacing(tmp_path / "file"):
        raise PermissionError("no")


def test_remove(tmp_path):
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name in ("folder", "file", "missing"):
        remove(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_remove_of_a_link_keeps_its_target(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "file"]


def test_sha256_is_that_of_the_content(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
