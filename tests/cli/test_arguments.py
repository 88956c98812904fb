"""Flags come from the options dataclasses; --help is quick."""

import subprocess
import sys

import pytest

from glip.cli.arguments import CAPTIONED, VERBS, build_parser, read_options
from glip.config import EvaluateConfig, LabelConfig, SelectConfig, SelfTrainConfig, TuneConfig
from glip.errors import ConfigError

SELF_TRAIN = ("self-train", "pretrain/nano", "captions.jsonl", "--teacher", "glip-nano", "--out", "o")


def parse(*words):
    return build_parser().parse_args(words)


def test_flags_are_the_fields_of_the_options():
    args = parse("label", "m", "c", "--out", "o", "--min-side", "100", "--referring", "--engine", "ray")
    options = read_options(LabelConfig, args)
    assert (options.min_side, options.referring, options.engine, options.max_words) == (100, True, "ray", 64)
    assert read_options(EvaluateConfig, parse("evaluate", "m")) == EvaluateConfig()
    args = parse("tune", "m", "s", "--lr", "0.1", "--no-thresholds", "--shots", "1", "all")
    tuned = read_options(TuneConfig, args, mode="text", shots=args.shots[1], seed=3)
    assert (tuned.lr, tuned.thresholds, tuned.mode, tuned.seed, tuned.patience) == (0.1, False, "text", 3, 8)
    assert args.shots == [1, None]
    args = parse(*SELF_TRAIN, "--rounds", "2", "--min-score", "0.3", "--max-words", "9", "train.steps=5")
    assert read_options(SelfTrainConfig, args).rounds == 2 and read_options(SelectConfig, args).min_score == 0.3
    assert read_options(LabelConfig, args).max_words == 9 and args.overrides == ["train.steps=5"]


def test_a_value_out_of_range_names_its_flag():
    with pytest.raises(ConfigError, match=r"--min-score: got 2.0: give a number, 0 or more and at most 1"):
        read_options(SelectConfig, parse("select", "labels", "--min-score", "2"))


def test_help_needs_no_torch():
    """Of every verb, in a process of its own."""
    code = (
        "import sys; from glip.cli.arguments import VERBS, build_parser; parser = build_parser()\n"
        "for verb in VERBS:\n"
        "    try: parser.parse_args([verb, '--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'transformers', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert all(f"usage: glip {verb}" in done.stdout for verb in VERBS)


def test_the_help_of_label_shows_what_is_for_captions_only():
    [own] = [one for one in build_parser()._actions if one.dest == "verb"]
    text = own.choices["label"].format_help()
    filters, captions = text.partition("images that are skipped")[2].split("captions only, not with --names:")
    assert "--same-image N" in filters and "--max-words" not in filters and "--max-words N" in captions
    assert all(f"--{name.replace('_', '-')}" in captions for name in CAPTIONED) and "--threshold" not in captions
