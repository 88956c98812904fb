"""tools/claims.py: rows that exist are skipped, a run is a plain glip train, and the docs show the ledgers."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import claims
import pytest

from glip.errors import DataError
from glip.train.start import load_config

FIGURES = {"novel AP50": 0.5, "seen AP50": 0.6, "novel recall@1": 0.3, "seen recall@1": 0.4}


@pytest.fixture
def ledger(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(claims, "DOCS", tmp_path)
    return tmp_path / "claims.jsonl"


def row(arm: str, size: int, seed: int, shift: float = 0.0) -> dict[str, object]:
    figures = {name: value + shift for name, value in FIGURES.items()}
    return {"arm": arm, "size": size, "seed": seed, "images": size or 32000, "figures": figures, "minutes": 12.0}


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["claims.py", *words])
    claims.main()


def test_the_next_missing_run_is_made_and_written(ledger, monkeypatch, capsys):
    ledger.write_text(json.dumps(row("a", 0, 0)) + "\n")
    monkeypatch.setattr(claims, "run_arm", lambda seed, key, language, device: row(*key, seed))
    call(monkeypatch, "run")
    call(monkeypatch, "run", "--arm", "b", "--size", "500", "--runs", "2")
    made = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [(r["arm"], r["size"], r["seed"]) for r in made] == [("a", 0, 0), ("b", 0, 0), ("b", 500, 0), ("b", 500, 1)]
    call(monkeypatch, "run", "--arm", "a", "--seed", "0", "--size", "0")
    assert len(ledger.read_text().splitlines()) == 4
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "1 of these runs are still to make",
        "0 of these runs are still to make",
    ]


def test_a_run_is_a_plain_training(monkeypatch, tmp_path):
    commands: list[list[str]] = []
    done = subprocess.CompletedProcess([], 0, stdout="abc123\n")
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    monkeypatch.setattr(claims.subprocess, "run", lambda command, **how: commands.append(command) or done)
    monkeypatch.setattr(claims.glip.Detector, "from_pretrained", lambda folder, device: None)
    monkeypatch.setattr(claims, "scenes", lambda *split: [])
    monkeypatch.setattr(claims, "detect_all", lambda detector, samples: [])
    monkeypatch.setattr(claims, "average_precision", lambda pairs: SimpleNamespace(ap50=0.5))
    monkeypatch.setattr(claims, "phrase_recall", lambda pairs: SimpleNamespace(at={1: 0.25}))
    made = claims.run_arm(2, ("c", 1000), "some/folder", "cpu")
    words = commands[0][commands[0].index("claims/c") + 1 : -2]
    experiment = load_config("claims/c", words)
    assert experiment.train.seed == 2 and experiment.model.language.pretrained == "some/folder"
    assert [(entry.name, entry.first, entry.weight) for entry in experiment.data.train] == [
        ("claims_mixed_train", 500, 0.5),
        ("claims_mixed_train_captions", 500, 0.5),
    ]
    assert set(made["figures"].values()) == {0.5, 0.25} and made["images"] == 1000 and made["commit"] == "abc123"
    assert "some/folder" not in json.dumps(made), "a path of one machine has no place in the ledger"


def test_every_arm_differs_from_b_in_one_thing():
    a, b, c = (load_config(f"claims/{arm}") for arm in claims.ARMS)
    assert (a.train, a.data) == (b.train, b.data) and b.model.head.fusion and not a.model.head.fusion
    assert c.train == b.train and c.model.head == b.model.head and c.model.language == b.model.language


def test_the_tables_of_the_docs_are_those_of_the_ledgers(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    docs = claims.DOCS
    (tmp_path / "images").mkdir()
    for name in ("claims.md", "claims.jsonl", "claims_teach.jsonl", "claims_fusion.jsonl"):
        (tmp_path / name).write_bytes((docs / name).read_bytes())
    monkeypatch.setattr(claims, "DOCS", tmp_path)
    call(monkeypatch, "report")
    assert (tmp_path / "claims.md").read_text() == (docs / "claims.md").read_text()
    assert all(
        (tmp_path / "images" / f"{name}.png").stat().st_size > 1000
        for name in ("claims", "claims_teach", "claims_fusion")
    )
    page = (tmp_path / "claims.md").read_text()
    (tmp_path / "claims.jsonl").write_text(json.dumps(row("a", 0, 0)) + "\n" + json.dumps(row("a", 0, 1, 0.1)) + "\n")
    call(monkeypatch, "report")
    once = (tmp_path / "claims.md").read_text()
    assert "| A: no fusion | 32,000 | 2 | 0.550 ± 0.071 | 0.650 ± 0.071 | 0.350 ± 0.071 | 0.450 ± 0.071 | 12 |" in once
    assert once.split("<!--")[0] == page.split("<!--")[0] and once.split("-->")[-1] == page.split("-->")[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": ["a"]}, r"claims\.jsonl, line 1\.arm: got \['a'\]: give text"),
        ({"figures": {"novel AP50": "high"}}, r"line 1\.figures\.novel AP50: got 'high': give a number"),
        ({"figures": {}}, r"line 1: no figure 'novel AP50': delete the line"),
    ],
)
def test_edited_rows_are_refused_with_their_line(change, message, ledger):
    ledger.write_text(json.dumps(row("a", 0, 0) | change) + "\n")
    with pytest.raises(DataError, match=message):
        claims.STUDIES["arms"].groups()
