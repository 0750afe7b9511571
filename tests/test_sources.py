"""Every kind of file gives the same rows; what cannot be read is said in one line."""

import gzip
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from shadowft_jax.data import files, sources
from shadowft_jax.errors import InputError

ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
ODD = '🎈中文\u2028\u0085 "a", b\n\r\n end'
ROWS = [{"instruction": f"q{i} {ODD}", "output": f"a{i}"} for i in range(5)]


def as_json(rows):
  return json.dumps(rows).encode()


def as_jsonl(rows):
  return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()


def as_csv(rows):
  lines = [list(rows[0]), *(list(row.values()) for row in rows)]
  return "".join(
    ",".join('"' + cell.replace('"', '""') + '"' for cell in line) + "\r\n" for line in lines
  ).encode()


def as_parquet(rows):
  sink = pa.BufferOutputStream()
  pyarrow.parquet.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
  return sink.getvalue().to_pybytes()


def as_arrow(rows, new=pa.ipc.new_stream):
  table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
  with new(sink, table.schema) as writer:
    writer.write_table(table, max_chunksize=2)
  return sink.getvalue().to_pybytes()


def as_arrow_file(rows):
  return as_arrow(rows, pa.ipc.new_file)


KINDS = {
  "rows.json": as_json,
  "rows.jsonl": as_jsonl,
  "rows.csv": as_csv,
  "rows.parquet": as_parquet,
  "rows.arrow": as_arrow,
  "file.arrow": as_arrow_file,
}


@pytest.fixture
def write(tmp_path):
  """Writes rows, text or bytes into a file of the kind its name tells; returns its path."""

  def write(rows, name="rows.json"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = rows.encode() if isinstance(rows, str) else rows
    if not isinstance(content, bytes):
      plain = path.with_suffix("") if path.suffix == ".gz" else path
      content = KINDS[f"rows{plain.suffix.lower()}"](rows)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path

  return write


def rows_of(spec, split="train"):
  """The rows of one source."""
  (source,) = sources.read(spec, split)
  return [row for _, row in source.rows]


@pytest.mark.parametrize(
  "name", [*KINDS, "ROWS.JSONL", "rows.json.gz", "rows.jsonl.gz", "rows.csv.gz"]
)
def test_every_kind_of_file_gives_the_same_rows(write, name):
  path = write(KINDS[name](ROWS) if name in KINDS else ROWS, name)
  (source,) = sources.read(path)
  assert (source.name, source.weight) == (str(path), 1)
  assert [row for _, row in source.rows] == ROWS
  if not name.startswith("rows.jsonl"):
    assert [where for where, _ in source.rows] == [f"{path} row {i}" for i in range(1, 6)]


@pytest.mark.parametrize("name", ["rows.txt", "rows.txt.gz"])
def test_every_nonblank_line_of_text_is_a_row(write, name):
  path = write("\ufeffone \r\n\n  two\u2028 \n\t\n", name)
  assert sources.read(path)[0].rows == [
    (f"{path} row 1", {"text": "one "}),
    (f"{path} row 3", {"text": "  two\u2028 "}),
  ]


def test_a_byte_order_mark_and_blank_lines_are_no_rows(write):
  line = json.dumps(ALPACA)
  path = write(f"\ufeff{line}\r\n\n{line}\n\n", "rows.jsonl")
  assert sources.read(path)[0].rows == [(f"{path} row 1", ALPACA), (f"{path} row 3", ALPACA)]
  path = write("\ufeffa,b\r\n\r\n1,\r\n\n,\n", "rows.csv")
  assert sources.read(path)[0].rows == [
    (f"{path} row 1", {"a": "1", "b": ""}),
    (f"{path} row 2", {"a": "", "b": ""}),
  ]


def test_csv_cells_are_text_of_any_length(write):
  long = "x" * 200_000
  assert rows_of(write(f'"",n\n1,"{long}"', "rows.csv")) == [{"column 1": "1", "n": long}]


def test_a_row_that_cannot_be_parsed_keeps_its_row_number(write):
  read = rows_of(write('{"a": 1}\n\n{nope}\n{"a": 2}\n' + "[" * 100_000, "rows.jsonl"))
  assert (read[0], read[2]) == ({"a": 1}, {"a": 2})
  for row, number in ((read[1], 3), (read[3], 5)):
    assert isinstance(row, InputError)
    assert f"rows.jsonl row {number} is not valid JSON: " in str(row)
    assert str(row).endswith("; expected one object per line")
  read = rows_of(write("a,b\n1,2\n3\n4,5,6\n7,8\n", "rows.csv"))
  assert (read[0], read[3]) == ({"a": "1", "b": "2"}, {"a": "7", "b": "8"})
  assert "rows.csv row 2 has 1 cells; expected 2" in str(read[1])
  assert "rows.csv row 3 has 3 cells; expected 2" in str(read[2])


@pytest.mark.parametrize(
  "name, content, match",
  [
    (
      "rows.xml",
      "x",
      r"rows.xml is not a supported data file; expected \.arrow, \.csv, \.json, "
      r"\.jsonl, \.parquet, \.txt \(\.csv, .*also with \.gz\)",
    ),
    ("rows.parquet.gz", b"x", r"rows.parquet.gz is not a supported data file"),
    ("rows.json", "", r"rows.json has no rows; expected one object per example"),
    ("rows.json", [], r"rows.json has no rows"),
    ("rows.jsonl", "\n \n", r"rows.jsonl has no rows"),
    ("rows.csv", "a,b\n", r"rows.csv has no rows"),
    ("rows.txt", " \n", r"rows.txt has no rows"),
    ("rows.json", json.dumps(ALPACA), r"rows.json contains a dict; expected an array"),
    ("rows.json", '[\n{"instruction": "a",\n}]', r"rows.json is not valid JSON: .*line [23]"),
    (
      "rows.json",
      '{"a": 1}\n{"a": 2}',
      r"line 2 .*; if it has one object per line, name it \.jsonl",
    ),
    ("rows.json", "[" * 100000, r"rows.json is not valid JSON"),
    (
      "rows.json",
      b'[{"instruction": "caf\xe9"}]',
      r"rows.json is not UTF-8: invalid byte at offset 21; save",
    ),
    ("rows.jsonl", b"\xff\xfe{\x00", r"rows.jsonl is not UTF-8: invalid byte at offset 0"),
    ("rows.csv", "a,b,a\n1,2,3\n", r"two columns have the same name; .*; it has a, b, a$"),
    ("rows.csv", 'a,b\n1,"2\n3,4\n', r"rows.csv is not valid CSV: .* \(line 3\); expected cells"),
    ("rows.parquet", as_parquet(ROWS)[:-30], r"rows.parquet is not a valid \.parquet file, "),
    ("rows.parquet", b"", r"rows.parquet is not a valid \.parquet file, "),
    ("rows.arrow", as_arrow(ROWS)[:-60], r"rows.arrow is not a valid \.arrow file, "),
    ("rows.arrow", as_arrow_file(ROWS)[:-60], r"rows.arrow is not a valid \.arrow file, "),
    ("rows.arrow", b"", r"rows.arrow (is not a valid \.arrow file, |has no rows)"),
  ],
)
def test_unreadable_files_are_one_line_errors(write, name, content, match):
  with pytest.raises(InputError, match=match) as caught:
    sources.read(write(content, name))
  assert "\n" not in str(caught.value)


def test_a_broken_gzip_file_is_refused(tmp_path):
  path, whole = tmp_path / "rows.jsonl.gz", gzip.compress(as_jsonl(ROWS))
  for content in (whole[:-9], whole[:40] + b"\x00\xff\x00" + whole[43:], as_jsonl(ROWS)):
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"rows.jsonl.gz is not a valid gzip file, .*; download"):
      sources.read(path)


def bomb(kind):
  """Some kB that become some MB: one text that many rows share, or rows that have nothing."""
  if kind == "rows.jsonl.gz":
    return gzip.compress(as_jsonl([{"text": "x" * 100}] * 20_000))
  shared = pa.array(["x" * 1000]).dictionary_encode()
  shared = pa.DictionaryArray.from_arrays(pa.array([0] * 5000), shared.dictionary)
  table = pa.table({"text": pa.nulls(50_000) if kind == "nulls.arrow" else shared})
  sink = pa.BufferOutputStream()
  if kind == "rows.parquet":
    pyarrow.parquet.write_table(table, sink, compression="zstd")
  else:
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions()) as writer:
      writer.write_table(table)
  return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("kind", ["rows.jsonl.gz", "rows.parquet", "rows.arrow", "nulls.arrow"])
def test_a_file_that_becomes_too_large_is_refused_before_it_does(tmp_path, monkeypatch, kind):
  path = tmp_path / kind
  path.write_bytes(bomb(kind))
  most = 1 << 20
  monkeypatch.setattr(files, "RATIO", 1)
  assert path.stat().st_size < most / 2
  assert len(sources.read(path)[0].rows) >= 5000
  monkeypatch.setattr(files, "MOST", most)
  with pytest.raises(InputError, match=rf"{kind} has .*(kB|bytes) and becomes more than 1.0 MB"):
    sources.read(path)


def test_a_line_that_is_too_long_is_a_malformed_row(write, monkeypatch):
  path = write(as_jsonl(ROWS[:1] + [{"text": "x" * 2000}]), "rows.jsonl")
  monkeypatch.setattr(files, "LONGEST", 1000)
  [(_, good), (_, bad)] = sources.read(path)[0].rows
  assert good == ROWS[0] and re.match(".* row 2 .* the line has 2,012 characters", str(bad))


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_an_arrow_file_with_wrong_offsets_is_refused(tmp_path, new):
  path, text = tmp_path / "rows.arrow", ["ab", "cdef", "g"]
  content = as_arrow([{"text": x} for x in text], new)
  offsets = np.array([0, 2, 6], np.int32).tobytes()
  assert content.count(offsets) == 1
  for wrong in ([0, 6, 2], [0, 2, 10**9], [-8, 2, 6], [0, 1 << 30, 6]):
    path.write_bytes(content.replace(offsets, np.array(wrong, np.int32).tobytes()))
    with pytest.raises(InputError, match="rows.arrow is not a valid .arrow file, or is truncated"):
      sources.read(path)
  path.write_bytes(content.replace(b"abcdef", b"ab\xff\xffef"))
  with pytest.raises(InputError, match="rows.arrow is not a valid .arrow file.*UTF8"):
    sources.read(path)
  for length in range(0, len(content), 8):
    path.write_bytes(content[:length])
    with pytest.raises(InputError, match="rows.arrow .*is not a valid|rows.arrow has no rows"):
      sources.read(path)


def test_a_missing_file_names_the_nearest(write, tmp_path):
  write(ROWS, "alpaca_en.json")
  with pytest.raises(
    InputError,
    match=r"alpacha_en.json is not a file or folder; did you mean "
    r".*alpaca_en.json\?",
  ):
    sources.read(tmp_path / "alpacha_en.json")
  with pytest.raises(InputError, match="is not a file or folder; check the path"):
    sources.read(tmp_path / "nowhere" / "x.json")
  # Not a Hub dataset, by its ending.
  with pytest.raises(InputError, match="^nowhere/x.json.gz is not a file or folder; check the"):
    sources.read("nowhere/x.json.gz")


def test_several_sources_have_weights(write):
  one, two = write(ROWS[:2], "one.json"), write(ROWS[2:], "two.csv")
  first, second, third = sources.read(f"{one}*2, {two}*.5,{one}")
  assert [(s.name, s.weight) for s in (first, second, third)] == [
    (str(one), 2),
    (str(two), 0.5),
    (str(one), 1),
  ]
  assert [row for _, row in second.rows] == ROWS[2:]
  assert first.rows == third.rows


@pytest.mark.parametrize(
  "spec, match",
  [
    ("", r"data '' has an empty name; expected names separated by commas"),
    ("{},", r"has an empty name"),
    ("*2", r"has an empty name"),
    ("{}*0", r"rows.json\*0: '0' after the \* is not a weight; expected a positive number"),
    ("{}*-1", r"'-1' after"),
    ("{}*nan", r"'nan' after"),
    ("{}*inf", r"'inf' after"),
    ("data/*.json", r"'.json' after .*\(to use all files of a folder, give the folder itself\)"),
  ],
)
def test_errors_in_a_list_of_sources_are_explained(write, spec, match):
  with pytest.raises(InputError, match=match):
    sources.read(spec.format(write(ROWS)))


def test_arrow_rows_are_as_they_were_before_they_became_columns(write, tmp_path):
  calls = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]},
  ]
  rows = [
    {"messages": calls, "image": {"bytes": b"\x89PNG"}, "n": None},
    {"messages": None, "image": {"path": "b.png"}, "n": 2},
  ]
  assert rows_of(write(as_parquet(rows), "rows.parquet")) == rows
  assert rows_of(write(as_arrow(rows), "rows.arrow")) == rows
  texts = pa.array(['{"x": [1, null]}', None]).cast(pa.json_(pa.string()))
  pyarrow.parquet.write_table(pa.table({"a": texts}), tmp_path / "json.parquet")
  assert rows_of(tmp_path / "json.parquet") == [{"a": {"x": [1, None]}}, {"a": None}]


def test_a_folder_that_datasets_saved_is_read_in_order(tmp_path):
  import datasets

  saved = datasets.Dataset.from_list(ROWS)
  saved.save_to_disk(tmp_path / "one", num_shards=3)
  (tmp_path / "one" / "cache-0123.arrow").write_bytes(as_arrow([{"other": 1}]))
  state = json.loads((tmp_path / "one" / "state.json").read_text())
  assert rows_of(tmp_path / "one") == ROWS
  state["_data_files"].reverse()
  (tmp_path / "one" / "state.json").write_text(json.dumps(state))
  assert rows_of(tmp_path / "one") == [ROWS[i] for i in (4, 2, 3, 0, 1)]
  both = datasets.DatasetDict(train=saved.select(range(3)), dev=saved.select(range(3, 5)))
  both.save_to_disk(tmp_path / "two")
  assert rows_of(tmp_path / "two") == ROWS[:3]
  assert rows_of(tmp_path / "two", "dev") == ROWS[3:]
  with pytest.raises(
    InputError,
    match=r"(?s)two has no split 'test'; choose one of:"
    r"\n  --config.data.split=dev\n  --config.data.split=train",
  ):
    sources.read(tmp_path / "two", "test")


@pytest.mark.parametrize(
  "files, split, expected",
  [
    (["b.json", "a.jsonl", "sub/c.csv"], "train", ["a.jsonl", "b.json", "sub/c.csv"]),
    (
      [
        "a.json",
        "README.md",
        "README.txt",
        "LICENSE.txt",
        "dataset_infos.json",
        "x.py",
        "1.jpg",
        ".cache/b.json",
        ".b.json",
      ],
      "train",
      ["a.json"],
    ),
    (
      [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/test-00000-of-00001.parquet",
      ],
      "train",
      ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
    ),
    (
      ["train-00000-of-00001-a09b74b3ef9c.parquet", "test.json"],
      "train",
      ["train-00000-of-00001-a09b74b3ef9c.parquet"],
    ),
    (
      ["train_sft-00000-of-00001.csv", "train_gen-00000-of-00001.csv"],
      "train_sft",
      ["train_sft-00000-of-00001.csv"],
    ),
    (
      ["part-00000-of-00002.json", "part-00001-of-00002.json", "x-1-of-2.json", "x-2-of-2.json"],
      "train",
      ["part-00000-of-00002.json", "part-00001-of-00002.json", "x-1-of-2.json", "x-2-of-2.json"],
    ),
    (
      ["sft_train.json", "Training2.jsonl.gz", "val.json"],
      "train",
      ["Training2.jsonl.gz", "sft_train.json"],
    ),
    (["train/a.json", "dev/a.json", "eval/a.json"], "validation", ["dev/a.json"]),
    (["train/a.json", "dev/a.json", "eval/a.json"], "dev", ["dev/a.json"]),
    (["train/a.json", "dev/a.json", "eval/a.json"], "test", ["eval/a.json"]),
    (["trainer.json", "latest.json"], "train", ["latest.json", "trainer.json"]),
  ],
)
def test_the_data_files_of_a_folder_are_its_rows(write, tmp_path, files, split, expected):
  root = tmp_path / "test set"  # The folder's own name tells no split.
  for name in files:
    known = name.endswith((".json", ".jsonl", ".csv", ".parquet", ".gz"))
    write([{"file": name}] if known else "text", f"{root.name}/{name}")
  assert rows_of(root, split) == [{"file": name} for name in expected]
  assert sources.read(root, split)[0].rows[0][0] == f"{root / expected[0]} row 1"


@pytest.mark.parametrize(
  "files, split, match",
  [
    (["README.md"], "train", r"folder has no data files; expected \.arrow, \.csv"),
    (
      ["test.json", "dev.json"],
      "train",
      r"(?s)folder has no split 'train'; .*:\n  --config.data.split=test\n  .*=validation$",
    ),
    (
      ["train_sft-00000-of-00001.csv", "train_gen-00000-of-00001.csv"],
      "train",
      r"(?s)has no split 'train'; .*:\n  .*=train_gen\n  .*=train_sft$",
    ),
    (
      ["data/train-00000-of-00012.json", "data/train-00002-of-00012.json"],
      "train",
      r"(?s)folder has missing shards; .*:\n  .*data/train-00001-of-00012\n.*11-of-00012$",
    ),
    (
      ["train.json", "more.json"],
      "train",
      r"(?s)some file names contain a split, but these do not; .*:\n  .*more.json$",
    ),
  ],
)
def test_a_folder_that_is_not_clear_is_refused(write, tmp_path, files, split, match):
  for name in files:
    write("[]", f"folder/{name}")
  with pytest.raises(InputError, match=match):
    sources.read(tmp_path / "folder", split)


CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: [en/b.jsonl, en/a*.jsonl]
  - {split: test, path: held/out.jsonl}
- config_name: zh
  data_dir: zh
  data_files: "**"
  sep: ";"
- config_name: by_name
  data_dir: named
---
# A dataset
"""
CARD_FILES = {
  "en/a1.jsonl": [{"x": 1}],
  "en/b.jsonl": [{"x": 2}],
  "held/out.jsonl": [{"x": 3}],
  "zh/deep/c.jsonl": [{"x": 4}],
  "zh/d.jsonl": [{"x": 5}],
  "named/train.jsonl": [{"x": 6}],
  "named/dev.jsonl": [{"x": 7}],
  "left.jsonl": [{"x": 8}],
}


@pytest.fixture
def carded(write, tmp_path):
  """Writes the files of a dataset with a data card; returns its folder."""

  def carded(card=CARD):
    for name, rows in {**CARD_FILES, "README.md": card}.items():
      write(rows, f"hub/{name}")
    return tmp_path / "hub"

  return carded


@pytest.mark.parametrize(
  "subset, split, expected",
  [
    ("en", "train", [2, 1]),
    ("en", "test", [3]),
    ("en", "eval", [3]),
    ("zh", "train", [5, 4]),
    ("by_name", "train", [6]),
    ("by_name", "validation", [7]),
  ],
)
def test_a_data_card_tells_splits_and_configurations(carded, capsys, subset, split, expected):
  assert [row["x"] for row in rows_of(f"{carded()}:{subset}", split)] == expected
  assert ("sets sep for zh" in capsys.readouterr().err) == (subset == "zh")


def test_a_configuration_is_read_alone_or_by_default(carded, capsys):
  folder = carded()
  with pytest.raises(
    InputError, match=r"(?s)hub has 3 conf.*; give one of:\n  .*hub:by_name\n  .*hub:en\n  .*:zh$"
  ) as caught:
    sources.read(folder)
  # Each of them, given as the error names it, is read.
  for spec in str(caught.value).split("\n  ")[1:]:
    assert rows_of(spec)
  with pytest.raises(InputError, match=r"(?s)hub has no configuration 'de'; give one of:\n.*:zh$"):
    sources.read(f"{folder}:de")
  carded(CARD.replace("  data_dir: named\n", "  data_dir: named\n  default: true\n"))
  assert rows_of(folder) == [{"x": 6}]
  assert "reading its default configuration by_name" in capsys.readouterr().err
  carded(CARD.replace("config_name: en", "config_name: default"))
  assert rows_of(folder) == [{"x": 2}, {"x": 1}]
  # A card of the only configuration, and an old one, of a folder each.
  carded("---\nconfigs:\n- config_name: only\n  data_files: left.jsonl\n---\n")
  assert rows_of(folder) == rows_of(f"{folder}:only") == [{"x": 8}]
  carded("---\ndataset_info:\n- config_name: named\n- config_name: zh\n---\n")
  assert rows_of(f"{folder}:named") == [{"x": 6}]


@pytest.mark.parametrize(
  "card, spec, match",
  [
    (CARD, ":en", r"(?s)hub:en has no split 'dev'; choose one of:\n  --at=test\n  --at=train$"),
    (
      CARD.replace("out", "gone"),
      ":en",
      r"README.md lists held/gone.jsonl, but .* has no such data file",
    ),
    (
      CARD.replace("held/out", "../rows"),
      ":en",
      r"lists \.\./rows.jsonl, but .* has no such data file",
    ),
    (CARD.replace("held/out", "/etc/rows"), ":en", r"lists /etc/rows.jsonl, but .* has no such"),
    (CARD.replace("held/out", "a**"), ":en", r"lists a\*\*.jsonl, but .* has no such data file"),
    (CARD.replace("path: held/out.jsonl", "path: 3"), ":en", r"data_files contains .*'path': 3"),
    (CARD.replace("configs:", "configs: ["), "", r"README.md: cannot read configs: "),
    ("# No card", ":en", r"hub has no configurations: its README.md lists none; give .*hub "),
  ],
)
def test_a_data_card_that_is_not_clear_is_refused(carded, card, spec, match):
  folder = carded(card)
  split = "dev" if "choose" in match else "test"
  with pytest.raises(InputError, match=match):
    sources.read(f"{folder}{spec}", split, "--at")


@pytest.mark.parametrize("name", [*KINDS, "rows.txt", "rows.csv.gz"])
def test_a_git_lfs_pointer_is_no_data(tmp_path, name):
  (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
  with pytest.raises(InputError, match=r" is a Git LFS pointer, .*; run git lfs pull in its"):
    sources.read(tmp_path / name)


def test_few_rows_of_a_parquet_file_are_read_at_a_time(write, monkeypatch):
  """Arrow makes no batch of nested texts beyond 2 GB, and rows of 2 MB are hardly written."""
  sizes = []
  plain = files.plain

  def counted(batches):
    for batch in batches:
      sizes.append(len(batch))
      yield from plain([batch])

  monkeypatch.setattr(files, "plain", counted)
  rows = [{"messages": [{"content": str(i)}]} for i in range(2500)]
  sink = pa.BufferOutputStream()
  pyarrow.parquet.write_table(pa.Table.from_pylist(rows), sink)
  assert rows_of(write(sink.getvalue().to_pybytes(), "rows.parquet")) == rows
  assert max(sizes) * 2**20 < 2**31


REVISION = "a" * 40
HUB = {
  "README.md": b"---\nconfigs:\n- config_name: en\n  data_files:\n"
  b"  - {split: train, path: data/train.jsonl}\n"
  b"  - {split: dev, path: data/dev.jsonl}\n---\n",
  "data/train.jsonl": b'{"q": "1"}\n{"q": "2"}\n',
  "data/dev.jsonl": b'{"q": "3"}\n',
}


class Hub(http.server.BaseHTTPRequestHandler):
  """One dataset, org/set, at one revision and its branch "v1"."""

  def do_GET(self):
    status, headers, body = self.answer(self.path.split("?")[0])
    self.send_response(status)
    for key, value in {**headers, "Content-Length": len(body)}.items():
      self.send_header(key, value)
    self.end_headers()
    if self.command == "GET":
      self.wfile.write(body)

  do_HEAD = do_GET

  def answer(self, path):
    files = [
      {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
      for name, body in HUB.items()
    ]
    if "/set/" in path and not {"v1", REVISION} & set(path.split("/")):
      return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
    if path.startswith("/api/datasets/org/set/tree/"):
      return 200, {}, json.dumps(files).encode()
    if path.startswith("/api/datasets/org/set"):
      return (
        200,
        {},
        json.dumps(
          {"id": "org/set", "sha": REVISION, "siblings": [{"rfilename": name} for name in HUB]}
        ).encode(),
      )
    for revision in ("v1", REVISION):
      before, _, name = path.partition(f"/datasets/org/set/resolve/{revision}/")
      if not before and name in HUB:
        etag = hashlib.sha1(HUB[name]).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION}, HUB[name]
    missing = "EntryNotFound" if "/org/set/" in path else "RepoNotFound"
    return 404, {"X-Error-Code": missing}, b"{}"

  def log_message(self, *args):
    pass


READ = """
import json, sys
from shadowft_jax.data import sources
out = []
for spec, split in json.loads(sys.argv[1]):
  try:
    source, = sources.read(spec, split)
    out.append(source.rows)
  except sources.InputError as error:
    out.append(str(error))
print(json.dumps(out))
"""


def test_a_data_set_of_the_hub_is_read(tmp_path):
  requests = [
    ("org/set:en@v1", "train"),
    ("org/set:en@v1", "dev"),
    ("org/set:en@v1", "test"),
    ("org/set:zh@v1", "train"),
    ("org/nothing", "train"),
  ]
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {
      **os.environ,
      "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
      "HF_HOME": str(tmp_path),
      "HF_HUB_OFFLINE": "0",
    }
    # The library reads its settings once, when it is imported.
    out = subprocess.run(
      [sys.executable, "-c", READ, json.dumps(requests)],
      env=env,
      text=True,
      capture_output=True,
      timeout=100,
      check=True,
    ).stdout
    server.shutdown()
  train, dev, no_split, no_subset, nothing = json.loads(out)
  assert train == [["org/set:en@v1 row 1", {"q": "1"}], ["org/set:en@v1 row 2", {"q": "2"}]]
  assert dev == [["org/set:en@v1 row 1", {"q": "3"}]]
  for error, words in (
    (no_split, 'Unknown split "test"'),
    (no_subset, "'zh' not found"),
    (nothing, "doesn't exist"),
  ):
    assert "is not a local file or folder, and could not be loaded from the Hub (split '" in error
    assert words in error and "\n" not in error
  assert nothing.endswith(
    "(hf download --repo-type dataset org/nothing --local-dir FOLDER) and give FOLDER"
  )
  assert no_split.endswith("org/set --revision v1 --local-dir FOLDER) and give FOLDER:en")


def test_without_a_network_the_error_for_a_hub_id_names_the_attempt():
  with pytest.raises(
    InputError,
    match=r"org/set:en is not a local file or folder, and could not be loaded from the "
    r"Hub \(split .train.\): .*OfflineMode.*; check the name, or download",
  ):
    sources.read("org/set:en")
