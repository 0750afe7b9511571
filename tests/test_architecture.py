"""The arrows of ARCHITECTURE.md, kept by reading the imports; and the size of files."""

import ast
import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "shadowft_jax"
# From low to high: a module imports only modules of lower layers, or of its own.
LAYERS = (
  {"errors", "hosts", "progress", "presets"},
  {"tree", "models", "attention", "layers"},
  {"topologies", "port", "sharding", "lora", "delta", "objectives", "loss", "optim"},
  {"step", "ahead", "estimate"},
  {
    "folder",
    "safetensors_file",
    "delta_file",
    "delta_stream",
    "buffers",
    "checkpoint",
    "stream",
    "graft_plan",
    "measure",
    "combine",
    "layout",
    "journal",
    "gap",
    "survival",
    "pairs",
    "pair_folder",
    "pair_check",
    "reference",
    "resume",
    "log",
    "report",
    "data",
    "generate",
    "outputs",
    "summed",
    "factored",
    "extract",
    "backends",
    "planning",
  },
  {"command"},
  {"graft", "select", "similarity"},
  {"train", "plan"},
)
HEIGHT = {name: i for i, layer in enumerate(LAYERS) for name in layer}
# Outside packages that only some modules may import.
ONLY = {
  "flax": {"models", "step", "train", "ahead"},
  "optax": {"optim", "step"},
  "orbax": {"resume"},
  "transformers": {"data"},
  "ml_collections": {"command", "presets"},
  "matplotlib": {"report"},
  "absl": {"command", "graft", "plan", "select", "similarity", "train"},
  "torch": set(),
  "peft": set(),
  "lab": set(),
  "tests": set(),
  "configs": set(),
}
BUDGET = 430  # until the rooms are built; then 300
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path):
  """Dotted names of everything a file imports, "a.b" for `from a import b`."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(path):
  """The module or subpackage of shadowft_jax that a file belongs to."""
  return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_down(path):
  here = part(path)
  if here == "__init__":
    assert not list(imported(path))
    return
  for name in imported(path):
    package, *rest = name.split(".")
    if package == "shadowft_jax":
      assert rest[0] in HEIGHT, f"{here} imports {rest[0]}, which has no layer in this test"
      assert HEIGHT[rest[0]] <= HEIGHT[here], f"{here} imports {name}"
      if here == "models":
        assert rest[0] in ("models", "errors"), f"models/ imports {name}"
    assert here in ONLY.get(package, {here}), f"{here} imports {name}"
    if here == "data":
      assert package != "jax", "data/ never imports jax"


def test_modules_import_no_cycle():
  graph = {}
  for path in MODULES:
    edges = {n.split(".")[1] for n in imported(path) if n.startswith("shadowft_jax.")}
    graph.setdefault(part(path), set()).update(edges - {part(path)})
  done = set()

  def visit(name, above):
    assert name not in above, f"cycle: {' -> '.join([*above, name])}"
    if name not in done:
      for other in sorted(graph.get(name, ())):
        visit(other, [*above, name])
      done.add(name)

  for name in sorted(graph):
    visit(name, [])


@pytest.mark.parametrize(
  "path", [*MODULES, *sorted((ROOT / "lab").glob("*.py"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_and_functions_keep_their_budget(path):
  text = path.read_text()
  assert len(text.splitlines()) <= BUDGET
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef):
      body = [
        s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
      ]
      length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
      assert length <= 50, f"{node.name} has {length} lines"


def test_every_module_has_a_docstring():
  bare = [
    p for p in MODULES if p.read_text().strip() and not ast.get_docstring(ast.parse(p.read_text()))
  ]
  assert not bare


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_imports_and_says_how_to_run_it(path):
  text = path.read_text()
  assert "python -m shadowft_jax.train" in ast.get_docstring(ast.parse(text))
  outside = {n.split(".")[0] for n in imported(path)}
  assert outside <= {"shadowft_jax", "ml_collections", "pathlib"}
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  from shadowft_jax import presets

  assert set(config.keys()) == set(presets.sft().keys())


def test_the_architecture_page_names_every_module():
  page = (ROOT / "ARCHITECTURE.md").read_text()
  missing = [p.name for p in MODULES if p.name != "__init__.py" and p.name not in page]
  assert not missing
