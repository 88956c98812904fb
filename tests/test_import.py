"""``import glip`` is lazy: it loads nothing heavy, and every public name is there when asked for."""

import subprocess
import sys

import pytest
from small import ROOT

import glip

HEAVY = ("torch", "torchvision", "transformers", "spacy", "timm", "numpy", "PIL", "yaml", "pycocotools", "lvis", "cv2")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy():
    assert python(f"import sys, glip; print([name for name in {HEAVY!r} if name in sys.modules])").strip() == "[]"


def test_given_phrases_need_no_spacy():
    code = "import sys\nfrom glip import Prompt\nPrompt.from_caption('a cat', ['cat'])"
    assert python(f"{code}\nprint('spacy' in sys.modules)").strip() == "False", "only a free caption is tagged"


def test_help_loads_no_torch():
    code = (
        "import sys\nfrom glip.cli.main import main\ntry:\n    main(['detect', '--help'])\n"
        "except SystemExit as e:\n    print(e.code, 'torch' in sys.modules)"
    )
    assert python(code).strip().endswith("0 False")


def test_detection_loads_only_what_it_needs(tmp_path):
    """Each of these takes between a third of torch's own time and as long."""
    image = ROOT / "docs" / "images" / "street.png"
    arguments = ["detect", str(image), "a red bus", "--out", str(tmp_path), "--device", "cpu"]
    late = ("torchvision", "transformers", "timm", "spacy", "matplotlib", "torch._dynamo", "pandas")
    code = (
        f"import sys\nfrom glip.cli.main import main\ntry:\n    main({arguments!r})\n"
        f"except SystemExit as e:\n    print(e.code, [name for name in {late!r} if name in sys.modules])"
    )
    assert python(code).strip().endswith("0 []")


def test_config_needs_no_torch():
    assert python("import sys, glip\nglip.load_config('tiny')\nprint('torch' in sys.modules)").strip() == "False"


@pytest.mark.parametrize("name", glip.__all__)
def test_every_public_name_is_there(name):
    assert getattr(glip, name) is getattr(glip, name)
    assert name in dir(glip)


def test_star_import():
    names: dict[str, object] = {}
    exec("from glip import *", names)
    assert set(glip.__all__) <= set(names)


def test_unknown_name_is_explained():
    with pytest.raises(AttributeError, match="module 'glip' has no attribute 'Dectector'; it has GLIP, Criterion"):
        _ = glip.Dectector
    with pytest.raises(ImportError):
        exec("from glip import Dectector")


def test_list_pretrained():
    assert glip.list_pretrained() == ("glip-nano", "glip-t-a", "glip-t-b", "glip-t-c", "glip-t", "glip-l")
