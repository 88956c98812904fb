"""``glip export MODEL FOLDER``: write a model as ONNX graphs, or as programs of torch.export."""

import argparse
from pathlib import Path


def run(args: argparse.Namespace) -> int:
    """Export, and name the files."""
    from glip.integrations.export import export_model

    folder = export_model(args.model, args.folder, args.format)
    for file in sorted(Path(folder).glob("[!.]*")):
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    return 0
