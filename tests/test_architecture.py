"""The floors of ARCHITECTURE.md, held by reading every import; and the size of files."""

import ast
import functools
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "shadowft_jax"
# A room (a folder or file at the top of the package) imports rooms of lower floors, and its own.
FLOORS = {
  "ground": {"errors", "progress", "hosts", "files", "machine"},
  "idea": {"delta", "tree", "scope", "sharding", "models", "presets", "field"},
  "edges": {"hf", "data", "runs", "generation"},
  "method": {"pairs", "learning", "grafting", "evaluation", "planning"},
  "commands": {
    *("command", "__main__", "api"),
    *("train", "graft", "similarity", "select", "plan", "known_pairs", "example", "evaluate"),
    *("chat", "report", "sweep", "compare"),
  },
}
HEIGHT = {room: i for i, rooms in enumerate(FLOORS.values()) for room in rooms}
# The arrows within a floor; there are no others.
SIDEWAYS = {
  "hosts": {"errors", "machine", "progress"},
  "presets": {"field"},
  "files": {"errors", "progress"},
  "machine": {"errors", "files", "progress"},
  "delta": {"scope", "tree"},
  "sharding": {"tree"},
  "data": {"hf"},
  "runs": {"hf"},
  "generation": {"data", "hf", "runs"},
  "grafting": {"pairs"},
  "planning": {"learning"},
  **{name: {"command"} for name in FLOORS["commands"] - {"command"}},
  "api": {"train"},
  "sweep": {"command", "evaluate", "train"},
  "compare": {"command", "evaluate", "train"},
}
# What a room, or a module, must not bring along, however indirectly.
NEVER = {
  "errors": {"jax", "numpy", "flax"},
  "progress": {"jax", "numpy"},
  "files": {"jax", "transformers"},
  "presets": {"jax", "numpy"},
  "field": {"jax", "numpy", "shadowft_jax"},
  "data": {"jax", "flax"},
  "evaluation": {"jax", "flax"},
  "hf/safetensors": {"jax"},
  "hf/folder": {"jax"},
}
# Outside packages that only some rooms may import.
ONLY = {
  "flax": {"models", "learning", "train", "planning", "generation"},
  "optax": {"learning"},
  "orbax": {"learning"},
  "transformers": {"data"},
  "ml_collections": {"command", "runs", "presets"},
  "matplotlib": {"runs", "evaluation"},
  "absl": {"command"},
  "torch": set(),
  "peft": set(),
  "lab": set(),
  "tests": set(),
  "configs": set(),
}
MOST_BOXES, MOST_LEVELS = 36, 11
MOST_LINES, MOST_FUNCTION_LINES = 300, 40
MODULES = {str(p.relative_to(PACKAGE).with_suffix("")): p for p in sorted(PACKAGE.rglob("*.py"))}


def imported(path):
  """Dotted names of everything a file imports, "a.b" for `from a import b`."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def arrows(module):
  """(our modules that a module imports, the outside packages that it imports)."""
  ours, outside = set(), set()
  for name in imported(MODULES[module]):
    head, *rest = name.split(".")
    if head != "shadowft_jax":
      outside.add(head)
      continue
    # The name may be of something in a module, of a module, or of a package.
    names = ["/".join(rest[:n]) for n in range(len(rest), 0, -1)]
    target = next((x for n in names for x in (n, f"{n}/__init__") if x in MODULES), "__init__")
    # What leads to a module runs first.
    parents = {f"{'/'.join(rest[:n])}/__init__" for n in range(1, len(rest))}
    ours |= {target} | {p for p in parents & MODULES.keys() if room(p) != room(module)}
  return ours, outside


@functools.cache
def reached(module):
  """All of our modules that importing one runs, itself included."""
  seen, left = set(), [module]
  while left:
    here = left.pop()
    if here not in seen:
      seen.add(here)
      left += arrows(here)[0]
  return seen


def room(module):
  return module.split("/")[0]


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_down(module):
  here = room(module)
  ours, outside = arrows(module)
  if here == "__init__":
    assert not ours and not outside
    return
  assert here in HEIGHT, f"{here} is on no floor of this test"
  for other in {room(m) for m in ours} - {here, "__init__"}:
    below = HEIGHT[other] < HEIGHT[here]
    allowed = below or other in SIDEWAYS.get(here, ())
    assert allowed, f"{module} imports {other}"
    assert here != "models" or other == "errors", f"models/ imports {other}"
  for package in outside & ONLY.keys():
    assert here in ONLY[package], f"{module} imports {package}"


@pytest.mark.parametrize("place", NEVER)
def test_no_module_imports_a_forbidden_package_indirectly(place):
  for module in [m for m in MODULES if m == place or m.startswith(f"{place}/")]:
    brought = {p for m in reached(module) for p in arrows(m)[1]}
    brought |= {"shadowft_jax"} if reached(module) - {module} else set()
    for package in NEVER[place]:
      assert package not in brought, (module, package)


def test_data_brings_no_jax_when_it_runs():
  code = (
    "import sys, shadowft_jax.data.dataset, shadowft_jax.data.preview; print('jax' in sys.modules)"
  )
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.stdout == "False\n", done.stderr


def test_no_cycle_and_few_levels():
  levels = {}

  def level(module, above):
    assert module not in above, f"cycle: {' -> '.join([*above, module])}"
    if module not in levels:
      below = [level(m, [*above, module]) for m in arrows(module)[0]]
      levels[module] = 1 + max(below, default=0)
    return levels[module]

  assert max(level(module, []) for module in MODULES) <= MOST_LEVELS


def test_few_boxes_at_the_top():
  boxes = {room(m) for m in MODULES} - {"__init__"}
  assert len(boxes) <= MOST_BOXES
  assert boxes <= HEIGHT.keys()


def test_only_models_and_tasks_run_code_where_they_begin():
  full = [m for m in MODULES if m.endswith("__init__") and MODULES[m].read_text().strip()]
  assert set(full) <= {"models/__init__", "evaluation/tasks/__init__", "__init__"}


@pytest.mark.parametrize(
  "path",
  [*MODULES.values(), *sorted((ROOT / "lab").glob("*.py"))],
  ids=lambda p: str(p.relative_to(ROOT)),
)
def test_files_and_functions_keep_their_budget(path):
  text = path.read_text()
  assert len(text.splitlines()) <= MOST_LINES
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef):
      body = [
        s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
      ]
      length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
      assert length <= MOST_FUNCTION_LINES, f"{node.name} has {length} lines"


def test_every_module_has_a_docstring():
  texts = {m: path.read_text() for m, path in MODULES.items()}
  assert not [m for m, t in texts.items() if t.strip() and not ast.get_docstring(ast.parse(t))]


def public_functions(body, owner=""):
  """Yields (qualified name, function) of the public functions and methods of a module's body."""
  for node in body:
    name = getattr(node, "name", "_")
    is_public = not name.startswith("_") or (owner and name in ("__init__", "__call__"))
    if isinstance(node, ast.ClassDef) and is_public:
      yield from public_functions(node.body, f"{name}.")
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and is_public:
      yield owner + name, node


def unannotated(name, function):
  """The parameters of a function that have no type, and "return" where that has none."""
  arguments = function.args
  places = [*arguments.posonlyargs, *arguments.args]
  is_static = any(getattr(d, "id", "") == "staticmethod" for d in function.decorator_list)
  if "." in name and not is_static:
    places = places[1:]  # self or cls
  several = filter(None, (arguments.vararg, arguments.kwarg))
  missing = [x.arg for x in (*places, *arguments.kwonlyargs, *several) if x.annotation is None]
  return missing + ["return"] * (function.returns is None)


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_have_types(module):
  functions = public_functions(ast.parse(MODULES[module].read_text()).body)
  bad = {name: missing for name, node in functions if (missing := unannotated(name, node))}
  assert not bad, bad


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_imports_and_says_how_to_run_it(path):
  text = path.read_text()
  command = rf"shadowft[ _](jax\.)?train --config (configs/)?{path.stem}"
  assert re.search(command, ast.get_docstring(ast.parse(text)))
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
  missing = [m for m, p in MODULES.items() if p.name != "__init__.py" and p.name not in page]
  assert not missing


def test_cores_are_counted_in_one_place():
  """A process may be given fewer cores than the machine has, which os.cpu_count() counts."""
  counting = {m for m, p in MODULES.items() if "cpu_count" in p.read_text()}
  assert counting == {"machine"}
  from shadowft_jax import machine

  assert machine.cores() == len(os.sched_getaffinity(0))


def test_files_of_others_are_read_by_the_strict_reader_of_json():
  """Others may only parse what is not a file of a model, an adapter or a run."""
  why = {
    "files": "the strict reader, and its own journal",
    "data/files": "rows, each with an error of its own",
    "data/turns": "values in rows",
    "data/tokenise": "errors in the cache, which has a digest",
    "generation/client": "answers of a server",
    "generation/serving": "requests to a server",
    "evaluation/harness_model": "keys made here",
    "hosts": "values of the first process",
    "runs/run": "the config in memory",
    "runs/grid": "the config in memory",
    "evaluation/scored": "the options in memory",
    "evaluation/page": "answers, whatever characters a model writes",
    "example": "a file of this package",
  }
  reading = {
    module
    for module, path in MODULES.items()
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute) and node.attr in ("load", "loads")
    if getattr(node.value, "id", "") == "json"
  }
  others = {m for m in reading if not m.startswith("evaluation/tasks/")}  # rows of benchmarks
  assert others == why.keys()
