"""EleutherAI's harness in this process: what it asks becomes what our engine is asked."""

import json
import math
import subprocess
import sys
import types

import pytest
from lm_eval.api.instance import Instance

from shadowft_jax import example
from shadowft_jax.data import tokenizer as tokenizers
from shadowft_jax.errors import InputError
from shadowft_jax.evaluation import harness
from shadowft_jax.evaluation.harness_model import HarnessModel
from shadowft_jax.generation import local
from shadowft_jax.generation.completion import Completion
from shadowft_jax.generation.engine import Sampling
from tests import commands

INSTRUCT = example.TINY / "instruct"
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
output_type: {kind}
{more}
"""
GENERATE = r"""generation_kwargs: {until: ["\n"], max_gen_toks: 6}
metric_list: [{metric: exact_match}]"""
CHOOSE = "doc_to_choice: ['fox', 'owl']\nmetric_list: [{metric: acc}]"
ROLL = "metric_list: [{metric: word_perplexity}]"
ROWS = [{"question": f"number {i}", "answer": "fox" if i % 2 else "owl"} for i in range(4)]


class Oracle:
  """An engine whose answers are the last words of prompts, and which likes short answers."""

  def __init__(self, limit=512):
    self.tokenizer, self.limit = tokenizers.load_tokenizer(INSTRUCT), limit
    self.chat_template = tokenizers.ChatTemplate(self.tokenizer)
    self.identity, self.requests, self.scored = {"model": "oracle"}, [], []
    self.template, self.reason = "", "stop"

  def complete_tokens(self, prompts, sampling):
    texts = [self.tokenizer.decode(prompt) for prompt in prompts]
    self.requests += [(text, sampling) for text in texts]
    return [[self.answer(text, i) for i in range(sampling.n)] for text in texts]

  def answer(self, text, sample):
    return Completion("fox" if "number 1" in text else f"sample {sample}", self.reason, 3)

  def logprobs(self, pairs):
    self.scored += pairs
    value = lambda ids: -float(sum(ids) % 97) / 10
    return [(value(ids), [0.0] * len(ids), False) for _, ids in pairs]


def write_tasks(folder):
  """Writes three tasks, each of its kind, and their data."""
  data = folder / "rows.jsonl"
  data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  kinds = {
    "tiny_generate": ("generate_until", GENERATE),
    "tiny_choose": ("multiple_choice", CHOOSE),
    "tiny_roll": ("loglikelihood_rolling", ROLL),
  }
  for name, (kind, more) in kinds.items():
    text = TASK.format(name=name, data=data, kind=kind, more=more)
    (folder / f"{name}.yaml").write_text(text)


@pytest.fixture
def folder(tmp_path):
  """A folder of the tasks."""
  write_tasks(tmp_path)
  return tmp_path


@pytest.mark.slow
def test_a_real_model(folder):
  engine = local.load(INSTRUCT)
  results = harness.run(
    engine, ["tiny_generate", "tiny_choose", "tiny_roll"], include=folder, limit=2
  )
  assert results["answers"] == 2
  row = results["samples"]["tiny_choose"][0]
  prompt = engine.prompt([{"role": "user", "content": "number 0"}])
  ids = engine.tokenizer("fox", add_special_tokens=False).input_ids
  [one] = engine.logprobs([(prompt[:-1], [prompt[-1], *ids])])
  # The harness takes the line break before an answer for a part of it.
  assert float(row["filtered_resps"][0][0]) == pytest.approx(one.total, rel=1e-4)


def test_tasks_of_all_three_kinds(folder):
  engine = Oracle()
  names = ["tiny_generate", "tiny_choose", "tiny_roll"]
  output = harness.run(engine, names, include=folder, limit=3)
  results = output["results"]
  assert results["tiny_generate"]["exact_match,none"] == pytest.approx(1 / 3)
  assert output["n-samples"]["tiny_generate"]["effective"] == 3
  assert (output["answers"], output["cut"], output["shortened"]) == (3, 0, 0)
  text, sampling = engine.requests[1]
  [message] = [{"role": "user", "content": "number 1"}]
  prompt = engine.tokenizer.apply_chat_template(
    [message], tokenize=False, add_generation_prompt=True
  )
  assert text == prompt and sampling == Sampling(6, ("\n",))
  fox, owl = (ids for _, ids in engine.scored[:2])
  assert [engine.tokenizer.decode(ids) for ids in (fox, owl)] == ["\nfox", "\nowl"]
  scores = [-float(sum(ids) % 97) for ids in (fox, owl)]
  right = [row["answer"] == ("fox" if scores[0] > scores[1] else "owl") for row in ROWS[:3]]
  assert results["tiny_choose"]["acc,none"] == pytest.approx(sum(right) / 3)
  assert math.isfinite(results["tiny_roll"]["word_perplexity,none"])
  head, *rows = harness.table(output).splitlines()
  assert head.split() == ["task", "metric", "value", "standard", "error"]
  assert [row.split()[:3] for row in rows][:1] == [["tiny_generate", "exact_match", "0.3333"]]
  json.dumps(output["results"])


def test_examples_are_turns_of_a_chat_or_raw_text(folder):
  for is_chat in (True, False):
    engine = Oracle()
    harness.run(engine, ["tiny_generate"], include=folder, limit=1, shots=1, is_chat=is_chat)
    [(text, _)] = engine.requests
    user = engine.tokenizer.apply_chat_template(
      [{"role": "user", "content": "number 0"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith(user[-20:]) == is_chat
    assert "number 0" in text and ("owl" in text or "fox" in text)
    assert is_chat or text.startswith("number ")


def request(text, **options):
  return Instance("generate_until", {}, (text, options), 0)


def test_repeats_are_samples_of_one_prompt():
  engine = Oracle()
  options = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "until": "Q:"}
  requests = [request("a", **options), request("b", **options), request("a", **options)]
  texts = HarnessModel(engine, max_new=9, seed=4).generate_until(requests)
  assert texts == ["sample 0", "sample 0", "sample 1"]
  sampling = Sampling(9, ("Q:",), 2, temperature=0.5, top_p=0.9, seed=4)
  assert engine.requests[0] == ("a", sampling) and engine.requests[1][1].n == 1


def test_the_default_is_greedy_decoding():
  engine = Oracle()
  HarnessModel(engine).generate_until([request("a", do_sample=False, temperature=0.7, num_beams=1)])
  assert engine.requests == [("a", Sampling(256))]
  with pytest.raises(InputError, match="a task asks for num_beams=4 in generation"):
    HarnessModel(engine).generate_until([request("a", num_beams=4)])


def test_prompts_that_are_too_long_lose_their_beginning():
  engine = Oracle(limit=20)
  model = HarnessModel(engine, is_chat=False)
  long = "one two three " * 20
  model.generate_until([request(long, max_gen_toks=8)])
  tokens = model.tok_encode(long)
  assert engine.requests[0][0] == engine.tokenizer.decode(tokens[-12:]) and model.shortened == 1
  model.loglikelihood([Instance("loglikelihood", {}, (long, " four"), 0)])
  [(prompt, answer)] = engine.scored
  assert len(prompt) + len(answer) == 20
  with pytest.raises(InputError, match="asks for 20 tokens, and the model takes 20"):
    model.generate_until([request(long, max_gen_toks=20)])


def test_a_text_is_scored_whole_each_token_once():
  engine = Oracle(limit=10)
  model = HarnessModel(engine, is_chat=False)
  text = "one two three four five six seven " * 4
  model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
  assert [i for _, ids in engine.scored for i in ids] == model.tok_encode(text)
  assert engine.scored[0][0] == [model.prefix_token_id]
  assert all(len(a) + len(b) <= 10 for a, b in engine.scored)


def test_thoughts_are_no_part_of_an_answer(folder, capsys):
  engine = Oracle()
  engine.template = "…</think>"
  engine.answer = lambda text, i: Completion("<think>so</think>owl", "stop", 3)
  results = harness.run(engine, ["tiny_generate"], include=folder)
  assert results["results"]["tiny_generate"]["exact_match,none"] == 0.5 and results["cut"] == 0
  engine.answer = lambda text, i: Completion("<think>so", "length", 3)
  results = harness.run(engine, ["tiny_generate"], include=folder)
  assert results["results"]["tiny_generate"]["exact_match,none"] == 0.0 and results["cut"] == 4
  assert "4 of 4 answers were cut" in capsys.readouterr().err


def test_bad_input_is_reported(folder, monkeypatch):
  manager = types.SimpleNamespace(all_tasks=["gsm8k", "arc_easy"])
  with pytest.raises(InputError, match="no task named 'gsm9k'; did you mean gsm8k"):
    harness._loaded(manager, ["arc_easy", "gsm9k"])
  (folder / "rows.jsonl").unlink()
  with pytest.raises(InputError, match="cannot load tiny_choose: .*rows.jsonl.*; its data comes"):
    harness.run(Oracle(), ["tiny_choose"], include=folder)
  monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"pip install 'shadowft_jax\[eval\]'"):
    harness.run(Oracle(), ["gsm8k"])


def test_tasks_that_run_programs_are_refused(monkeypatch):
  task = types.SimpleNamespace(UNSAFE_CODE=True)
  manager = types.SimpleNamespace(
    all_tasks=["humaneval"],
    load=lambda names: {"tasks": {"humaneval": task}, "groups": {}, "group_map": {}},
  )
  with pytest.raises(InputError, match="humaneval runs programs .* outside of any sandbox"):
    harness._loaded(manager, ["humaneval"])


@pytest.mark.slow
def test_the_tasks_of_the_harness_are_known():
  with pytest.raises(InputError, match="no task named 'gsm9k'; did you mean gsm8k"):
    harness.run(Oracle(), ["gsm9k"])


@pytest.mark.slow
def test_it_runs_where_there_is_no_torch(folder):
  code = f"""
import importlib.machinery, pathlib, sys
find = importlib.machinery.PathFinder.find_spec
hide = lambda name, *more: None if name.split(".")[0] == "torch" else find(name, *more)
importlib.machinery.PathFinder.find_spec = staticmethod(hide)
from shadowft_jax.evaluation import harness
from tests.test_harness import Oracle
results = harness.run(Oracle(), ["tiny_choose"], include=pathlib.Path({str(folder)!r}))
print(len(results["samples"]["tiny_choose"]), "torch" in sys.modules)
"""
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=commands.ROOT, capture_output=True, text=True
  )
  assert done.stdout == "4 False\n", done.stderr
