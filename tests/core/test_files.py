"""Atomic files: whatever happens to the writer, a reader finds the complete old or new artefact."""

import hashlib
import signal
import subprocess
import sys
from threading import Event, Thread

import pytest

from pixrec_core import files
from pixrec_core.errors import MissingArtefactError


def test_readers_see_the_old_file_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("old")
    with files.replacing(path) as temporary:
        assert temporary.parent == path.parent, "a rename is atomic within one file system only"
        temporary.write_text("half")
        assert path.read_text() == "old"
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_with_its_content(tmp_path):
    path = tmp_path / "vectors"
    for name in ("first", "second"):
        with files.replacing(path) as temporary:
            (temporary / "deep").mkdir(parents=True)
            (temporary / "deep" / name).touch()
            assert not (path / "deep" / name).exists()
        assert [each.name for each in (path / "deep").iterdir()] == [name]
    assert list(tmp_path.iterdir()) == [path]


def test_parent_folders_are_created(tmp_path):
    files.write_json(tmp_path / "a" / "b" / "c.json", 1)
    assert files.read_json(tmp_path / "a" / "b" / "c.json") == 1


def fail_to_replace(path, name):
    """Write a file into the new folder, then fail."""
    with files.replacing(path) as temporary:
        temporary.mkdir()
        (temporary / name).touch()
        raise ZeroDivisionError


def test_an_exception_keeps_the_old_artefact_and_the_next_run_cleans_up(tmp_path):
    path = tmp_path / "vectors"
    path.mkdir()
    (path / "old").touch()
    for name in ("half", "quarter"):
        with pytest.raises(ZeroDivisionError):
            fail_to_replace(path, name)
    assert [each.name for each in path.iterdir()] == ["old"]
    (leftover,) = set(tmp_path.iterdir()) - {path}
    assert leftover.name.endswith(".partial")
    with files.replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [each.name for each in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_first_run_leaves_no_artefact(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fail_to_replace(tmp_path / "vectors", "half")
    assert not (tmp_path / "vectors").exists()


def test_a_killed_writer_keeps_the_old_artefact(tmp_path):
    path = tmp_path / "numbers.json"
    files.write_json(path, "old")
    code = f"""if True:
        import os, signal, pathlib
        from pixrec_core import files
        with files.replacing(pathlib.Path({str(path)!r})) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert files.read_json(path) == "old"
    files.write_json(path, "new")
    assert files.read_json(path) == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_concurrent_reader_never_sees_a_partial_file(tmp_path):
    path = tmp_path / "numbers.json"
    files.write_json(path, [0] * 5000)
    done, seen = Event(), []

    def read():
        while not done.is_set():
            values = files.read_json(path)
            seen.append((len(values), len(set(values))))

    reader = Thread(target=read)
    reader.start()
    try:
        for number in range(50):
            files.write_json(path, [number] * 5000)
    finally:
        done.set()
        reader.join()
    assert set(seen) == {(5000, 1)}


def test_json_is_sorted_and_indented_and_round_trips(tmp_path):
    value = {"b": [1, 2.5, None], "a": "caf\u00e9"}
    files.write_json(tmp_path / "v.json", value)
    text = (tmp_path / "v.json").read_text(encoding="utf-8")
    assert text == '{\n  "a": "caf\u00e9",\n  "b": [\n    1,\n    2.5,\n    null\n  ]\n}\n'
    assert files.read_json(tmp_path / "v.json") == value


@pytest.mark.parametrize("read", [files.read_json, files.require])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(MissingArtefactError, match=r"absent\.json does not exist.*pixrec run"):
        read(tmp_path / "absent.json")


def test_require_returns_an_existing_path(tmp_path):
    assert files.require(tmp_path) == tmp_path


def test_remove_deletes_files_folders_and_links_but_no_target_of_a_link(tmp_path):
    kept, file, folder, link, dangling = (tmp_path / name for name in ("kept", "file", "folder", "link", "dangling"))
    (kept / "inner").mkdir(parents=True)
    file.touch()
    (folder / "inner").mkdir(parents=True)
    link.symlink_to(kept)
    dangling.symlink_to(tmp_path / "nowhere")
    for path in (file, folder, link, dangling, tmp_path / "absent"):
        files.remove(path)
    assert list(tmp_path.iterdir()) == [kept]
    assert (kept / "inner").is_dir()


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"\x00pixels" * 100_000)
    assert files.sha256_file(tmp_path / "file") == hashlib.sha256(b"\x00pixels" * 100_000).hexdigest()


@pytest.mark.parametrize("links", [True, False])
def test_a_link_keeps_the_content_when_the_source_is_replaced(tmp_path, monkeypatch, links):
    if not links:  # as on a file system without hard links, or between two file systems

        def refuse(*_):
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(type(tmp_path), "hardlink_to", refuse)
    first, second = tmp_path / "first", tmp_path / "deep" / "second"
    first.write_text("old")
    files.link(first, second)
    assert (second.stat().st_nlink == 2) is links
    with files.replacing(first) as temporary:
        temporary.write_text("new")
    assert (first.read_text(), second.read_text()) == ("new", "old")
