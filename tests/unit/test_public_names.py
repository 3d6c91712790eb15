"""`import histill` is instant, and what it offers is listed, documented and typed."""

import inspect
import subprocess
import sys

import pytest

import histill

pytestmark = pytest.mark.unit

PUBLIC = {
    "__version__",
    "open_tiles", "TileSet", "load_model", "Model",
    "ingest_tiles", "convert_encoder", "cache_responses",
    "train_teacher", "pretrain_student", "finetune_student", "distill_student", "prune_student",
    "search_students",
    "score_model", "promote_model", "export_model", "predict_tiles", "embed_tiles",
    "check_cluster", "sync_metrics",
    "HistillError", "InputError",
    "losses", "metrics", "models",
}  # fmt: skip
USE_CASES = [name for name in sorted(PUBLIC) if "_" in name and not name.startswith(("__", "open", "load"))]


def test_the_list_of_public_names() -> None:
    assert set(histill.__all__) == PUBLIC
    assert set(histill.__all__) <= set(dir(histill))
    for name in histill.__all__:
        assert getattr(histill, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'pretrian'"):
        histill.pretrian  # noqa: B018


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, histill; from histill import *; import histill.api.runs, histill.api.models, histill.cli.main;"
        "print([name for name in ('torch', 'ray', 'numpy', 'mlflow', 'timm', 'pyarrow') if name in sys.modules])"
    )
    lean = "import sys, histill; print([name for name in ('torch', 'ray', 'numpy', 'pydantic') if name in sys.modules])"
    for script in (lean, code.replace("from histill import *; ", "")):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", USE_CASES)
def test_each_use_case_says_what_it_takes_gives_and_refuses(name: str) -> None:
    function = getattr(histill, name)
    text = inspect.getdoc(function) or ""
    for part in ("Args:", "Returns:", "Raises:", "Examples:", f"histill.{name}("):
        assert part in text
    parameters = inspect.signature(function).parameters
    assert next(iter(parameters)) == "config"
    documented = text[text.index("Args:") : text.index("Returns:")]
    for parameter in parameters.values():
        assert f"{'**' if parameter.kind is parameter.VAR_KEYWORD else ''}{parameter.name}:" in documented


def test_types_are_for_users_too() -> None:
    from importlib.resources import files

    assert (files("histill") / "py.typed").is_file()
