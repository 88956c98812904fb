"""Install each extra of setup.cfg alone, as ``pip install .[EXTRA]`` in a fresh environment, and run what it is for.

    python tools/extras.py [EXTRA ...]          all of them, the bare package first; one or two minutes each

Where uv is on the path it installs, which is faster and stores shared packages once. A new extra is one entry of
``USES``: shell commands in an empty folder with the project's docs/, or the section of docs/integrations.md whose
Python blocks are run.
"""

import argparse
import configparser
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STREET = "docs/images/street.png"
_LABEL = "glip label glip-nano docs/images --names='a red house. a tree' --out=labels"
_VIDEO = """python - <<'PYTHON'
from glip.data.image import load_image
from glip.data.video import write_video
with write_video("clip.mp4", rate=10) as add:
    for number in range(4):
        add(load_image("docs/images/street.png"), number / 10)
PYTHON
glip detect clip.mp4 'a red house' --format=jsonl"""
_LOG = """python - <<'PYTHON'
import sys
from pathlib import Path
from glip.train.loggers import Loggers, check_loggers
check_loggers(["{0}"])
log = Loggers(["{0}"], Path("run"), {{"lr": 1}}, 0, sys.exit)
log(lambda one: one.log({{"loss": 1.0}}, 1, {{}}))
log(lambda one: one.close({{"AP": 0.5}}, True))
PYTHON
ls run/*"""
_RESULT = 'python -c \'import glip; print(len(glip.Detector.from_pretrained("glip-nano")("{0}", "a tree").{1}()))\''
_SAM = f"""python - <<'PYTHON'
import glip
from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor
from glip.integrations.sam import Segmenter
small = dict(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, mlp_dim=16)
vision = small | dict(output_channels=16, image_size=64, patch_size=8, window_size=4, num_pos_feats=8)
prompt = dict(hidden_size=16, image_size=64, patch_size=8)
parts = dict(vision_config=vision | dict(global_attn_indexes=[0]), prompt_encoder_config=prompt)
config = SamConfig(**parts, mask_decoder_config=small | dict(iou_head_hidden_dim=16))
size, side = dict(height=64, width=64), dict(longest_edge=64)
images = SamImageProcessor(size=side, pad_size=size, mask_size=dict(longest_edge=16))
for part in (SamModel(config), SamProcessor(images)):
    part.save_pretrained("sam")
found = glip.Detector.from_pretrained("glip-nano")("{STREET}", "a tree")
print(Segmenter.from_pretrained("sam")("{STREET}", found).masks.shape)
PYTHON"""
USES = {
    "": f"glip detect {STREET} 'a tree'",
    "test": f"python -m pytest -q {ROOT}/tests/geometry {ROOT}/tests/text/test_tokens.py",
    "tools": f"python {ROOT}/tools/claims.py --help",
    "tensorboard": _LOG.format("tensorboard"),
    "wandb": f"export WANDB_MODE=offline; {_LOG.format('wandb')}",
    "mlflow": _LOG.format("mlflow"),
    "ray": f"{_LABEL} --engine=ray",
    "parquet": "python -c 'from glip.pseudo.store import write_shard; from pathlib import Path; "
    'write_shard(Path("a"), "a", "parquet", [{"id": 1, "image": "a.png", "caption": "a cat", "boxes": []}], {})\'',
    "heic": f"python -c 'import pillow_heif, glip.data.image as image; "
    f'pillow_heif.from_pillow(image.load_image("{STREET}")).save("a.heic"); print(image.load_image("a.heic"))\'',
    "supervision": _RESULT.format(STREET, "to_supervision"),
    "pandas": _RESULT.format(STREET, "to_dataframe"),
    "onnx": f"glip export glip-nano onnx && glip detect {STREET} 'a tree' --model=onnx",
    "transformers": "## Hugging Face transformers",
    "sam": _SAM,
    "sahi": "## SAHI",
    "cvat": "## CVAT",
    "autodistill": "## autodistill",
    "fiftyone": "## FiftyOne",
    "video": _VIDEO,
    "track": f"{_VIDEO} --track",
    "docs": f"cd {ROOT} && python -m mkdocs build --strict --site-dir $OLDPWD/site",
    "lora": "glip tune glip-nano docs/images/example/boxes.json --mode=lora --out=tuned --shots=1 "
    "--epochs=1 --images-per-epoch=4 --max-val-images=2",
    "demo": "glip demo --port=8798 & SERVER=$!; trap 'kill $SERVER' EXIT\n"
    "until curl -sf localhost:8798/config >config.json; do sleep 1; kill -0 $SERVER || exit; done; ls -l config.json",
    "serve": "glip serve --port=8799 & SERVER=$!; trap 'kill $SERVER' EXIT\n"
    "until curl -sf localhost:8799/health; do sleep 1; kill -0 $SERVER || exit; done\n"
    f"curl -sf localhost:8799/detect -F image=@{STREET} -F names='a tree'",
}
USES["all"] = "\n".join(USES[one] for one in ("heic", "pandas", "supervision", "onnx", "track", "demo"))


def listed() -> list[str]:
    """The extras of setup.cfg, after the bare package as ""."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return ["", *setup["options.extras_require"]]


def command_of(extra: str) -> str:
    """The shell command that uses an extra."""
    use = USES[extra]
    if not use.startswith("## "):
        return use
    page = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    section = page.split(f"\n{use}\n")[1].split("\n## ")[0]
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S))
    return f"python - <<'PYTHON'\n{code}\nPYTHON"


def try_one(extra: str, place: Path) -> tuple[bool, str]:
    """Install and run; gives whether that worked, and a row of the table."""
    source, folder, log = place / "source", place / "folder", place / "log"
    for name in ("glip", "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    folder.mkdir()
    (folder / "docs").symlink_to(ROOT / "docs")
    python, wanted = place / "env" / "bin" / "python", f"{source}[{extra}]" if extra else str(source)
    install: list[list[Any]]
    if uv := shutil.which("uv"):
        install = [[uv, "venv", "-q", place / "env"], [uv, "pip", "install", "-q", "--python", python, wanted]]
    else:
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wanted]
        install = [[sys.executable, "-m", "venv", place / "env"], pip]
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean |= {"PATH": f"{python.parent}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1", "HOME": str(place)}
    began, cache = time.monotonic(), {key: clean[key] for key in ("UV_CACHE_DIR",) if key in clean}
    cache.setdefault("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv"))
    with log.open("w") as words:
        codes, seconds = list[int](), list[float]()
        for command in [*install, ["bash", "-ec", command_of(extra)]]:
            where = {**clean, **({} if command[0] == "bash" else {"HOME": str(Path.home()), **cache})}
            done = subprocess.run(command, cwd=folder, env=where, stdout=words, stderr=words, check=False)
            codes.append(done.returncode)
            seconds.append(time.monotonic() - began)
            if done.returncode:
                break
    worked = not any(codes)
    packages = len(list((place / "env").glob("lib/python*/site-packages/*.dist-info")))
    last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
    ended = "works" if worked else f"exit {codes[-1]}: {last[:150]}"
    if not worked:
        print(f"---- {extra}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
    installed = seconds[1] if len(seconds) > 1 else 0.0
    return worked, f"| {extra or '(none)'} | {packages} | {installed:.0f} | {seconds[-1] - installed:.0f} | {ended} |"


def main() -> None:
    """Try the extras and print the table; exit code 1 where one does not work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"any of {', '.join(filter(None, listed()))}")
    args = parser.parse_args()
    failed = False
    print("| extra | packages | seconds to install | seconds to run | |\n|---|---|---|---|---|")
    for extra in args.extras or listed():
        with tempfile.TemporaryDirectory(prefix="glip-extra-") as place:
            worked, row = try_one(extra, Path(place))
        print(row, flush=True)
        failed |= not worked
    sys.exit(failed)


if __name__ == "__main__":
    main()
