"""README and docs: links, commands, flags, fields and quoted messages are those of the code."""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

import shadowft_jax
from shadowft_jax import __main__, command, example, presets
from tests import commands

ROOT = commands.ROOT
sys.path.append(str(ROOT / "docs"))

import tables  # noqa: E402  docs/ is no package

PAGES = [
  *(ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG")),
  *(ROOT / folder / "README.md" for folder in ("configs", "launch", "third_party")),
  *(ROOT / "third_party" / folder / "README.md" for folder in ("opencompass", "vllm")),
  ROOT / "benchmarks" / "RESULTS.md",
  *sorted((ROOT / "docs").glob("*.md")),
]
NAMES = [str(p.relative_to(ROOT)) for p in PAGES]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NEEDS = "# needs "  # a line of a block that cannot run here says what it needs
OPTIONS = {
  name: importlib.import_module(f"shadowft_jax.{module}").Options
  for name, module in __main__.COMMANDS.items()
}
# Programs that a block may call without saying so, and flags of other programs.
SHELL = {"cat", "cd", "export", "source", "python3"}
FOREIGN = {
  *("--enable-lora", "--lora-modules", "--max-lora-rank", "--generation-config"),  # vLLM
  *("--nodes", "--gpus-per-node", "--env", "--repeats", "--topology", "--billions", "--mergekit"),
  *("--peer", "--rows", "--steps", "--seed", "--workdir", "--out"),  # lab, benchmarks, launchers
  *("--kind", "--kills", "--speed", "--tiny", "--xla_gpu_deterministic_ops"),  # tests, XLA
}


def text_of(page):
  return tables.filled(page.read_text())


def blocks(page, language):
  """The code blocks of a language."""
  return [text for kind, text in BLOCK.findall(text_of(page)) if kind == language]


def prose(page):
  """A page without its code blocks."""
  return BLOCK.sub("", text_of(page))


def anchors(page):
  """The anchors that GitHub makes of a page's headings."""
  headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
  for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
    if not link.startswith("https://"):
      name, _, anchor = link.partition("#")
      target = (page.parent / name).resolve() if name else page
      assert target.exists(), link
      assert not anchor or anchor in anchors(target), link


def lines_of(block):
  """The commands of a shell block, as words; here-documents and comments are left out."""
  text = re.sub(r"(<<'(\w+)').*?^\2$", r"\1", block, flags=re.DOTALL | re.MULTILINE)
  for line in text.replace("\\\n", " ").splitlines():
    words = shlex.split(line, comments=True)
    end = next((i for i, w in enumerate(words) if w.startswith((">", "<"))), len(words))
    while words and re.fullmatch(r"\w+=.*", words[0]):
      words, end = words[1:], end - 1
    if words:
      yield words[:end]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder that has the files which the blocks name: `my` and mine.yaml."""
  made = tmp_path_factory.mktemp("docs")
  example.write(made / "my")
  (config,) = blocks(ROOT / "docs" / "settings.md", "yaml")
  (made / "mine.yaml").write_text(config)
  return made


def check(words, is_marked):
  """Checks one command of a block: that it exists, and its flags and fields."""
  program, *rest = words
  module = re.fullmatch(r"shadowft_jax\.(\w+)", rest[1]) if rest[:1] == ["-m"] else None
  if program == "shadowft" or module:
    name, argv = (module[1], rest[2:]) if module else (rest[0], rest[1:])
    if argv != ["--help-config"]:
      command.parse(OPTIONS[name], argv)
  elif program == "python" and rest[0] == "-m":
    module_path = rest[1].replace(".", "/")
    assert any((ROOT / f"{module_path}{end}").exists() for end in (".py", "/__main__.py")), rest[1]
  elif program == "make":
    assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), rest[0]
  elif program in ("python", "bash") and rest[0].endswith((".py", ".sh")):
    assert (ROOT / rest[0]).exists(), rest[0]
  else:
    assert is_marked or program in SHELL or rest[:1] in (["-"], ["-c"]), f"{program}: say {NEEDS!r}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_have_the_flags_and_fields_that_blocks_give_them(page, folder, monkeypatch):
  monkeypatch.chdir(folder)
  for block in blocks(page, "bash"):
    for words in lines_of(block):
      check(words, NEEDS in block)


def test_a_wrong_command_is_found(folder, monkeypatch):
  monkeypatch.chdir(folder)
  (words,) = lines_of("X=1 shadowft train --config my/lora.yaml \\\n  --workdir a  # so\n")
  check(words, False)
  for line in (
    "shadowft train --config my/lora.yaml --config.lrr=1",
    "shadowft graft --delta a --instruct b --out c --alfa=1",
    "shadowft graft --delta a b --instruct c --out d",
    "python -m shadowft_jax.plan --config lora",
    "python -m lab.nothing",
    "make nothing",
    "hf download ORG/NAME",
  ):
    with pytest.raises((AssertionError, ValueError)):
      check(shlex.split(line), False)
  check(["hf", "download", "ORG/NAME"], True)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_flags_and_fields_in_the_text_exist(page):
  text = page.read_text()
  groups = {name.rpartition(".")[0] for name in presets.FIELDS}
  for name in re.findall(r"--config\.([a-z][\w.]*\w)", text):
    assert presets.field_of(name) or name in groups, name
  known = {f"--{flag}" for o in OPTIONS.values() for flag in (*command.fields(o), *command.COMMON)}
  aliases = [f.metadata["aliases"] for o in OPTIONS.values() for f in command.fields(o).values()]
  known |= {f"--{alias}" for names in aliases for alias in names}
  known |= {f"--no{dash}{f[2:]}" for f in known for dash in ("", "-")}
  for flag in re.findall(r"`[^`\n]*?(--[a-z][\w-]+)", prose(page)):
    assert flag in known | FOREIGN | {f"--{command.HELP_CONFIG}", "--config"}, flag


def test_every_field_is_in_the_settings():
  rows = [re.split(r"(?<!\\) \| ", row) for row in tables.settings().splitlines()]
  listed = {cells[0][3:-1]: cells[1:] for cells in rows if cells[0].startswith("| `")}
  assert list(listed) == list(presets.FIELDS)
  for name, field in presets.FIELDS.items():
    meaning, values, default = listed[name]
    assert meaning.replace("\\|", "|") == field.meaning
    assert all(f"`{choice}`" in values for choice in field.choices) and field.range in values
    written = "" if field.default == {} else str(field.default)
    assert default.removesuffix(" |").strip("`") == written


@pytest.mark.parametrize("name", OPTIONS)
def test_every_command_has_a_page_with_its_flags(name):
  page = text_of(ROOT / "docs" / f"{name}.md")
  assert page.startswith(f"# shadowft {name}\n")
  for flag, defined in command.fields(OPTIONS[name]).items():
    meaning = defined.metadata["field"].meaning.replace("|", "\\|")
    assert f"\n| `--{flag}` | {meaning} |" in page
  assert f"](docs/{name}.md)" in (ROOT / "README.md").read_text()
  assert f"\n{name}\n" in (ROOT / "docs" / "index.md").read_text()


def test_names_on_our_side_of_the_table_are_fields():
  ours = prose(ROOT / "docs" / "names.md").partition("## Not offered")[0]
  cells = [line.split(" | ")[0] for line in ours.splitlines() if line.startswith("| ")]
  spans = [x for cell in cells for x in re.findall(r"`([a-z][\w.=…]*)`", cell)]
  assert len(spans) > 30
  for name, _, value in (span.partition("=") for span in spans):
    if name.endswith("…"):
      assert any(field.startswith(name[:-1]) for field in presets.FIELDS), name
    else:
      assert name in presets.FIELDS, name
      assert not value or value in presets.FIELDS[name].choices, (name, value)


def test_the_citation_is_complete():
  """Keys that the schema of CFF 1.2.0 requires; https://citation-file-format.github.io."""
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert citation["cff-version"] == "1.2.0" and citation["version"] == shadowft_jax.__version__
  assert {"message", "title", "authors"} <= citation.keys()
  (paper,) = citation["references"]
  assert {"type", "title", "authors"} <= paper.keys() and "2505.12716" in paper["url"]


def messages():
  """Every text of the package, what an f-string fills in as "…"."""
  for path in (ROOT / "shadowft_jax").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.JoinedStr):
        yield "".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def test_quoted_messages_are_those_of_the_code():
  rows = prose(ROOT / "docs" / "troubleshooting.md").partition("## Models")[2].splitlines()
  quoted = [x for row in rows if "|" in row for x in re.findall("`([^`]+)`", row.split("|")[1])]
  assert len(quoted) > 8
  known = "\n".join(messages())
  for words in quoted:
    for part in filter(None, map(str.strip, words.split("…"))):
      assert part in known, words


# ---- the blocks themselves


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
  """The folder `my` after its own train command."""
  made = tmp_path_factory.mktemp("trained")
  run(made, "shadowft example my\nshadowft train --config my/lora.yaml --workdir my/run\n")
  return made / "my"


def run(folder, text, program="bash"):
  """Runs a block in a folder, as a user would in the environment of these tests."""
  programs = folder / "bin"
  programs.mkdir(exist_ok=True)
  for name, line in {
    "shadowft": f'exec {sys.executable} -m shadowft_jax "$@"',
    "python": f'exec {sys.executable} "$@"',
  }.items():
    (programs / name).write_text(f"#!/bin/sh\n{line}\n")
    (programs / name).chmod(0o755)
  path = f"{programs}:{os.environ['PATH']}"
  env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  words = {"bash": ["bash", "-e", "-c", text], "python": [sys.executable, "-c", text]}[program]
  done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=1200)
  assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def runnable(page):
  """[(program, block)] of a page that say no needs; tests/test_api.py runs docs/api.md."""
  blocks = [] if page.name == "api.md" else BLOCK.findall(page.read_text())
  return [(kind, x) for kind, x in blocks if kind in ("bash", "python") and NEEDS not in x]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, p in zip(NAMES, PAGES, strict=True) if runnable(p)])
def test_the_blocks_of_a_page_run_one_after_another(name, tmp_path, request):
  page = ROOT / name
  if "use the folder `my` after the [three commands]" in " ".join(page.read_text().split()):
    shutil.copytree(request.getfixturevalue("trained"), tmp_path / "my")
  for kind, text in runnable(page):
    run(tmp_path, text, kind)
