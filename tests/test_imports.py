"""The direction of imports: every module may import from its own level's package and from levels below."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "treerl"

LEVELS = [
    {"errors", "canon", "problem", "config", "recipe", "metrics", "plain_llama"},
    {"verifiers"},
    {"search"},
    {"credit"},
    {"replay"},
    {"policy", "samplers", "evaluate", "inspect", "tasks"},
    {"engine"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def parts_imported(path: Path) -> set[str]:
    """First names under treerl that a file imports, at any place in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = (
                [node.module]
                if node.module != "treerl"
                else [f"treerl.{a.name}" for a in node.names]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {n.split(".")[1] for n in names if n.startswith("treerl.")}
    return found


def modules() -> list[Path]:
    return [
        path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__"
    ]


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_has_a_level():
    assert {part_of(path) for path in modules()} <= LEVEL.keys() | {"assets", "recipes"}


def test_imports_never_go_upwards_nor_between_siblings():
    wrong = []
    for path in modules():
        own = part_of(path)
        for other in parts_imported(path) - {own, "__version__"}:
            ground = LEVEL[own] == LEVEL[other] == 0
            if LEVEL[other] >= LEVEL[own] and not ground:
                wrong.append(f"{path.relative_to(ROOT)} imports treerl.{other}")
    assert not wrong, "\n".join(wrong)


def test_the_ground_level_has_no_cycle():
    graph = {
        p.stem: parts_imported(p) & LEVELS[0] for p in PACKAGE.glob("*.py") if p.stem in LEVELS[0]
    }
    while graph:
        free = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert free, f"cycle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


def test_heavy_libraries_stay_where_they_belong():
    forbidden = {
        "search": {"torch", "transformers", "sqlalchemy", "vllm"},
        "credit": {"torch", "transformers", "sqlalchemy", "vllm"},
        "replay": {"torch", "transformers", "vllm"},
        "verifiers": {"torch", "transformers", "sqlalchemy", "vllm"},
    }
    for path in modules():
        banned = forbidden.get(part_of(path), set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            assert not {n.split(".")[0] for n in names} & banned, path


def test_help_and_recipe_check_load_nothing_heavy():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from treerl.cli import app\n"
        "runner = CliRunner()\n"
        "assert runner.invoke(app, ['--help']).exit_code == 0\n"
        "assert runner.invoke(app, ['recipe', 'check', 'quickstart']).exit_code == 0\n"
        "assert runner.invoke(app, ['train', 'quickstart', '--dry-run']).exit_code == 0\n"
        "heavy = {'torch', 'vllm', 'sqlalchemy', 'alembic', 'transformers'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)
