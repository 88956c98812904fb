"""tools/claims.py: rows that exist are skipped, a run is a plain glip train, the report keeps what stands around it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from glip.train.start import load_config

TOOL = Path(__file__).resolve().parents[2] / "tools" / "claims.py"
FIGURES = {"novel AP50": 0.5, "seen AP50": 0.6, "novel recall@1": 0.3, "seen recall@1": 0.4}


@pytest.fixture
def claims(tmp_path, monkeypatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("claims", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, file in (("LEDGER", "claims.jsonl"), ("PAGE", "claims.md"), ("FIGURE", "images/claims.png")):
        monkeypatch.setattr(module, name, tmp_path / file)
    return module


def row(arm: str, size: int, seed: int, shift: float = 0.0) -> dict[str, object]:
    figures = {name: value + shift for name, value in FIGURES.items()}
    return {"arm": arm, "size": size, "seed": seed, "images": size or 32000, "figures": figures, "minutes": 12.0}


def call(claims: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["claims.py", *words])
    claims.main()


def test_the_next_missing_run_is_made_and_written(claims, monkeypatch, capsys):
    claims.LEDGER.write_text(json.dumps(row("a", 0, 0)) + "\n")
    monkeypatch.setattr(claims, "run", lambda arm, size, seed, language, device: row(arm, size, seed))
    call(claims, monkeypatch, "run")
    call(claims, monkeypatch, "run", "--arm", "b", "--size", "500", "--runs", "2")
    made = [json.loads(line) for line in claims.LEDGER.read_text().splitlines()]
    assert [(r["arm"], r["size"], r["seed"]) for r in made] == [("a", 0, 0), ("b", 0, 0), ("b", 500, 0), ("b", 500, 1)]
    call(claims, monkeypatch, "run", "--arm", "a", "--seed", "0", "--size", "0")
    assert len(claims.LEDGER.read_text().splitlines()) == 4
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "1 of these runs are still to make",
        "0 of these runs are still to make",
    ]


def test_a_run_is_a_plain_training(claims, monkeypatch, tmp_path):
    commands: list[list[str]] = []
    done = subprocess.CompletedProcess([], 0, stdout="abc123\n")
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    monkeypatch.setattr(claims.subprocess, "run", lambda command, **how: commands.append(command) or done)
    monkeypatch.setattr(claims.glip.Detector, "from_pretrained", lambda folder, device: None)
    monkeypatch.setattr(claims, "measure", lambda detector: FIGURES)
    made = claims.run("c", 1000, 2, "some/folder", "cpu")
    words = commands[0][commands[0].index("claims/c") + 1 : -2]
    experiment = load_config("claims/c", words)
    assert experiment.train.seed == 2 and experiment.model.language.pretrained == "some/folder"
    assert [(entry.name, entry.first) for entry in experiment.data.train] == [
        ("claims_mixed_train", 500),
        ("claims_mixed_train_captions", 500),
    ]
    assert made["figures"] == FIGURES and made["images"] == 1000 and made["commit"] == "abc123"
    assert "some/folder" not in json.dumps(made), "a path of one machine has no place in the ledger"


def test_every_arm_differs_from_b_in_one_thing(claims):
    a, b, c = (load_config(f"claims/{arm}") for arm in claims.ARMS)
    assert (a.train, a.data) == (b.train, b.data) and b.model.head.fusion and not a.model.head.fusion
    assert c.train == b.train and c.model.head == b.model.head and c.model.language == b.model.language


def test_the_report_stands_between_its_markers(claims, monkeypatch):
    pytest.importorskip("matplotlib")
    claims.PAGE.write_text(f"# Claims\n\nbefore\n\n{claims.BEGIN}\nold\n{claims.END}\n\nafter\n")
    rows = [row("a", 0, 0), row("a", 0, 1, 0.1), row("b", 500, 0), row("b", 0, 0, 0.2)]
    claims.FIGURE.parent.mkdir()
    claims.LEDGER.write_text("".join(json.dumps(r) + "\n" for r in rows))
    call(claims, monkeypatch, "report")
    once = claims.PAGE.read_text()
    assert once.startswith("# Claims\n\nbefore\n") and once.endswith("\n\nafter\n") and "old" not in once
    assert "| A: no fusion | 32,000 | 2 | 0.550 ± 0.071 | 0.650 ± 0.071 | 0.350 ± 0.071 | 0.450 ± 0.071 | 12 |" in once
    assert "| B: fusion | 500 | 1 | 0.500 |" in once
    assert claims.FIGURE.stat().st_size > 1000
    call(claims, monkeypatch, "report")
    assert claims.PAGE.read_text() == once
