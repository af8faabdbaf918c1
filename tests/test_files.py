"""files.py: a file is written whole or not at all, and nothing else is touched."""

import os
import stat
import subprocess
import sys

import pytest

import files


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = files.write(tmp_path / "x.txt", "old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"cannot write .*x.txt: No space left"):
        files.write(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_a_link_is_replaced_and_its_target_is_not_touched(tmp_path):
    target, link = files.write(tmp_path / "private.txt", "mine"), tmp_path / "x.txt"
    link.symlink_to(target)
    files.write(link, "new")
    assert not link.is_symlink()
    assert (link.read_text(), target.read_text()) == ("new", "mine")


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, "/dev/null"):
        with pytest.raises(ValueError, match="is not a file"):
            files.write(path, "x")


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o002, 0o664), (0o022, 0o644)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        path = files.write(tmp_path / "x", b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_temporary_files_of_dead_processes_are_removed(tmp_path):
    script = (
        "import os, files\n"
        f"files.write({str(tmp_path / 'x')!r}, lambda path: (path.touch(), os._exit(9)))"
    )
    subprocess.run([sys.executable, "-c", script])
    assert len(list(tmp_path.iterdir())) == 1
    other = tmp_path / ".x.another-host.1.abcdef01.tmp~"
    alive = tmp_path / f".x.{files._host()}.{os.getpid()}.abcdef01.tmp~"
    foreign = tmp_path / ".x.tmp~"
    for path in (other, alive, foreign):
        path.touch()
    files.remove_stale(tmp_path)
    assert set(tmp_path.iterdir()) == {other, alive, foreign}
