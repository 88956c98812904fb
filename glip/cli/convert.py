"""``glip convert SOURCE FOLDER``: bring a checkpoint (2022 release, mmdetection, ours) into our safetensors form."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("source", help="a .pth file, a folder of ours, or a name such as glip-t")
    parser.add_argument("folder", help="where model.safetensors, config.json and vocab.txt go")
    parser.add_argument("--half", action="store_true", help="store float16: half the size, rounded weights")


def run(args: argparse.Namespace) -> int:
    """Load and save."""
    from glip.model.weights import load_pretrained, save_pretrained

    loaded = load_pretrained(args.source)
    save_pretrained(args.folder, loaded.model, loaded.config, loaded.tokenizer, half=args.half)
    count = sum(parameter.numel() for parameter in loaded.model.parameters())
    print(f"{args.folder}: {loaded.config.name}, {count / 1e6:.1f} M parameters")
    return 0
