"""``glip convert SOURCE FOLDER``: convert a checkpoint (2022 release, mmdetection or glip) to glip's format.

With ``--task`` what a task changed is merged into the weights, or written alone as an adapter of peft.
"""

import argparse

from glip.console import printable


def run(args: argparse.Namespace) -> int:
    """Load and save."""
    from glip.detector import Detector
    from glip.files import exclusive
    from glip.model.adapt import save_peft_adapter
    from glip.model.weights import load_pretrained, save_pretrained

    task = args.task or args.peft
    adapted = Detector.from_pretrained(args.source, task=task, device="cpu") if task else None
    loaded = adapted or load_pretrained(args.source)
    with exclusive(args.folder):
        if adapted and args.peft:
            save_peft_adapter(args.folder, adapted.adaptation)  # type: ignore[arg-type]
        elif adapted:
            adapted.save_pretrained(args.folder, half=args.half)
        else:
            save_pretrained(args.folder, loaded.model, loaded.config, loaded.tokenizer, half=args.half)
    count = sum(parameter.numel() for parameter in loaded.model.parameters())
    print(f"{args.folder}: {printable(loaded.config.name)}, {count / 1e6:.1f} M parameters")
    return 0
