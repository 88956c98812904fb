"""``glip verify FOLDER``: compare results and their data with the checksums from when they were written."""

import argparse


def run(args: argparse.Namespace) -> int:
    """Print a line for each file and dataset; exit code 1 if something changed."""
    from glip.recipes.verify import verify

    findings = []
    for line, changed in verify(args.target, args.root):
        print(line)
        findings.append(changed)
    print(f"{sum(findings)} of {len(findings)} changed" if any(findings) else f"all {len(findings)} as written")
    return int(any(findings))
