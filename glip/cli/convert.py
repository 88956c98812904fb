"""``glip convert SOURCE FOLDER``: convert a checkpoint (2022 release, mmdetection or glip) to glip's format.

With ``--task`` what a task changed is merged into the weights, or written alone as an adapter of peft.
"""

import argparse
from collections.abc import Callable
from functools import partial

from glip.console import printable


def run(args: argparse.Namespace) -> int:
    """Load and save."""
    from glip.detector import Detector
    from glip.files import exclusive
    from glip.model.adapt import load_adaptation, save_peft_adapter
    from glip.model.glip import add_fusion
    from glip.model.weights import load_pretrained, save_pretrained

    save: Callable[[str], None]
    if file := args.task or args.peft:
        task = load_adaptation(file)
        detector = Detector.from_pretrained(args.source, task=task, device="cpu")
        model, config = detector.model, detector.config
        merged = partial(detector.save_pretrained, half=args.half)
        save = partial(save_peft_adapter, adaptation=task) if args.peft else merged
    else:
        loaded = load_pretrained(args.source)
        model, config = add_fusion(loaded.model, loaded.config) if args.add_fusion else (loaded.model, loaded.config)
        save = partial(save_pretrained, model=model, config=config, vocabulary=loaded.tokenizer, half=args.half)
    with exclusive(args.folder):
        save(args.folder)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{args.folder}: {printable(config.name)}, {count / 1e6:.1f} M parameters")
    return 0
