"""``glip convert SOURCE FOLDER``: convert a checkpoint (2022 release, mmdetection or glip) to glip's format."""

import argparse

from glip.console import printable


def run(args: argparse.Namespace) -> int:
    """Load and save."""
    from glip.files import exclusive
    from glip.model.weights import load_pretrained, save_pretrained

    loaded = load_pretrained(args.source)
    with exclusive(args.folder):
        save_pretrained(args.folder, loaded.model, loaded.config, loaded.tokenizer, half=args.half)
    count = sum(parameter.numel() for parameter in loaded.model.parameters())
    print(f"{args.folder}: {printable(loaded.config.name)}, {count / 1e6:.1f} M parameters")
    return 0
