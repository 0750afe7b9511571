"""The command `evaluate`: counts of saved outputs, a tiny model's answers, resuming, errors."""

import json
import shutil
import types

import pytest

from shadowft_jax import evaluate, example
from shadowft_jax.errors import InputError
from shadowft_jax.evaluate import Options, main
from shadowft_jax.evaluation import arms
from shadowft_jax.generation import client, decode, local, vllm
from shadowft_jax.hf import hub
from shadowft_jax.evaluation.tasks import TASKS
from shadowft_jax.evaluation.tasks.originals import Data
from tests import commands, servers

GOLDS = ("18", "1,200", "3", "7", "70")
TINY = str(example.TINY / "instruct")


@pytest.fixture
def data(tmp_path):
  """A folder with five questions of GSM8K."""
  place = tmp_path / "data" / "gsm8k" / "test.jsonl"
  place.parent.mkdir(parents=True)
  rows = [{"question": f"How many, {i}?", "answer": f"So. #### {x}"} for i, x in enumerate(GOLDS)]
  place.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return tmp_path / "data"


def outputs(path, data, *texts, **more):
  """Saved answers to the questions; one that ends in … was cut."""
  path.parent.mkdir(exist_ok=True)
  with open(path, "w") as file:
    for one, text in zip(TASKS["gsm8k"].examples(Data(data)), texts, strict=True):
      reason = "length" if text.endswith("…") else "stop"
      row = {"id": one.id, "text": text, "finish_reason": reason, "tokens": 10, **more}
      file.write(json.dumps(row) + "\n")
  return str(path)


def scores(folder):
  return json.loads((folder / "scores.json").read_text())


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_saved_outputs_have_their_counts(data, tmp_path, capsys):
  texts = ("It is 18.", "1200 in all", "4", "none", "70 and…")
  file, out = outputs(tmp_path / "a.jsonl", data, *texts), tmp_path / "scores"
  main(Options(task=("gsm8k",), data=str(data), outputs=(file,), out=str(out)))
  score = scores(out)["models"]["a"]["tasks"]["gsm8k"]
  assert (score["questions"], score["accuracy"], score["finished"]) == (5, 0.4, 0.5)
  assert (score["cut"], score["unparsed"], score["tokens"]) == (1, 1, 10)
  states = [row["state"] for row in lines(out / "a" / "gsm8k.graded.jsonl")]
  assert states == ["right", "right", "wrong", "unparsed", "cut"]
  head, row, note = capsys.readouterr().out.splitlines()
  assert head.split()[:4] == ["task", "model", "questions", "score"]
  cells = ["gsm8k", "a", "5", "40.0%", "11.8%", "to", "76.9%", "50.0%", "1", "1", "10"]
  assert row.split() == cells
  assert note.startswith("a: gsm8k: cut answers, which count as wrong: 1 of 5 (20%); 40.0% of all")
  files = {"scores.json", "scores.png", "scores.svg", "gsm8k.questions.jsonl", "report.html"}
  assert {p.name for p in out.iterdir()} == {"a", *files}

  main(Options(task=("gsm8k",), data=str(data), outputs=(file,), cut="grade", out=str(out)))
  assert scores(out)["models"]["a"]["tasks"]["gsm8k"]["accuracy"] == 0.6


def test_thoughts_of_saved_outputs_are_not_graded(data, tmp_path):
  texts = ("<think>1</think>18", "<think>1200", "3", "7", "70")
  file, out = outputs(tmp_path / "a.jsonl", data, *texts), tmp_path / "scores"
  main(Options(task=("gsm8k",), data=str(data), outputs=(file,), out=str(out)))
  score = scores(out)["models"]["a"]["tasks"]["gsm8k"]
  assert (score["accuracy"], score["cut"]) == (0.8, 1)


def test_models_are_compared_with_the_first(data, tmp_path, capsys):
  texts = {
    "a": ("18", "1200", "3", "0", "0"),
    "b": ("0", "1200", "3", "7", "70"),
    "c": ("18", "1200", "3", "0", "0"),
  }
  for name, answers in texts.items():
    outputs(tmp_path / name / "gsm8k.jsonl", data, *answers, task="gsm8k")
  places = tuple(f"{name.upper()}={tmp_path / name}" for name in texts)
  out = tmp_path / "out"
  main(Options(task=("gsm8k",), data=str(data), outputs=places, out=str(out)))
  *_, head, b, c = capsys.readouterr().out.splitlines()
  assert head.split()[:3] == ["minus", "A", "model"]
  assert b.split()[:3] == ["gsm8k", "B", "+20.0%"] and b.split()[-3:] == ["1", "1", "2"]
  assert c.split()[:3] == ["gsm8k", "C", "+0.0%"] and c.split()[-2:] == ["0", "0"]
  ids = [one.id for one in TASKS["gsm8k"].examples(Data(data))]
  difference = scores(out)["minus_first"]["B"]["tasks"]["gsm8k"]
  assert (difference["lost"], difference["won"]) == (ids[:1], ids[3:])
  assert difference["mean"] == pytest.approx(0.2) and difference["p"] == 1.0
  rows = lines(out / "changes.jsonl")
  assert [(row["id"], row["change"]) for row in rows] == [
    (ids[0], "right to wrong"),
    (ids[3], "wrong to right"),
    (ids[4], "wrong to right"),
  ]
  assert (rows[0]["first"], rows[0]["second"]) == ("18", "0")


def test_a_model_answers_and_goes_on_where_it_was(data, tmp_path, monkeypatch):
  out = tmp_path / "out"
  options = Options(
    task=("gsm8k_0shot",),
    data=str(data),
    model=(TINY,),
    out=str(out),
    limit=2,
    max_new_tokens=4,
    batch_size=2,
  )
  main(options)
  path = out / "instruct" / "gsm8k_0shot.jsonl"
  whole = path.read_text()
  first, *answers = lines(path)
  assert first["settings"]["model"] == TINY and first["settings"]["sampling"]["max_new"] == 4
  ids = {one.id for one in TASKS["gsm8k_0shot"].examples(Data(data), 2)}
  assert {row["id"] for row in answers} == ids
  for row in answers:
    assert row["finish_reason"] == ("length" if row["tokens"] == 4 else "stop")
  assert scores(out)["models"]["instruct"]["tasks"]["gsm8k_0shot"]["questions"] == 2

  # A kill leaves one answer and half of the next.
  path.write_text("\n".join(whole.split("\n")[:2]) + "\n" + whole.split("\n")[2][:20])
  counts = []
  answers_of = decode.answers
  keep = lambda *args, **more: counts.append(len(args[2])) or answers_of(*args, **more)
  monkeypatch.setattr(decode, "answers", keep)
  main(options)
  assert sum(counts) == 1 and path.read_text() == whole
  main(options)
  assert sum(counts) == 1

  with pytest.raises(InputError, match=r"(?s)other settings.*sampling: .*4.*, now .*5"):
    main(Options(**{**vars(options), "max_new_tokens": 5}))
  # What it wrote is scored without it, the same.
  before = scores(out)["models"]["instruct"]["tasks"]
  again = {"data": str(data), "outputs": (str(path.parent),), "out": str(tmp_path / "again")}
  main(Options(task=("gsm8k_0shot",), limit=2, **again))
  assert scores(tmp_path / "again")["models"]["instruct"]["tasks"] == before


def test_answers_are_cut_where_the_context_ends(data, tmp_path, capsys):
  """GSM8K's worked examples are longer than the tiny pair's context; without them there is room."""
  options = {"data": str(data), "model": (TINY,), "limit": 1}
  main(Options(task=("gsm8k", "gsm8k_0shot"), out=str(tmp_path), **options))
  err = capsys.readouterr().err
  assert "warning: prompts that leave fewer than 512 of the model's 512 tokens" in err
  [_, cut] = lines(tmp_path / "instruct" / "gsm8k.jsonl")
  assert (cut["text"], cut["finish_reason"], cut["tokens"]) == ("", "length", 0)
  [_, answer] = lines(tmp_path / "instruct" / "gsm8k_0shot.jsonl")
  assert answer["tokens"] < 512 and answer["finish_reason"] == "stop"
  assert scores(tmp_path)["models"]["instruct"]["tasks"]["gsm8k"]["cut"] == 1


def test_answers_of_a_server_before_an_error_are_saved(data, tmp_path, monkeypatch):
  monkeypatch.setattr(client, "FIRST_WAIT", 0.001)
  out, rights = tmp_path / "out", {f"How many, {i}?": x for i, x in enumerate(GOLDS)}
  options = {"task": ("gsm8k_0shot",), "data": str(data), "out": str(out)}
  with servers.running() as server:
    options |= {"server": server.url, "name": ("S=tiny",)}

    def respond(body):
      text = body["messages"][-1]["content"]
      right = next((x for question, x in rights.items() if question in text), None)
      if right is None:
        return 400, servers.error("enough")
      return 200, servers.answer(f"<think>9</think>The answer is {right}.", tokens=7)

    server.respond = respond
    main(Options(**options, limit=4, protocol="paper"))
    first = server.requests[0][2]
    assert first["temperature"] == 0 and first["max_tokens"] == 4096
    assert first["chat_template_kwargs"] == {"enable_thinking": False}
    score = scores(out)["models"]["S"]["tasks"]["gsm8k_0shot"]
    assert (score["questions"], score["cut"], score["tokens"]) == (4, 0, 7)
    assert score["accuracy"] == 1
    rights = {}
    with pytest.raises(InputError, match="enough"):
      main(Options(**options, protocol="paper"))
  path = out / "S" / "gsm8k_0shot.jsonl"
  assert len(lines(path)) == 1 + 4
  again = {"data": str(data), "outputs": (str(path),), "out": str(tmp_path / "again"), "limit": 4}
  main(Options(task=("gsm8k_0shot",), **again))
  again = scores(tmp_path / "again")["models"]["gsm8k_0shot"]["tasks"]["gsm8k_0shot"]
  assert again["accuracy"] == score["accuracy"]
  code, _, err = commands.run(
    "evaluate",
    "--task=gsm8k",
    f"--data={data}",
    "--server=http://127.0.0.1:9",
    "--name=a",
    "--out=x",
  )
  assert code == 2 and err.count("\n") == 1


def test_a_server_is_suggested_where_answering_takes_long(data, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(vllm, "LONG", 0)
  options = {
    "task": ("gsm8k_0shot",),
    "data": str(data),
    "model": (TINY,),
    "out": str(tmp_path / "out"),
  }
  main(Options(**options, generate_only=True, limit=1, max_new_tokens=1))
  err = capsys.readouterr().err
  assert f"vllm serve {TINY} --served-model-name instruct --generation-config vllm" in err
  assert "evaluate with --server http://localhost:8000/v1 --name instruct" in err


def test_a_runs_folder_is_accepted_as_its_grafted_model(tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "shadow").symlink_to(TINY)
  assert hub.locate_model(str(tmp_path / "run")) == tmp_path / "run" / "shadow"
  bare = tmp_path / "bare"
  shutil.copytree(TINY, bare, ignore=shutil.ignore_patterns("*.jinja"))
  with pytest.raises(InputError, match="bare has no chat template"):
    local.load(bare)


def test_generated_answers_are_not_graded_if_not_wanted(data, tmp_path, capsys, monkeypatch):
  loaded = types.SimpleNamespace(identity={})
  monkeypatch.setattr(local, "load", lambda *args, **more: loaded)
  monkeypatch.setattr(evaluate.answering, "answer", lambda *args: None)
  options = {"task": ("gsm8k",), "data": str(data), "model": (TINY,), "out": str(tmp_path / "out")}
  main(Options(**options, generate_only=True))
  assert not capsys.readouterr().out and not (tmp_path / "out" / "scores.json").exists()


@pytest.mark.parametrize(
  "argv, message",
  [
    ([], "--task is not given"),
    (["--task=gsm8k"], "nothing to score; give --model DIR"),
    (["--task=gsm8k", "--name=a", "--out=b"], "--name needs --server: --server URL --name MODEL"),
    (["--task=gsm8k", "--outputs=a", "--alpha=1"], "--alpha needs --model, which gets the delta"),
    (["--task=gsm8k", "--model=a", "--out=b", "--samples=3"], "needs --protocol=sample"),
    (["--task=x", "--outputs=a", "--harness=lm-eval"], "--harness takes --model, --task, --limit"),
    (["--task=gsm8k", "--model=a+b@x", "--out=b"], "alpha 'x' is no number"),
    (["--task=gsm8k", "--outputs=a", "--outputs=a"], "two models are labelled 'a'; name them"),
    (["--task=gsm8k", "--model=a"], "--model needs --out"),
    (["--task=gsm9k", "--outputs=b"], "no task or suite is named 'gsm9k'; did you mean gsm8k"),
    (["--task=humaneval", "--outputs=b"], "pass --allow-code-execution to run them in a sandbox"),
    (["--task=gsm8k", "--outputs=b", "--data=x"], "has no gsm8k/test.jsonl"),
    (["--task=gsm8k", "--outputs=b", "--generate-only"], "--generate-only needs --model"),
    (["--task=gsm8k", "--outputs=b", "--max-new-tokens=9"], "--max-new-tokens needs --model"),
    (["--task=gsm8k", "--outputs=b", "--cut=no"], "--cut is one of wrong, grade"),
  ],
)
def test_bad_input_is_a_one_line_error(argv, message):
  code, out, err = commands.run("evaluate", *argv)
  assert (code, out) == (2, "")
  assert message in err and err.startswith("error: ") and err.count("\n") == 1


def test_missing_answers_are_reported(data, tmp_path):
  options = {"task": ("gsm8k",), "data": str(data)}
  with pytest.raises(InputError, match=r"gsm8k\.jsonl cannot be read"):
    main(Options(**options, outputs=(str(tmp_path),)))
  file = outputs(tmp_path / "a.jsonl", data, "1", "2", "3", "4", "5")
  with pytest.raises(InputError, match="4 of 5 answers .* are to questions that are not asked"):
    main(Options(**options, outputs=(file,), limit=1))


@pytest.mark.parametrize(
  "models, more, expected",
  [
    (["m/a"], {}, [("a", "m/a", "", 1.0)]),
    (["m/x", "n/x"], {}, [("m-x", "m/x", "", 1.0), ("n-x", "n/x", "", 1.0)]),
    (["I=m/a", "b"], {}, [("I", "m/a", "", 1.0), ("b", "b", "", 1.0)]),
    (["m/a+runs/b"], {}, [("a+runs-b@1", "m/a", "runs/b", 1.0)]),
    (["S=m/a+b@0,0.5"], {}, [("S@0", "m/a", "b", 0.0), ("S@0.5", "m/a", "b", 0.5)]),
    (["S=m/a+b@2"], {}, [("S", "m/a", "b", 2.0)]),
    (["a"], {"delta": "d", "alphas": ["0", "1"]}, [("a+d@0", "a", "d", 0), ("a+d@1", "a", "d", 1)]),
    (["a", "b+e"], {"delta": "d"}, [("a+d@1", "a", "d", 1), ("b+e@1", "b", "e", 1)]),
  ],
)
def test_models_deltas_and_strengths_are_arms(models, more, expected):
  parsed = arms.parse(models, **more)
  assert [(x.label, x.source, x.delta, x.alpha) for x in parsed] == expected
  assert {x.kind for x in parsed} == {"model"}


def test_a_folder_whose_name_has_signs_is_a_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ("a=b", "a+b", "m+d@1"):
    (tmp_path / name).mkdir()
    [arm] = arms.parse([name])
    assert (arm.label, arm.source, arm.delta) == (name, name, "")
  [arm] = arms.parse(outputs=["o/x.jsonl"])
  assert (arm.label, arm.kind, arm.source) == ("x", "outputs", "o/x.jsonl")
