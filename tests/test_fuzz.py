"""Broken inputs of every kind work or are refused with one sentence; a short form of ``python tools/fuzz.py``."""

import warnings

import pytest
from fuzz import fuzz, read_one
from fuzz_kinds import KINDS

COUNT = 25  # of each kind; the whole run is in docs/reliability.md


@pytest.mark.unchecked
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_input_is_read_or_refused(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fuzz(kind, COUNT)
    assert not found.failed, next(iter(found.failed.values()))
    assert found.counts["worked"] and found.counts["refused"]


def test_what_fails_is_kept_and_can_be_read_again(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "bad", lambda rng, folder: 1 / (rng.random() < 0.5))
    failed = fuzz("bad", 20, out=tmp_path).failed
    assert 0 < len(failed) < 20 and failed == fuzz("bad", 20).failed
    for number in failed:
        assert "ZeroDivisionError" in (tmp_path / f"bad-0-{number}" / "traceback.txt").read_text()
        with pytest.raises(ZeroDivisionError):
            read_one("bad", 0, number, tmp_path)
