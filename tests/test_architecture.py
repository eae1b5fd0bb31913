"""The shape of the package: imports point down, one place reverses, doors load what they need."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import backgpt

ROOT = Path(backgpt.__file__).parent
FLOORS = {
    0: {
        "errors",
        "checks",
        "cores",
        "shape",
        "messages",
        "config",
        "order",
        "files",
        "manifest",
        "intervals",
    },
    1: {
        "tokenizer",
        "foreign_tokenizer",
        "sentencepiece_model",
        "hints",
        "language",
        "chat",
        "datasets",
        "corpus",
        "shards",
        "parts",
        "prepare",
        "prepared",
        "controls",
        "rhymes",
    },
    2: {
        "engine",
        "kernels",
        "cache",
        "model",
        "ahead",
        "batches",
        "dialogues",
        "optim",
        "devices",
        "quantize",
        "arrays",
    },
    3: {
        "model_folder",
        "checkpoint",
        "card",
        "card_text",
        "builtin",
        "hub",
        "sampling",
        "slices",
        "wanted",
        "running",
        "stop_strings",
        "generate",
        "rewind",
        "score",
        "alternatives",
        "rank",
        "bridge",
        "around",
        "verse",
        "report",
        "report_text",
        "report_plot",
        "gap",
        "engines",
        "run_folder",
        "run_start",
        "training_data",
        "unreverse",
    },
    4: {
        "convert",
        "foreign_model",
        "foreign_folder",
        "smolgpt_checkpoint",
        "run",
        "train",
        "api",
        "session",
        "session_file",
        "label",
        "label_batch",
        "evaluate",
        "evaluate_twins",
        "report_card",
        "arrow",
        "export",
        "export_chat",
        "export_text",
        "export_gguf",
        "export_onnx",
        "onnx_graph",
    },
    5: {"cli", "server", "__main__"},
}
FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules}
TORCH_USERS = {"kernels", "cache", "model", "optim", "devices", "run", "train", "onnx_graph"}
TORCH_ENGINES = {"torch_engine.py", "smolgpt_engine.py", "transformers_engine.py"}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def module_of(path: Path) -> str:
    """Return the name below `backgpt` of the module or package that a file belongs to."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported_modules(path: Path) -> set[str]:
    """Return the modules of backgpt that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "backgpt":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("backgpt."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("backgpt.")]
            found |= {name.split(".")[1] for name in names}
    return found - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_from_its_own_floor_or_below(path: Path) -> None:
    floor = FLOOR_OF[module_of(path)]
    upward = {name for name in imported_modules(path) if FLOOR_OF[name] > floor}
    assert not upward


def test_there_is_no_cycle() -> None:
    imports: dict[str, set[str]] = {}
    for path in FILES:
        name = module_of(path)
        imports.setdefault(name, set()).update(imported_modules(path) - {name})

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"cycle: {' -> '.join((*trail, name))}"
        for other in imports.get(name, ()):
            visit(other, (*trail, name))

    for name in imports:
        visit(name, ())


def reverses(tree: ast.AST) -> list[int]:
    """Return the lines that reverse a sequence: `[::-1]`, `reversed`, `.flip`, `.reverse`."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Slice) and node.step is not None:
            if ast.unparse(node.step) == "-1":
                lines.append(node.step.lineno)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).split(".")[-1]
            if name in {"flip", "fliplr", "flipud", "reverse", "reversed"}:
                lines.append(node.lineno)
    return lines


def test_nothing_outside_order_reverses() -> None:
    offenders = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in FILES
        if module_of(path) != "order"
        for line in reverses(ast.parse(path.read_text()))
    ]
    assert not offenders
    assert reverses(ast.parse((ROOT / "order.py").read_text()))


def test_one_module_of_the_command_line_prints() -> None:
    for path in (ROOT / "cli").glob("*.py"):
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        prints = any(ast.unparse(call.func) in {"print", "typer.echo"} for call in calls)
        assert prints is (path.name == "terminal.py"), path


def test_only_torch_modules_import_torch_at_the_top() -> None:
    for path in FILES:
        body = ast.parse(path.read_text()).body
        names = {
            alias.name for node in body if isinstance(node, ast.Import) for alias in node.names
        }
        names |= {node.module or "" for node in body if isinstance(node, ast.ImportFrom)}
        if any(name.split(".")[0] == "torch" for name in names):
            assert module_of(path) in TORCH_USERS or path.name in TORCH_ENGINES, path


def loaded_by(statement: str, *suspects: str) -> set[str]:
    """Return which of `suspects` a fresh interpreter has loaded after `statement`."""
    program = f"import sys\n{statement}\nprint(*({set(suspects)!r} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("import backgpt", "torch", "numpy", "pydantic", "tokenizers", "typer")


def test_help_loads_neither_torch_nor_pydantic_nor_numpy() -> None:
    program = "import backgpt.cli\ntry: backgpt.cli.main(['--help'])\nexcept SystemExit: pass"
    loaded = loaded_by(
        f"import io, sys; sys.stdout = io.StringIO()\n{program}\nsys.stdout = sys.__stdout__",
        "torch",
        "pydantic",
        "numpy",
        "tokenizers",
    )
    assert not loaded


def test_running_a_model_loads_nothing_that_reads_settings_or_downloads() -> None:
    suspects = ("torch", "pydantic", "urllib.request", "importlib.metadata", "huggingface_hub")
    assert not loaded_by("import backgpt.api", *suspects)
    assert not loaded_by("import backgpt; backgpt.load(threads=1)", "huggingface_hub")


def test_preparing_and_the_text_side_of_generation_load_no_torch() -> None:
    for module in ("prepare", "generate", "score", "checkpoint", "api", "batches"):
        assert not loaded_by(f"import backgpt.{module}", "torch")


def test_the_public_names_are_those_listed_and_all_resolve() -> None:
    assert backgpt.__all__ == [
        *("BackgptError", "Message", "Model", "Sampling", "Score", "Text", "__version__", "load")
    ]
    for name in backgpt.__all__:
        assert getattr(backgpt, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        backgpt.nonsense  # noqa: B018


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty_names = {"utils", "util", "common", "helpers", "manager", "misc"}
    assert not {path.stem for path in FILES} & empty_names
