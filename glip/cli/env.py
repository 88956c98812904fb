"""``glip env``: versions, device, threads and settings, for a bug report."""

import argparse
import getpass
import json
import os
import platform
import re
from contextlib import suppress
from importlib.metadata import distributions
from itertools import chain
from pathlib import Path
from typing import Any

_SETTING = re.compile(r"(MALLOC_|OMP_|MKL_|TORCH|CUDA_VISIBLE|HF_(HUB_OFFLINE|HOME|HUB_CACHE)|GLIP_DATA|LD_PRELOAD)")
_EXTRA = re.compile(r"""extra == ["'](?!test|docs|tools)""")


def run(args: argparse.Namespace) -> int:
    """Print the table, or with ``--json`` one object."""
    found = environment()
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {each}" for key, each in value.items()) or "none"
        print(f"{name:<11} {value}")
    return 0


def environment() -> dict[str, Any]:
    """What a bug may depend on, by name; home folders are ``~`` and the user's name is ``USER``."""
    import torch

    from glip.device import choose_device, choose_dtype
    from glip.model.weights import cache_folder
    from glip.provenance import made

    about, device = made(), choose_device(None)
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    settings = {name: _anonymous(os.environ[name]) for name in sorted(os.environ) if _SETTING.match(name)}
    preloaded = [Path(path).name for path in settings.get("LD_PRELOAD", "").split(":")]
    required, extras = _packages()
    return {
        "glip": f"{about['versions'].split(',')[0].split()[1]} {about['commit']}".strip(),
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "device": str(device),
        "GPUs": ", ".join(gpus) or "none",
        "CUDA": f"{torch.version.cuda or 'not built in'}, cuDNN {torch.backends.cudnn.version() or 'none'}",
        "CPU": f"{torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "dtype auto": str(choose_dtype("auto", device)).removeprefix("torch."),
        "allocator": " ".join(filter(None, preloaded)) or " ".join(platform.libc_ver()).strip() or "of the system",
        "cache": _anonymous(str(cache_folder())),
        "settings": settings,
        "packages": required,
        "extras": extras,
    }


def _packages() -> tuple[dict[str, str], dict[str, str]]:
    """Versions of what glip requires, and of what belongs to its extras as far as it is installed."""
    required, extras = dict[str, str](), dict[str, str]()
    for line in chain.from_iterable(own.requires or () for own in distributions(name="glip")):
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        found = next(iter(distributions(name=name)), None)
        if "extra ==" not in line:
            required[name] = found.version if found else "missing"
        elif found and _EXTRA.search(line):
            extras[name] = found.version
    return required, extras


def _anonymous(text: str) -> str:
    """A text without home folder and user name."""
    text = re.sub(rf"(?<![^:;,=\s]){re.escape(os.path.expanduser('~'))}(?![\w.-])", "~", text)
    with suppress(KeyError, OSError):  # a user without a name, as in a container
        text = re.sub(rf"(?<![\w.-]){re.escape(getpass.getuser())}(?![\w.-])", "USER", text)
    return text
