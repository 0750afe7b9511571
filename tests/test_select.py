"""Rows of high reward, uniform over categories."""

import collections
import functools
import json
import random

import pytest

from shadowft_jax import select as select_command
from shadowft_jax.data.high_reward import select
from shadowft_jax.errors import InputError
from tests import commands

command = functools.partial(commands.run, "select")
NAMES = ("math", "code", "writing", "law", "logic")


def row(i, reward, categories, **fields):
  """A row of Infinity-Instruct-Gen."""
  talk = [{"from": "human", "value": f"question {i}"}, {"from": "gpt", "value": f"answer {i}"}]
  return {
    "id": i,
    "conversations": talk,
    "reward": reward,
    "langdetect": "en",
    "label": {"cate_ability_en": categories, "cate_ability_zh": []},
    "source": "s",
    **fields,
  }


def rows_of(count=600, names=NAMES, ties=False):
  draw = random.Random(1)
  return [
    row(i, float(draw.randint(0, 3)) if ties else draw.gauss(0, 5), [names[i % len(names)]])
    for i in range(count)
  ]


def category(row):
  return row["label"]["cate_ability_en"][0]


def counted(rows):
  return collections.Counter(map(category, rows))


def ids(rows):
  return [r["id"] for r in rows]


@pytest.mark.parametrize("count", [1, 4, 5, 63, 64, 65])
def test_the_count_is_exact_and_categories_are_uniform_within_one(count):
  chosen, report = select(rows_of(), count=count, seed=0, pool=0.5)
  assert len(chosen) == len(set(ids(chosen))) == count == report.chosen
  per = counted(chosen)
  assert max(per.values()) - min(per[n] for n in NAMES) <= 1
  assert {c["name"]: c["chosen"] for c in report.categories} == {n: per[n] for n in NAMES}


def test_a_category_gives_its_highest_rewards():
  rows = rows_of()
  chosen, report = select(rows, count=50, seed=0, pool=0.5)
  for entry in report.categories:
    ranked = sorted((r["reward"] for r in rows if category(r) == entry["name"]), reverse=True)
    got = sorted((r["reward"] for r in chosen if category(r) == entry["name"]), reverse=True)
    assert got == ranked[:10]
    assert (entry["lowest"], entry["highest"], entry["rows"]) == (got[-1], got[0], 120)


def test_the_places_left_over_go_to_the_categories_of_the_best_rows():
  rows = [row(f"{i} {j}", 10 * i + j, [name]) for i, name in enumerate(NAMES) for j in range(3)]
  for seed in range(5):
    chosen, _ = select(rows, count=7, seed=seed, pool=1.0)
    assert counted(chosen) == {**dict.fromkeys(NAMES, 1), "logic": 2, "law": 2}


def test_the_pool_is_the_best_share_of_all_rows_of_any_category():
  rows = rows_of()
  for r in rows:
    r["reward"] += 100 * (category(r) == "law")
  chosen, report = select(rows, count=100, seed=0, pool=0.2)  # 120 rows: all of law
  assert report.pool == 120 and set(map(category, chosen)) == {"law"}
  chosen, report = select(rows, count=100, seed=0, pool=1.0)
  assert set(counted(chosen).values()) == {20} and report.pool == 600


def test_a_least_reward_cuts_the_pool():
  rows = [row(i, i, ["math"]) for i in range(10)]
  chosen, report = select(rows, count=3, seed=0, pool=1.0, min_reward=7)
  assert sorted(ids(chosen)) == [7, 8, 9] and report.pool == 3
  with pytest.raises(InputError, match="cannot choose 4 rows: the pool has 3 of 10"):
    select(rows, count=4, seed=0, pool=1.0, min_reward=7)


def test_places_that_a_category_cannot_fill_go_evenly_to_the_others():
  sizes = {"math": 2, "code": 5, "writing": 40, "law": 40}
  rows = [row(f"{n}{i}", i, [n]) for n, size in sizes.items() for i in range(size)]
  chosen, _ = select(rows, count=30, seed=0, pool=1.0)
  per = counted(chosen)
  assert per["math"] == 2 and per["code"] == 5
  assert sorted([per["writing"], per["law"]]) == [11, 12]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("several", ["first", "drawn", "each"])
def test_the_order_of_the_rows_does_not_matter_and_the_seed_does(ties, several):
  rows = rows_of(ties=ties)
  for i, r in enumerate(rows):
    r["label"]["cate_ability_en"].append(NAMES[i % 3])
  shuffled = random.Random(2).sample(rows, len(rows))
  options = dict(count=40, pool=0.5, several=several)
  first = select(rows, seed=3, **options)
  assert first == select(shuffled, seed=3, **options)
  other, _ = select(rows, seed=4, **options)
  assert ids(other) != ids(first[0])
  # Where rewards differ and a row counts for what it names, the seed changes the order alone.
  if several == "first":
    assert (sorted(ids(other)) == sorted(ids(first[0]))) is not ties


def test_ties_are_drawn_and_not_taken_from_the_front():
  rows = [row(i, 1.0, ["math"]) for i in range(1000)]
  chosen, _ = select(rows, count=100, seed=0, pool=1.0)
  assert 400 < sum(ids(chosen)) / 100 < 600  # a mean of 500; 29 is its deviation
  boundary, _ = select(rows, count=100, seed=0, pool=0.1)
  assert sorted(ids(boundary)) == sorted(ids(chosen))


def test_the_output_is_in_no_order_of_rewards():
  rows = [row(i, i, ["math"]) for i in range(200)]
  chosen, _ = select(rows, count=200, seed=0, pool=1.0)
  half = sum(ids(chosen[:100])) / 100
  assert 80 < half < 119 and sorted(ids(chosen)) == list(range(200))


def test_a_row_with_several_categories_counts_by_the_setting_several():
  rows = [row(i, i, ["math", "code"]) for i in range(40)]
  rows += [row(i, i, ["law"]) for i in range(40, 60)]

  def chosen_by(several):
    _, report = select(rows, count=30, seed=1, pool=1.0, several=several)
    return {c["name"]: c["chosen"] for c in report.categories}

  assert chosen_by("first") == {"law": 15, "math": 15}
  assert chosen_by("each") == {"code": 10, "law": 10, "math": 10}
  assert chosen_by("drawn") == {"code": 10, "law": 10, "math": 10}
  _, report = select(rows, count=60, seed=1, pool=1.0, several="each")
  assert {c["name"]: c["rows"] for c in report.categories} == {"code": 40, "law": 20, "math": 40}
  assert report.chosen == 60  # no row twice, though most stand in two


def test_a_duplicate_conversation_counts_once_with_its_higher_reward():
  rows = [row(1, 1.0, ["math"]), row(2, 5.0, ["math"])]
  rows += [{**rows[0], "id": "again", "reward": 9.0}, {**rows[1], "reward": 2.0}]
  for order in (rows, rows[::-1]):
    chosen, report = select(order, count=2, seed=0, pool=1.0)
    assert {r["id"]: r["reward"] for r in chosen} == {"again": 9.0, 2: 5.0}
    assert report.left_out["duplicate conversation"] == 2
    assert report.rows == 4 and report.candidates == 2
  with pytest.raises(InputError, match="cannot choose 3 rows: the pool has 2"):
    select(rows, count=3, seed=0, pool=1.0)


def test_rows_with_missing_fields_are_counted_by_reason():
  good = [row(i, float(i), ["math"]) for i in range(5)]
  bad = [
    row(10, None, ["math"]),
    row(11, float("nan"), ["math"]),
    row(12, "high", ["math"]),
    row(13, True, ["math"]),
    row(14, 1.0, []),
    row(15, 1.0, None),
    row(16, 1.0, [" "]),
    row(17, 1.0, ["math"], conversations=[]),
    row(18, 1.0, ["math"], langdetect="zh-cn"),
  ]
  bad[4].pop("label")
  chosen, report = select(good + bad, count=5, seed=0, pool=1.0, language="en")
  assert sorted(ids(chosen)) == [0, 1, 2, 3, 4]
  assert report.left_out == {
    "langdetect is not 'en'": 1,
    "no conversations": 1,
    "no finite number in reward": 4,
    "no text in label.cate_ability_en": 3,
    "duplicate conversation": 0,
  }
  assert "4 rows left out: no finite number in reward" in report.table()
  assert "0 rows left out" not in report.table()
  assert report.candidates + sum(report.left_out.values()) == report.rows == 14
  _, report = select(good + bad, count=1, seed=0, pool=0.4, language="en")
  assert report.pool == 2  # of the five that could be chosen


def test_rows_that_all_lack_the_reward_are_an_error_that_names_the_fields():
  rows = [row(i, None, ["math"]) for i in range(3)]
  with pytest.raises(
    InputError, match=r"no row can be chosen \(rows: 3\).*no finite number in reward: 3"
  ) as error:
    select(rows, count=1, seed=0)
  assert "the rows have the fields" in str(error.value) and "langdetect" in str(error.value)
  chosen, _ = select(
    [{**r, "score": {"a": i}} for i, r in enumerate(rows)],
    count=1,
    seed=0,
    reward="score.a",
    category="source",
  )
  assert ids(chosen) == [2] and chosen[0]["source"] == "s"


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"language": "fr"}, "no row can be chosen .*langdetect is not 'fr'"),
    ({"count": 61}, "cannot choose 61 rows: the pool has 60 of 600"),
  ],
)
def test_parameters_that_cannot_be(fields, message):
  with pytest.raises(InputError, match=message):
    select(rows_of(), **{"count": 5, "seed": 0, **fields})


@pytest.mark.parametrize(
  "flag, message",
  [
    ("--count=0", "--count must be at least 1; got 0"),
    ("--seed=-1", "--seed must be at least 0; got -1"),
    ("--seed=5000000000", "--seed must be at most 4,294,967,295; got 5000000000"),
    ("--pool=0", "--pool must be above 0 and at most 1; got 0.0"),
    ("--pool=1.5", "--pool must be above 0 and at most 1; got 1.5"),
    ("--min-reward=nan", "--min-reward must be finite; got nan"),
    ("--several=all", "--several is one of first, drawn, each; got 'all'"),
  ],
)
def test_invalid_flags(flag, message):
  result = command("--rows=none.jsonl", "--out=none_chosen.jsonl", flag)
  assert (result.returncode, result.stderr) == (2, f"error: {message}\n")


def test_the_command(tmp_path):
  rows = rows_of(200)
  rows[0]["conversations"][0]["value"] = "\u2028 ä 中文"
  rows[0]["reward"] = 99.0
  source, out = tmp_path / "infinity.jsonl", tmp_path / "new" / "mine.jsonl"
  source.write_text("".join(json.dumps(r) + "\n" for r in rows))
  flags = [f"--rows={source}", f"--out={out}", "--count=20", "--pool=0.5"]
  result = command(*flags)
  assert result.returncode == 0, result.stderr
  expected, report = select(rows, count=20, seed=42, pool=0.5)
  written = [json.loads(line) for line in out.read_text().splitlines()]
  assert written == expected and rows[0] in written
  record = json.loads((tmp_path / "new" / "mine.report.json").read_text())
  assert record["source"] == str(source) and record["settings"] == report.settings
  assert record["chosen"] == 20 and len(record["categories"]) == len(NAMES)
  assert result.stdout.strip() == report.table()
  assert "rows: 200; candidates: 200; pool: 100; chosen: 20" in result.stdout

  assert sorted(p.name for p in out.parent.iterdir()) == ["mine.jsonl", "mine.report.json"]
  again = command(*flags, "--seed=7")
  assert again.returncode == 2 and "exists" in again.stderr
  assert [json.loads(line) for line in out.read_text().splitlines()] == expected


def test_bad_flags_are_one_line_errors(tmp_path):
  result = command(f"--rows={tmp_path / 'rows.jsonl'}", f"--out={tmp_path / 'mine.jsonl'}")
  assert result.returncode == 2 and "rows.jsonl" in result.stderr
  assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "text, weight, message",
  [
    ("[1]", "", "row 1 is a list; expected an object"),
    ("{} {}", "", "row 1"),
    ("{}", "*2", "weights .* are only for training data"),
  ],
)
def test_rows_that_are_none(tmp_path, text, weight, message):
  (tmp_path / "rows.jsonl").write_text(text)
  with pytest.raises(InputError, match=message):
    select_command.read(f"{tmp_path / 'rows.jsonl'}{weight}", "train")


def test_existing_files_are_not_replaced_without_the_flag(tmp_path):
  out, report = tmp_path / "a.jsonl", tmp_path / "a.report.json"
  assert select_command.free(out, overwrite=False) == (out, report)
  report.write_text("{}")
  with pytest.raises(InputError, match=r"a\.report\.json exists.*--overwrite"):
    select_command.free(out, overwrite=False)
  assert select_command.free(out, overwrite=True) == (out, report)
  with pytest.raises(InputError, match=r"ends in \.jsonl"):
    select_command.free(tmp_path / "a.json", overwrite=True)


def test_rows_that_json_cannot_hold_leave_no_file(tmp_path):
  with pytest.raises(InputError, match="bytes"):
    select_command.write(tmp_path / "a.jsonl", [row(1, 1.0, ["math"], picture=b"png")])
  assert not list(tmp_path.iterdir())
