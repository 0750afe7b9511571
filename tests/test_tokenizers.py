"""Real tokenizers tokenise as their makers say, and real templates learn just what is said."""

import copy
import functools
import json

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, normalizers

from shadowft_jax.data import chat, formats
from shadowft_jax.errors import InputError
from tests import real_tokenizers

TEXTS = [
  "Hello, world!",
  " leading",
  "  two  spaces ",
  "tabs\t\tand\r\nlines\n\n\n  x",
  "naïve 中文字 再见",
  "🎈🏳️‍🌈 𝔘 é",
  "def f(x):\n    return x ** 2  # 3.14159",
  "1234567 ½ 10%",
  "'LL I'll WE'VE",
  "<think>\n\n</think>\n\n",
  "",
]


@pytest.fixture(scope="session")
def real(shared_data):
  """real(name): a tokenizer as it is released, see real_tokenizers.py."""
  return lambda name: real_tokenizers.load(name, shared_data)


@pytest.fixture(scope="session")
def templates(shared_data):
  return real_tokenizers.templates(shared_data)


def ids_of(texts, tokenizer):
  return tokenizer(texts, add_special_tokens=False, verbose=False).input_ids


@pytest.mark.parametrize(
  "name, vectors",
  [("llama3", "llama-bpe"), ("qwen", "qwen2"), ("llama2", "llama-spm"), ("gpt2", "gpt-2")],
)
def test_ids_are_those_of_llama_cpp(real, shared_data, name, vectors):
  texts, expected = zip(*real_tokenizers.vectors(vectors, shared_data), strict=True)
  assert len(texts) == 46
  assert ids_of(list(texts), real(name)) == list(expected)


def test_llama_3_2_tokenises_a_page_as_the_hub_does(real, shared_data):
  page = json.loads((shared_data("tokenizers") / "llama3" / "llama_3.2_encoded.json").read_text())
  tokenizer = real("llama3")
  assert tokenizer(page["text"]).input_ids == page["token_ids"]
  [ids] = ids_of([page["text"]], tokenizer)
  assert ids == page["token_ids"][1:]
  assert tokenizer.convert_ids_to_tokens(ids) == page["bpe_tokens"]


@pytest.mark.parametrize("name", ["llama3", "qwen", "qwen3", "llama2", "gpt2", "minimind"])
def test_a_round_trip_changes_nothing(real, name):
  tokenizer = real(name)
  for text, ids in zip(TEXTS, ids_of(TEXTS, tokenizer), strict=True):
    assert text_of(ids, tokenizer) == text


def test_special_tokens_have_their_ids(real):
  expected = {
    "llama3": {
      "<|begin_of_text|>": 128000,
      "<|start_header_id|>": 128006,
      "<|eom_id|>": 128008,
      "<|eot_id|>": 128009,
    },
    "qwen": {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645},
    "qwen3": {"<|im_end|>": 151645, "<think>": 151667, "</think>": 151668},
  }
  for name, tokens in expected.items():
    assert ids_of(list(tokens), real(name)) == [[i] for i in tokens.values()]


def text_of(ids, tokenizer):
  return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def runs_of(answer):
  """(start, end) of each run of 1."""
  return np.flatnonzero(np.diff(np.concatenate([[0], answer, [0]]))).reshape(-1, 2).tolist()


def encode(messages, tokenizer, tools=None):
  row = formats.Row("row 1", messages, tools=tools)
  [entry] = chat.encode_rows([row], tokenizer, formats.Settings(100_000))
  if isinstance(entry, InputError):
    raise entry
  [example] = entry
  return example


def trained(messages, tokenizer, tools=None):
  """The texts that are trained, after a check that the tokens are those of the rendered text."""
  example = encode(messages, tokenizer, tools)
  text = tokenizer.apply_chat_template(
    messages, tools=tools, tokenize=False, date_string="26 Jul 2024"
  )
  [ids] = ids_of([text], tokenizer)
  assert example.token.tolist() == ids and text_of(ids, tokenizer) == text
  return [text_of(example.token[a:b], tokenizer) for a, b in runs_of(example.answer)]


def dressed(tokenizer, template):
  """The tokenizer with another chat template."""
  tokenizer = copy.copy(tokenizer)
  tokenizer.chat_template = template
  return tokenizer


def extended(tokenizer, bos, eos, *special, **how):
  """A copy of the tokenizer with the special tokens of another family."""
  tokenizer = copy.deepcopy(tokenizer)
  tokens = {x: AddedToken(x, special=True, normalized=False, **how) for x in (bos, eos, *special)}
  tokenizer.add_special_tokens({"bos_token": tokens[bos], "eos_token": tokens[eos]})
  tokenizer.add_tokens([tokens[x] for x in special], special_tokens=True)
  return tokenizer


@pytest.fixture(scope="session")
def fitting(real):
  """fitting(name): a tokenizer for templates of that family, the real one where it is here."""

  @functools.cache
  def build(name):
    if name not in SPECIAL:
      return real(name)
    tokenizer = extended(real(SPECIAL[name][0]), *SPECIAL[name][1:])
    if SPECIAL[name][0] == "llama2":
      # Gemma's puts no space before a text.
      tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
      tokenizer.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
      )
    return tokenizer

  return build


# Family -> the real tokenizer that stands in for its own, its begin, end and other special tokens.
SPECIAL = {
  "gemma": ("llama2", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
  "phi": ("llama2", "<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
  "deepseek": (
    "minimind",
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
  ),
  "mistral": ("minimind", "<s>", "</s>", "[INST]", "[/INST]"),
}


def talk(*contents, system=None):
  first = [{"role": "system", "content": system}] if system is not None else []
  return first + [
    {"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)
  ]


ANSWERS = ["It is four.", "Four.\n\nIt is 2 + 2:\n  2 and\n  2", "中文字 🏳️‍🌈", "the", "1"]
NO_THOUGHTS = "<think>\n\n</think>\n\n"
LLAMA, QWEN, GEMMA = ("<|eot_id|>",) * 2, ("<|im_end|>\n",) * 2, ("<end_of_turn>\n",) * 2
# Template -> tokenizer, what closes a turn, what closes the last one.
KNOWN = {
  "trl/llama3": ("llama3", *LLAMA),
  "llama_cpp/meta-llama-Llama-3.1-8B-Instruct": ("llama3", *LLAMA),
  "llama_cpp/meta-llama-Llama-3.2-3B-Instruct": ("llama3", *LLAMA),
  "llama_cpp/meta-llama-Llama-3.3-70B-Instruct": ("llama3", *LLAMA),
  "llama_cpp/Qwen-Qwen2.5-7B-Instruct": ("qwen", *QWEN),
  "trl/qwen3": ("qwen3", *QWEN),
  "trl/qwen3_instruct_2507": ("qwen3", *QWEN),
  "llama_cpp/google-gemma-2-2b-it": ("gemma", *GEMMA),
  "trl/gemma3": ("gemma", *GEMMA),
  "llama_cpp/mistralai-Mistral-Nemo-Instruct-2407": ("mistral", "</s>", "</s>"),
  "llama_cpp/microsoft-Phi-3.5-mini-instruct": ("phi", "<|end|>\n", "<|end|>\n<|endoftext|>"),
  "llama_cpp/deepseek-ai-DeepSeek-R1-Distill-Llama-8B": (
    "deepseek",
    "<｜end▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
  ),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("system", [None, "Be brief; the answer is four."])
def test_answers_and_their_ends_are_trained_to_the_token(fitting, templates, name, system):
  kind, close, last_close = KNOWN[name]
  opening = NO_THOUGHTS if name == "trl/qwen3" else ""
  tokenizer = dressed(fitting(kind), templates[name])
  questions = ["What is it?", "Why?", "中?", "What is the answer? It is four.", "1"]
  turns = [x for pair in zip(questions, ANSWERS, strict=True) for x in pair]
  if system and "gemma-2" in name:
    with pytest.raises(InputError, match="^row 1: .*System role not supported"):
      encode(talk(*turns, system=system), tokenizer)
    return
  for count in (2, 10):
    *before, last = turns[1:count:2]
    assert trained(talk(*turns[:count], system=system), tokenizer) == [
      *(answer + close for answer in before),
      opening + last + last_close,
    ]


@pytest.mark.parametrize(
  "name",
  [
    "trl/qwen3",
    "trl/qwen3_instruct_2507",
    "trl/llama3_1",
    "llama_cpp/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
  ],
)
def test_thoughts_are_trained_where_the_template_writes_them(fitting, templates, name):
  one, two = "<think>\nhm\n</think>\n\nFour.", "<think>\nhm, 5\n</think>\n\nFive."
  expected = {
    "trl/qwen3": ["Four.<|im_end|>\n", two + "<|im_end|>\n"],
    "trl/qwen3_instruct_2507": [one + "<|im_end|>\n", two + "<|im_end|>\n"],
    "trl/llama3_1": [one + "<|eot_id|>", two + "<|eot_id|>"],
    "llama_cpp/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": [
      "\n\nFour.<｜end▁of▁sentence｜>",
      "\n\nFive.<｜end▁of▁sentence｜>",
    ],
  }[name]
  kind = {"trl/llama3_1": "llama3"}.get(name, "qwen3" if "trl" in name else "deepseek")
  tokenizer = dressed(fitting(kind), templates[name])
  assert trained(talk("2 + 2?", one, "2 + 3?", two), tokenizer) == expected
  # As a field of its own, beside the content.
  if name == "trl/qwen3":
    apart = talk("2 + 2?", "Four.", "2 + 3?", "Five.")
    apart[1]["reasoning_content"], apart[3]["reasoning_content"] = "hm", "hm, 5"
    assert trained(apart, tokenizer) == expected


def test_llama_trims_and_qwen_does_not(real, templates):
  messages = talk("Hi", "  four \n", "so", "\tfive\n\n")
  tokenizer = dressed(real("llama3"), templates["trl/llama3_1"])
  assert trained(messages, tokenizer) == ["four<|eot_id|>", "five<|eot_id|>"]
  tokenizer = dressed(real("qwen"), templates["trl/qwen2_5"])
  assert trained(messages, tokenizer) == ["  four \n<|im_end|>\n", "\tfive\n\n<|im_end|>\n"]


def test_spaces_that_a_tokenizer_adds_or_takes_move_no_border(real, templates):
  """Phi's tokens take the line end after them, and the text between them gets a space."""
  tokenizer = dressed(
    extended(
      real("llama2"), "<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", rstrip=True
    ),
    templates["trl/phi3_5"],
  )
  example = encode(talk("What is it?", "It is four.", "Why?", "So."), tokenizer)
  pieces = [tokenizer.convert_ids_to_tokens(example.token[a:b]) for a, b in runs_of(example.answer)]
  assert pieces == [
    ["▁It", "▁is", "▁four", ".", "<|end|>"],
    ["▁So", ".", "<|end|>", "<|endoftext|>"],
  ]


# The part of a template that writes an answer, and the same with generation tags around it.
TAGGED = {
  "trl/llama3": (
    "llama3",
    "{{ content }}",
    (
      "{% if message['role'] == 'assistant' %}{{ '<|start_header_id|>assistant<|end_header_id|>"
      "\n\n' }}{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}"
      "{% else %}{{ content }}{% endif %}"
    ),
  ),
  "trl/qwen2_5": (
    "qwen",
    ("{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"),
    (
      "{{- '<|im_start|>' + message.role + '\\n' }}{%- if message.role == 'assistant' %}"
      "{% generation %}{{- message.content + '<|im_end|>' + '\\n' }}{% endgeneration %}"
      "{%- else %}{{- message.content + '<|im_end|>' + '\\n' }}{%- endif %}"
    ),
  ),
  "trl/qwen3_instruct_2507": (
    "qwen3",
    (
      "{{- '<|im_start|>' + message.role + '\\n' + content }}\n        {%- if message.tool_calls %}"
    ),
    (
      "{{- '<|im_start|>' + message.role + '\\n' }}{% generation %}{{- content + '<|im_end|>\\n' "
      "}}{% endgeneration %}{% continue %}{%- if message.tool_calls %}"
    ),
  ),
}


@pytest.mark.parametrize("name", TAGGED)
def test_generation_tags_give_the_same_mask_as_without_them(real, templates, name):
  kind, plain, tagged = TAGGED[name]
  assert templates[name].count(plain) == 1
  with_tags = dressed(real(kind), templates[name].replace(plain, tagged))
  without = dressed(real(kind), templates[name])
  for messages in (
    talk("What is it?", ANSWERS[1]),
    talk("a", *[x for a in ANSWERS for x in (a, "why?")][:-1], system="Be brief."),
  ):
    marked = with_tags.apply_chat_template(
      messages, return_dict=True, return_assistant_tokens_mask=True
    )
    for tokenizer in (with_tags, without):
      example = encode(messages, tokenizer)
      assert example.token.tolist() == marked["input_ids"]
      assert example.answer.tolist() == marked["assistant_masks"]
    assert sum(marked["assistant_masks"]) > 5


TOOLS = [
  {
    "type": "function",
    "function": {
      "name": "weather",
      "description": "The weather of a city.",
      "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
      },
    },
  }
]


def call(*cities, content=""):
  return {
    "role": "assistant",
    "content": content,
    "tool_calls": [
      {"type": "function", "function": {"name": "weather", "arguments": {"city": c}}}
      for c in cities
    ],
  }


def result(text):
  return {"role": "tool", "content": text}


def qwen_calls(*cities):
  return (
    "\n".join(
      f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "{c}"}}}}\n</tool_call>'
      for c in cities
    )
    + "<|im_end|>\n"
  )


def llama_calls(city):
  return f'{{"name": "weather", "parameters": {{"city": "{city}"}}}}<|eot_id|>'


@pytest.mark.parametrize(
  "name, kind",
  [
    ("trl/llama3_1", "llama3"),
    ("trl/llama3_2", "llama3"),
    ("trl/qwen2_5", "qwen"),
    ("trl/qwen3", "qwen3"),
    ("trl/qwen3_instruct_2507", "qwen3"),
  ],
)
def test_a_call_is_trained_and_its_result_is_not(real, templates, name, kind):
  tokenizer = dressed(real(kind), templates[name])
  calls, close = (llama_calls, LLAMA[0]) if kind == "llama3" else (qwen_calls, QWEN[0])
  opening = NO_THOUGHTS if name == "trl/qwen3" else ""
  messages = [
    *talk("Rain in Oslo?", system="Be brief."),
    call("Oslo"),
    result("rain: weather"),
    *talk("x", "Yes, rain.")[1:],
  ]
  assert trained(messages, tokenizer, TOOLS) == [calls("Oslo"), opening + "Yes, rain." + close]
  # Again, after an answer; the words of a call are those of its question and its result.
  again = [
    *messages,
    *talk("weather"),
    call("weather"),
    result("weather"),
    *talk("x", "weather")[1:],
  ]
  assert trained(again, tokenizer, TOOLS) == [
    calls("Oslo"),
    "Yes, rain." + close,
    calls("weather"),
    opening + "weather" + close,
  ]
  # A call that ends the conversation, and one that is not to be trained.
  assert trained(messages[:3], tokenizer, TOOLS) == [opening + calls("Oslo")]
  messages[2] = {**messages[2], "weight": 0}
  assert trained(messages, tokenizer, TOOLS) == [opening + "Yes, rain." + close]


@pytest.mark.parametrize("name, kind", [("trl/qwen2_5", "qwen"), ("trl/qwen3", "qwen3")])
def test_words_before_calls_and_several_calls_are_trained(real, templates, name, kind):
  tokenizer = dressed(real(kind), templates[name])
  opening = NO_THOUGHTS if name == "trl/qwen3" else ""
  messages = [
    *talk("Rain?"),
    call("Oslo", "Rome", content="I look."),
    result("rain"),
    result("sun"),
    *talk("x", "In Oslo.")[1:],
  ]
  assert trained(messages, tokenizer, TOOLS) == [
    "I look.\n" + qwen_calls("Oslo", "Rome"),
    opening + "In Oslo.<|im_end|>\n",
  ]


def test_a_call_that_cannot_be_placed_is_refused(fitting, templates):
  """Mistral-Nemo's prompt holds a system text that the whole conversation leaves out."""
  tokenizer = dressed(
    fitting("mistral"), templates["llama_cpp/mistralai-Mistral-Nemo-Instruct-2407"]
  )
  messages = call("Oslo")
  messages["tool_calls"][0]["id"] = "abcdefghi"
  messages = [
    *talk("Rain?"),
    messages,
    {**result("rain"), "tool_call_id": "abcdefghi"},
    *talk("x", "Yes.")[1:],
  ]
  assert trained(messages, tokenizer, TOOLS) == [
    '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}, "id": "abcdefghi"}]</s>',
    "Yes.</s>",
  ]
  with pytest.raises(InputError, match="^row 1: turn 3: cannot find the answer ''"):
    encode([*talk(system="Be brief."), *messages], tokenizer, TOOLS)
