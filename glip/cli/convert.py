"""``glip convert SOURCE FOLDER``: convert a checkpoint (2022 release, mmdetection or glip) to glip's format."""

import argparse

from glip.console import printable


def run(args: argparse.Namespace) -> int:
    """Load and save."""
    from glip.files import exclusive
    from glip.model.glip import add_fusion
    from glip.model.weights import load_pretrained, save_pretrained

    loaded = load_pretrained(args.source)
    model, config = add_fusion(loaded.model, loaded.config) if args.add_fusion else (loaded.model, loaded.config)
    with exclusive(args.folder):
        save_pretrained(args.folder, model, config, loaded.tokenizer, half=args.half)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{args.folder}: {printable(config.name)}, {count / 1e6:.1f} M parameters")
    return 0
