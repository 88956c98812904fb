"""Files: whole or not at all, cut lines, the same run recognized, one writer per folder."""

import json
import os
import tempfile
from pathlib import Path

import pytest

from glip import files
from glip.errors import DataError


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "a.json"
    files.write_json(path, {"a": "é"})
    with pytest.raises(KeyError), files.atomic_write(path) as file:
        file.write("half")
        raise KeyError
    assert files.read_json(path) == {"a": "é"} and [one.name for one in path.parent.iterdir()] == ["a.json"]
    with files.atomic_write(path, "wb", durable=True) as file:
        file.write(b"[]")
    assert files.read_json(path) == []


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(OSError, match="a.txt' could not be written .*MB free"), files.atomic_write(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match="could not be written"), files.atomic_write(tmp_path / "a.pt", "wb"):
        raise RuntimeError("PytorchStreamWriter failed writing file")
    assert not list(tmp_path.iterdir())


def test_lines_survive_a_kill(tmp_path):
    path = tmp_path / "rows.jsonl"
    files.write_jsonl(path, [{"n": 0}])
    whole = path.read_text()
    second = json.dumps({"n": 1})
    for ending in (second, second + "\n", second + '\n{"n": 1'):
        path.write_text(whole + ending)
        assert list(files.read_jsonl(path)) == [{"n": 0}, {"n": 1}]
        files.append_jsonl(path, {"n": 2})
        assert list(files.read_jsonl(path)) == [{"n": 0}, {"n": 1}, {"n": 2}] and path.read_text().endswith("}\n")
    path.write_text(whole + '{"n"\n' + whole)
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        list(files.read_jsonl(path))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_broken_json_is_one_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match="a.json"):
        files.read_json(tmp_path / "a.json")


def test_the_same_settings_go_on_and_others_are_refused(tmp_path):
    files.begin_run(tmp_path, {"model": "a", "threshold": 0.1, "images": ("x",)})
    files.begin_run(tmp_path, {"model": "a", "threshold": 0.1, "images": ["x"]})
    with pytest.raises(DataError, match="made with threshold 0.1, not 0.2"):
        files.begin_run(tmp_path, {"model": "a", "threshold": 0.2, "images": ["x"]})
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        files.begin_run(tmp_path, {})


def test_what_differs_in_a_list_of_maps_is_named_alone(tmp_path):
    files.begin_run(tmp_path, {"train": [{"name": "a", "weight": 1.0, "images": ["x"]}]})
    with pytest.raises(DataError, match=r"made with train\[0\].weight 1.0, not 2.0: give"):
        files.begin_run(tmp_path, {"train": [{"name": "a", "weight": 2.0, "images": ["x"]}]})


def test_one_writer_per_folder(tmp_path):
    new = tmp_path / "new"
    with files.exclusive(new), pytest.raises(files.LockedError, match="writes to"), files.exclusive(new):
        pass
    with files.exclusive(tmp_path / "new", wait=True):
        pass


def test_only_one_process_of_a_run_locks_and_all_have_its_error(tmp_path):
    def gather(problem: str) -> list[str]:
        return [problem, "another run writes to it"]

    with files.exclusive(tmp_path):
        with files.exclusive(tmp_path, main=False), files.exclusive(tmp_path / "a.json", is_file=True):
            pass
        with pytest.raises(files.LockedError, match="to it"), files.exclusive(tmp_path, main=False, gather=gather):
            pass


def test_what_killed_processes_were_writing_is_deleted(tmp_path):
    child = os.fork()
    if child == 0:
        with files.atomic_write(tmp_path / "deep" / "a.json"):
            os._exit(0)  # as if killed
    os.waitpid(child, 0)
    [dead] = (tmp_path / "deep").iterdir()
    running = dead.with_name(dead.name.replace(f"-{child}.", f"-{os.getppid()}."))
    other = [dead.with_name(name) for name in (".b.json.0000ff-1.partial", ".mine.partial")]
    for path in (running, *other):
        path.touch()
    with files.exclusive(tmp_path):
        assert {*(tmp_path / "deep").iterdir()} == {running, *other}, "of dead processes of this machine only"


def test_temporary_folders_of_killed_processes_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with files.temporary_folder("glip") as running:
        dead = Path(running.replace(f"-{os.getpid()}-", "-4194305-"))
        other = Path(running.replace("glip-", "pilg-").replace(f"-{os.getpid()}-", "-4194305-"))
        for folder in (dead, other):
            (folder / "uploads").mkdir(parents=True)
        monkeypatch.setattr(files, "_is_running", lambda number: number != 4194305)
        with files.temporary_folder("glip"):
            assert not dead.exists() and other.exists() and Path(running).exists()
    assert [path.name for path in tmp_path.iterdir()] == [other.name]


@pytest.mark.parametrize(
    "write", [files.append_jsonl, files.write_json, lambda path, _: files.exclusive(path).__enter__()]
)
def test_every_failed_write_names_its_file(tmp_path, write):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/(\.lock|row)|'.*/file'"):
        write(tmp_path / "file" / "row", {})


def test_fingerprints_tell_values_apart():
    values = ["ab", "a", ("a", "b"), b"ab", 1, 1.0, None, {"a": 1}]
    assert len({files.fingerprint(value) for value in values}) == len(values)
    assert files.fingerprint("a", "b") != files.fingerprint("ab") and files.fingerprint("x") == files.fingerprint("x")


def test_a_reader_that_has_seen_enough_is_no_full_disk():
    with pytest.raises(BrokenPipeError), files.writing(Path("-")):
        raise BrokenPipeError(32, "Broken pipe")
