"""What is trained is what the assistant says and what ends its turn: no more, and no less."""

import copy
import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import Regex, processors, trainers
from transformers import PreTrainedTokenizerFast

from shadowft_jax.data import chat, formats, sources
from shadowft_jax.data.tokenizer import ChatTemplate, load_tokenizer, stop_tokens
from shadowft_jax.errors import InputError
from tests.runs import encode

CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA3 = """{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role
+ '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

GEMMA = """{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}
{%- if m.role == 'system' %}{% set ns.system = m.content + '\\n\\n' %}{% else %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + ns.system
+ m.content | trim + '<end_of_turn>\\n' }}{% set ns.system = '' %}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

# A turn that is asked for begins with an empty thought, those of the conversation do not.
GEMMA4 = """{{ bos_token }}{% for m in messages %}
{{- '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
{{- m.content.split('<channel|>')[-1] | trim + '<turn|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|turn>model\\n<|channel>thought\\n<channel|>' }}{% endif %}"""

QWEN3 = """{% for m in messages %}{% set content = m.content.split('</think>')[-1].lstrip('\\n') %}
{%- set thoughts = m.content.split('</think>')[0].replace('<think>', '').strip('\\n')
if '</think>' in m.content else '' %}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and loop.last %}{{ '<think>\\n' + thoughts + '\\n</think>\\n\\n' }}
{%- endif %}{{ content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Its prompt opens thoughts, which the rendered conversation does not.
DEEPSEEK = """{{ bos_token }}{% for m in messages %}{{ '<|user|>' + m.content if m.role == 'user'
else '<|assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"""

# It closes the whole conversation as well as the last turn.
PHI = """{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

# Nothing but words between the turns.
PLAIN = """{% for m in messages %}{{ 'A:' if m.role == 'assistant' else 'Q:' }} {{ m.content }}
{% endfor %}{% if add_generation_prompt %}A:{% endif %}"""

NO_THOUGHTS = "<|channel>thought\n<channel|>"  # at the end of Gemma 4's prompt
# Template, what closes a turn, what closes the last one, what comes before the last one.
TEMPLATES = {
  "chatml": (CHATML, "<|im_end|>\n", "<|im_end|>\n", ""),
  "llama3": (LLAMA3, "<|eot_id|>", "<|eot_id|>", ""),
  "gemma": (GEMMA, "<end_of_turn>\n", "<end_of_turn>\n", ""),
  "qwen3": (QWEN3, "<|im_end|>\n", "<|im_end|>\n", "<think>\n\n</think>\n\n"),
  "deepseek": (DEEPSEEK, "<|eos|>", "<|eos|>", ""),
  "phi": (PHI, "<|end|>\n", "<|end|>\n<|eos|>", ""),
  "gemma4": (GEMMA4, "<turn|>\n", "<turn|>\n", ""),
}
SPECIAL = [
  "<|bos|>",
  "<|eos|>",
  "<unk>",
  "<|im_start|>",
  "<|im_end|>",
  "<|start_header_id|>",
  "<|end_header_id|>",
  "<|eot_id|>",
  "<start_of_turn>",
  "<end_of_turn>",
  *("<|turn>", "<turn|>", "<|channel>", "<channel|>"),
  "<|system|>",
  "<|user|>",
  "<|assistant|>",
  "<|end|>",
  "[INST]",
  "[/INST]",
  "[gMASK]",
  "<|observation|>",
  "<|start|>",
  "<|channel|>",
  "<|message|>",
  "<|return|>",
]
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXT = ["The quick brown fox jumps over the lazy dog; what is the answer? It is four.\n\n"] * 9


def byte_level(trim):
  """A tokenizer as Llama 3's and Qwen's are; `trim` leaves spaces out of offsets, as GPT-2's."""
  t = Tokenizer(models.BPE())
  t.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  t.decoder = decoders.ByteLevel()
  t.train_from_iterator(
    TEXT,
    trainers.BpeTrainer(
      vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    ),
  )
  t.post_processor = processors.ByteLevel(trim_offsets=trim)
  return t


def byte_fallback():
  """A tokenizer as Gemma's is."""
  t = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
  t.normalizer = normalizers.Replace(" ", "▁")
  t.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  )
  text = [x.replace(" ", "▁").replace("\n", "") for x in TEXT]
  t.train_from_iterator(
    text,
    trainers.BpeTrainer(
      vocab_size=400,
      special_tokens=["<unk>"] + [f"<0x{i:02X}>" for i in range(256)],
      show_progress=False,
    ),
  )
  return t


def wrapped(backend, template):
  backend.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in SPECIAL])
  return PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|eos|>", chat_template=template
  )


@pytest.fixture(scope="module", params=["trimmed", "untrimmed", "fallback"])
def any_tokenizer(request):
  made = {
    "trimmed": lambda: byte_level(True),
    "untrimmed": lambda: byte_level(False),
    "fallback": byte_fallback,
  }
  return wrapped(made[request.param](), CHATML)


@pytest.fixture(scope="module")
def plain_tokenizer():
  return wrapped(byte_level(False), CHATML)


@pytest.fixture
def tokenizer(plain_tokenizer):
  plain_tokenizer.chat_template = CHATML
  return plain_tokenizer


def talk(*contents, system=None):
  """A conversation that the user opens."""
  first = [{"role": "system", "content": system}] if system is not None else []
  return first + [
    {"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)
  ]


def text_of(ids, tokenizer):
  return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def trained(example, tokenizer):
  """The text of each run of tokens that count."""
  edges = np.flatnonzero(np.diff(np.concatenate([[0], example.answer, [0]])))
  return [text_of(example.token[a:b], tokenizer) for a, b in edges.reshape(-1, 2)]


CONVERSATIONS = [
  talk("What is it?", "It is four."),
  talk("What is it?", "It is four.", "Why?", "The dog jumps.", "and?", "the fox"),
  talk("What?", "four", system="The lazy dog."),
  talk("Qu'est-ce 🎈?", "🎈🎈 naïve 中文字 🏳️‍🌈", "再见", "𝔘 é ç"),
  talk("four", "four", "four", "four", system="four"),  # the answer asked
  talk("say assistant", "assistant", "say", "<|im"),  # a part of the template
  talk("the answer is the answer", "the answer", "the", "answer is the answer"),
  talk("a", "zqxanswerqxz", "zqxanswerqxzzqxanswerqxz", "zqxanswerqxz zqxanswerqxz"),
  talk("x", "lines\n\nand  two  spaces\n\nend."),
  talk("A: ", "Q: A: is", " A:", "Q:"),
]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
def test_the_loss_covers_exactly_the_answers_and_their_end_tokens(
  any_tokenizer, name, conversation
):
  template, end, last_end, before = TEMPLATES[name]
  any_tokenizer.chat_template = template
  example = encode(conversation, any_tokenizer, 1000)
  answers = [m["content"] for m in conversation if m["role"] == "assistant"]
  assert trained(example, any_tokenizer) == (
    [a + end for a in answers[:-1]] + [before + answers[-1] + last_end]
  )
  # All of the text is there, and answers follow the prompt that generation is given.
  whole = any_tokenizer.apply_chat_template(conversation, tokenize=False)
  assert text_of(example.token, any_tokenizer).replace(NO_THOUGHTS, "", 1) == whole
  prompt = ChatTemplate(any_tokenizer).prompt(conversation[:-1])
  if name != "deepseek":
    assert example.token[: len(prompt)].tolist() == prompt and example.answer[len(prompt)] == 1
  assert example.token.dtype == example.answer.dtype == np.int32 and example.cut == 0


def test_turns_that_words_alone_divide(tokenizer):
  tokenizer.chat_template = PLAIN
  example = encode(talk("the fox", "the dog", "Q: four", "lazy Q:"), tokenizer, 1000)
  assert trained(example, tokenizer) == [" the dog\n", " lazy Q:\n"]


def test_characters_at_the_border_of_an_answer_are_on_their_side(any_tokenizer):
  joined = "{% for m in messages %}{{ m.content }}{% endfor %}"
  any_tokenizer.chat_template = joined
  for prompt, answer in (("x🎈", "🎈y"), ("中", "中"), ("dog.", "four  "), ("dog.\n", " ")):
    example = encode(talk(prompt, answer), any_tokenizer, 99)
    assert trained(example, any_tokenizer) == [answer]


def test_a_token_across_the_border_is_no_answer():
  # However the tokenizer reports its spaces.
  for trim in (True, False):
    tokenizer = wrapped(byte_level(trim), "{% for m in messages %}{{ m.content }}{% endfor %}")
    assert trained(encode(talk("dog. ", "the fox"), tokenizer, 99), tokenizer) == [" fox"]


def test_spaces_around_an_answer_are_as_the_template_writes_them(any_tokenizer):
  conversation = talk("x", "  the dog \n", "y", " four  ")
  any_tokenizer.chat_template = CHATML
  assert trained(encode(conversation, any_tokenizer, 99), any_tokenizer) == [
    "  the dog \n<|im_end|>\n",
    " four  <|im_end|>\n",
  ]
  any_tokenizer.chat_template = GEMMA
  assert trained(encode(conversation, any_tokenizer, 99), any_tokenizer) == [
    "the dog<end_of_turn>\n",
    "four<end_of_turn>\n",
  ]


def test_thoughts_are_trained_where_the_template_keeps_them(tokenizer):
  tokenizer.chat_template = QWEN3
  example = encode(
    talk("a", "<think>\nhm\n</think>\n\nb", "c", "<think>\noh\n</think>\n\nd"), tokenizer, 1000
  )
  assert trained(example, tokenizer) == ["b<|im_end|>\n", "<think>\noh\n</think>\n\nd<|im_end|>\n"]
  assert example.altered, "the earlier thoughts are gone"
  assert not encode(talk("a", " b", "c", "<think>\noh\n</think>\n\nd"), tokenizer, 1000).altered


def test_template_arguments_reach_the_template(tokenizer):
  tokenizer.chat_template = QWEN3.replace(
    "assistant\\n' }}{% endif %}",
    "assistant\\n' }}{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}",
  )
  rows = [formats.Row("", talk("a", "b"))]
  for args, whole in ((), "<think>\n\n</think>\n\nb"), ((("enable_thinking", False),), "b"):
    [[example]] = chat.encode_rows(rows, tokenizer, formats.Settings(99, template_args=args))
    assert trained(example, tokenizer) == [f"{whole}<|im_end|>\n"]
    prompt = ChatTemplate(tokenizer, dict(args)).prompt(talk("a"))
    assert prompt == example.token[: len(prompt)].tolist()
  for wrong in ("enable_thinkin", "messages"):
    with pytest.raises(InputError, match=f"does not use the argument {wrong};") as error:
      ChatTemplate(tokenizer, {wrong: False})
    assert ("did you mean enable_thinking?" in str(error.value)) == (wrong != "messages")


def test_turns_in_an_unusual_order(tokenizer):
  assistant = lambda text: {"role": "assistant", "content": text}
  for template, before in ((CHATML, ""), (QWEN3, "<think>\n\n</think>\n\n")):
    tokenizer.chat_template = template
    two = encode([*talk("a", "four"), assistant("dog")], tokenizer, 1000)
    assert trained(two, tokenizer)[0] == "four<|im_end|>\n"
    assert trained(two, tokenizer)[1].endswith("dog<|im_end|>\n")
    opened = encode([assistant("four"), *talk("b", "dog")], tokenizer, 1000)
    assert trained(opened, tokenizer) == ["four<|im_end|>\n", before + "dog<|im_end|>\n"]
  tokenizer.chat_template = CHATML
  left_open = encode(talk("a", "four", "and?"), tokenizer, 1000)
  assert trained(left_open, tokenizer) == ["four<|im_end|>\n"]


def test_tokens_beyond_max_length_are_truncated_and_counted(tokenizer):
  conversation = talk("What is it?", "It is four.")
  whole = encode(conversation, tokenizer, 1000)
  for length in range(1, len(whole.token) + 3):
    example = encode(conversation, tokenizer, length)
    np.testing.assert_array_equal(example.token, whole.token[:length])
    np.testing.assert_array_equal(example.answer, whole.answer[:length])
    assert example.cut == whole.answer[length:].sum()


def encode_rows(conversations, tokenizer, max_length=1000):
  rows = [formats.Row(f"f.json row {i}", c) for i, c in enumerate(conversations, 1)]
  return chat.encode_rows(rows, tokenizer, formats.Settings(max_length))


def test_encoding_many_is_encoding_each(tokenizer):
  entries = encode_rows(CONVERSATIONS, tokenizer, 60)
  for i, ([example], conversation) in enumerate(zip(entries, CONVERSATIONS, strict=True), 1):
    one = encode(conversation, tokenizer, 60)
    np.testing.assert_array_equal(example.token, one.token)
    np.testing.assert_array_equal(example.answer, one.answer)
    assert (example.cut, example.where) == (one.cut, f"f.json row {i}")


def test_raw_text_is_trained_whole_in_pieces_of_even_length(tokenizer):
  text = "the lazy dog " * 30
  rows = [formats.Row("f row 1", [], text=text), formats.Row("f row 2", talk("a", "four"))]
  pieces, [conversation] = chat.encode_rows(rows, tokenizer, formats.Settings(40))
  assert "".join(text_of(p.token, tokenizer) for p in pieces) == f"<|bos|>{text}<|eos|>"
  lengths = [len(p.token) for p in pieces]
  assert len(pieces) > 1 and max(lengths) <= 40 and max(lengths) - min(lengths) <= 1
  assert all(p.answer.all() and p.trained == len(p.token) - 1 for p in pieces)
  assert trained(conversation, tokenizer) == ["four<|im_end|>\n"]


def test_a_turn_of_weight_0_is_not_trained(tokenizer):
  conversation = talk("a", "four", "b", "dog")
  conversation[1]["weight"], conversation[3]["weight"] = 0, 1
  assert trained(encode(conversation, tokenizer, 99), tokenizer) == ["dog<|im_end|>\n"]
  conversation[3]["weight"] = 0
  with pytest.raises(InputError, match="it has no assistant turn to train on"):
    encode(conversation, tokenizer, 99)


# It closes no turn: the model stops by beginning the next.
GLM = """[gMASK]{% for m in messages %}{% if m.role == 'tool' %}<|observation|>
{{ m.content }}{% else %}<|{{ m.role }}|>{{ '\n' + m.content }}
{%- for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""

# It closes earlier answers with one token, the last with another.
OLMO = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}
{%- if m.role == 'assistant' and loop.last %}{{ eos_token }}{% else %}
{{- '<|im_end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

GPT_OSS = """{% for m in messages %}{% if m.role == 'assistant' %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content }}
{{- '<|return|>' if loop.last else '<|end|>' }}{% else %}
{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

# Template -> the tokens at which the model stops, and a token that is no such one.
STOPS = {
  "chatml": (CHATML, ["<|im_end|>"]),
  "llama3": (LLAMA3, ["<|eos|>", "<|eot_id|>"]),
  "gemma": (GEMMA, ["<|eos|>", "<end_of_turn>"]),
  "gemma4": (GEMMA4, ["<|eos|>", "<turn|>"]),
  "qwen3": (QWEN3, ["<|im_end|>"]),
  "deepseek": (DEEPSEEK, ["<|eos|>"]),
  "phi": (PHI, ["<|eos|>", "<|end|>"]),
  "glm": (GLM, ["<|eos|>", "<|user|>", "<|observation|>"]),
  "olmo": (OLMO, ["<|eos|>", "<|im_end|>"]),
  "gpt-oss": (GPT_OSS, ["<|return|>", "<|end|>"]),
}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
LAW = [
  talk("a", "four"),
  talk("a", "four", "b", "the dog", "c", "fox", system="lazy"),
  talk("a", "four", "b"),
  [*talk("a", "four"), {"role": "assistant", "content": "dog"}],
  [*talk("a"), {"role": "assistant", "content": "x", "tool_calls": [CALL]}],
  [
    *talk("a"),
    {"role": "assistant", "content": "x", "tool_calls": [CALL]},
    {"role": "tool", "content": "5"},
    {"role": "assistant", "content": "dog"},
  ],
]


def check_ends(tokenizer, stops):
  """Every trained answer holds a token at which the model stops, or is counted as one without;
  returns how many do not."""
  unterminated = 0
  for conversation in LAW:
    try:
      example = encode(conversation, tokenizer, 1000)
    except InputError as error:  # A template may refuse a conversation, but not in silence.
      assert "chat template" in str(error)
      continue
    ids = {tokenizer.convert_tokens_to_ids(x) for x in stops}
    edges = np.flatnonzero(np.diff(np.concatenate([[0], example.answer, [0]]))).reshape(-1, 2)
    without = sum(not ids & {*example.token[max(a, b - 4) : b].tolist()} for a, b in edges)
    assert without == example.unterminated
    unterminated += without
  return unterminated


@pytest.mark.parametrize("name", STOPS)
def test_every_answer_ends_in_a_token_at_which_the_model_stops(tokenizer, tmp_path, name):
  template, stops = STOPS[name]
  tokenizer.chat_template = template
  tokenizer.save_pretrained(tmp_path)
  ids = tokenizer.convert_tokens_to_ids(stops)
  (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
  # Of two assistants in a row, GLM ends the first by nothing.
  assert check_ends(load_tokenizer(tmp_path), [*stops, "<|eos|>"]) == (name == "glm")
  (tmp_path / "generation_config.json").write_text("{}")
  if "<|eos|>" not in stops:
    assert check_ends(load_tokenizer(tmp_path), ["<|eos|>"]) > 5


def test_every_answer_of_a_real_template_ends_so(tokenizer, shared_data):
  for path, (end, last) in real_templates(shared_data("chat_templates")):
    real = copy.deepcopy(tokenizer)
    real.chat_template = path.read_text(encoding="utf-8")
    stop = (last or end).strip()
    real.add_special_tokens({"eos_token": stop})
    # Phi ends the last answer with two tokens, the others with the first.
    assert check_ends(real, [stop]) == (4 if last else 0), path


@pytest.mark.parametrize(
  "name, expected",
  [
    ("olmo", ["one<|im_end|>", "two<|eos|>"]),
    ("gpt-oss", [f"<|channel|>final<|message|>{x}" for x in ("one<|end|>", "two<|return|>")]),
    ("glm", ["\none<|user|>", "\ntwo<|user|>"]),
  ],
)
def test_answers_that_the_template_ends_each_in_its_way(tokenizer, tmp_path, name, expected):
  template, stops = STOPS[name]
  tokenizer.chat_template = template
  tokenizer.save_pretrained(tmp_path)
  ids = tokenizer.convert_tokens_to_ids(stops)
  (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": ids}))
  tokenizer = load_tokenizer(tmp_path)
  assert trained(encode(talk("a?", "one", "b?", "two"), tokenizer, 99), tokenizer) == expected
  assert trained(encode(talk("a?", "one", "b?"), tokenizer, 99), tokenizer) == expected[:1]
  # Whatever is said next, and whether the model stops at the token that closes earlier turns.
  ids = ids if name == "glm" else ids[:1]
  (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": ids}))
  for answer in ("e", "start", "<|end", ""):
    assert trained(encode(talk("a?", "one", answer, "two"), tokenizer, 99), tokenizer) == expected


def test_a_marker_at_which_the_model_goes_on_is_no_end(tokenizer):
  tokenizer.chat_template = GLM  # whose stops are not told
  example = encode(talk("a?", "one", "b?", "two"), tokenizer, 99)
  assert trained(example, tokenizer) == ["\none", "\ntwo"] and example.unterminated == 2


def test_control_tokens_spelt_out_in_an_answer_are_noted(tokenizer):
  has_special = lambda *talk_, **more: encode(talk(*talk_, **more), tokenizer, 99).has_special
  assert has_special("a", "turns end with <|im_end|> here")
  assert not has_special("a <|im_end|>", "four") and not has_special("a", "<|im_end | four")
  old = talk("a", "<|eos|>", "b", "four")
  old[1]["weight"] = 0
  assert not encode(old, tokenizer, 99).has_special


def test_text_that_has_its_begin_and_end_gets_no_others(tokenizer):
  for text in ("the fox", "<|bos|>the fox", "the fox<|eos|>", "<|bos|>the fox<|eos|>\n"):
    [[piece]] = chat.encode_rows(
      [formats.Row("f row 1", [], text=text)], tokenizer, formats.Settings(99)
    )
    assert text_of(piece.token, tokenizer).rstrip() == "<|bos|>the fox<|eos|>"


# As Qwen writes calls; and as Llama 3.1 does, which leaves out what is said beside a call.
CALLS = {
  "beside": """{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' + m.content if m.content }}
{%- for c in m.tool_calls or [] %}{{ '\n<call>' + c.function.name + c.function.arguments | tojson
+ '</call>' }}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}""",
  "instead": """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.tool_calls %}{{ '<call>' + m.tool_calls[0].function.name
+ m.tool_calls[0].function.arguments | tojson + '</call>' }}{% else %}{{ m.content }}{% endif %}
{{- '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
}


@pytest.mark.parametrize("answer", ["", "the lazy dog"])
@pytest.mark.parametrize("name", CALLS)
def test_the_loss_covers_tool_calls_but_not_tool_results(tokenizer, name, answer):
  tokenizer.chat_template = CALLS[name]
  call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
  conversation = [
    {"role": "user", "content": "four"},
    {"role": "assistant", "content": answer, "tool_calls": [call]},
    {"role": "tool", "content": "add"},
    {"role": "assistant", "content": "dog"},
  ]
  beside = name == "beside"
  first = ("\n" + answer if answer else "") + "\n" if beside else ""
  want = [first + '<call>add{"a": 1}</call><|im_end|>\n', "\n" * beside + "dog<|im_end|>\n"]
  assert trained(encode(conversation, tokenizer, 1000), tokenizer) == want
  assert trained(encode(conversation[:2], tokenizer, 1000), tokenizer) == want[:1]


def test_a_template_is_given_the_tools(tokenizer):
  tokenizer.chat_template = "{{ tools[0].function.name }}:" + CHATML
  tools = [{"type": "function", "function": {"name": "add"}}]
  example = encode(talk("a", "four"), tokenizer, 1000, tools=tools)
  assert text_of(example.token, tokenizer).startswith("add:<|im_start|>user")
  assert trained(example, tokenizer) == ["four<|im_end|>\n"]


def test_a_run_is_the_same_on_any_day(tokenizer):
  tokenizer.chat_template = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% endif %}{{ date_string }}" + CHATML
  )
  assert text_of(ChatTemplate(tokenizer).prompt(talk("x")), tokenizer).startswith("26 Jul 2024")
  for template, want in (
    ("{{ strftime_now('%Y-%m-%d %H:%M') }}", "2024-07-26 00:00"),
    (
      "\n  {% set day = strftime_now('%-d %B %Y, %A %-m%%') %}\n{{ day }}",
      "\n26 July 2024, Friday 7%",
    ),
  ):
    tokenizer.chat_template = template + CHATML
    text = text_of(ChatTemplate(tokenizer).prompt(talk("x")), tokenizer)
    assert text == want + "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"


HOSTILE = [
  "{{ ''.__class__.__mro__[1].__subclasses__() }}",
  "{{ messages.__class__.__base__ }}",
  "{{ namespace.__init__.__globals__['os'].system('touch hostile') }}",
  "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
]


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_template_cannot_reach_out_of_its_sandbox(tokenizer, tmp_path, monkeypatch, attack):
  monkeypatch.chdir(tmp_path)
  tokenizer.chat_template = attack + CHATML
  with pytest.raises(
    InputError, match="the chat template of .* fails for the roles user, assistant"
  ):
    encode(talk("a", "b"), tokenizer, 100)
  assert not list(tmp_path.iterdir())


# What stands around an answer depends on it.
LENGTH = "{{ messages | map(attribute='content') | join | length }}"


@pytest.mark.parametrize(
  "template, conversation, match",
  [
    (None, talk("a", "b"), r"has no chat template; use the Instruct model.s tokenizer"),
    ("{% if %}", talk("a", "b"), r"fails for the roles user, assistant"),
    (
      "{{ raise_exception('No system here') }}",
      talk("a", "b", system="s"),
      r"fails for the roles system, user, assistant: No system here",
    ),
    ("{{ messages[0].content }}", talk("a", "b"), r"turn 2: the chat template .* 0 times"),
    (CHATML * 2, talk("a", "b"), r"turn 2: the chat template .* renders the answer 2 times"),
    (
      LENGTH + CHATML,
      talk("a", "b"),
      r"turn 2: cannot find the answer .b. in the text rendered by the chat template of ",
    ),
    (CHATML + LENGTH, talk("a", "b"), r"turn 2: cannot find the answer 'b'"),
    (
      "{% for m in messages %}{{ m.content }}|{% endfor %}{{ '|' if add_generation_prompt }}",
      talk("a", ""),
      r"turn 2: cannot find the answer ..",
    ),
    (CHATML, talk("a"), r"no assistant turn"),
  ],
)
def test_rows_that_cannot_be_rendered_are_refused(tokenizer, template, conversation, match):
  tokenizer.chat_template = template
  with pytest.raises(InputError, match=match):
    encode(conversation, tokenizer, 100)


def test_an_error_names_the_row_and_the_others_are_encoded(tokenizer):
  good, bad, other = encode_rows([talk("a", "b"), talk("a"), talk("c", "d")], tokenizer)
  assert isinstance(bad, InputError)
  assert str(bad).startswith("f.json row 2: it has no assistant turn")
  assert trained(good[0], tokenizer) == ["b<|im_end|>\n"]
  assert trained(other[0], tokenizer) == ["d<|im_end|>\n"]
  with pytest.raises(InputError, match="data.max_length must be above 0; got 0"):
    encode(talk("a", "b"), tokenizer, 0)


def test_a_tokenizer_is_loaded_from_its_folder(tokenizer, tmp_path):
  tokenizer.save_pretrained(tmp_path)
  loaded = load_tokenizer(tmp_path)
  for conversation in CONVERSATIONS:
    one, other = (encode(conversation, t, 1000) for t in (tokenizer, loaded))
    np.testing.assert_array_equal(one.token, other.token)
    np.testing.assert_array_equal(one.answer, other.answer)


@pytest.mark.parametrize(
  "files, match",
  [
    ({}, "cannot load a tokenizer from .*: .*; copy tokenizer.json"),
    ({"tokenizer.json": "{}"}, "cannot load a tokenizer from .*"),
    (
      {
        "tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}',
        "evil.py": "import pathlib; pathlib.Path(__file__).with_name('ran').touch()",
      },
      "cannot load a tokenizer from .*: .*custom code",
    ),
  ],
)
def test_a_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path, files, match):
  for name, text in files.items():
    (tmp_path / name).write_text(text)
  with pytest.raises(InputError, match=match) as error:
    load_tokenizer(tmp_path)
  assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()
  with pytest.raises(InputError, match="nowhere is not a folder; give a Hugging Face"):
    load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize(
  "generation, config, expected",
  [
    ({"eos_token_id": [7, 8]}, {"eos_token_id": 8}, (7, 8)),
    ({"eos_token_id": 7}, None, (7,)),
    ({}, {"eos_token_id": None}, ()),
    (None, None, ()),
  ],
)
def test_stop_tokens_are_all_that_are_named(tokenizer, tmp_path, generation, config, expected):
  for name, content in (("generation_config", generation), ("config", config)):
    if content is not None:
      (tmp_path / f"{name}.json").write_text(json.dumps(content))
  assert stop_tokens(tokenizer, tmp_path) == (*expected, tokenizer.eos_token_id)
  bare = PreTrainedTokenizerFast(tokenizer_object=byte_level(False))
  if expected:
    assert stop_tokens(bare, tmp_path) == expected
  else:
    with pytest.raises(InputError, match="defines no EOS token; set eos_token_id"):
      stop_tokens(bare, tmp_path)
  (tmp_path / "config.json").write_text("[]")
  with pytest.raises(InputError, match="config.json contains a JSON list"):
    stop_tokens(tokenizer, tmp_path)


# The file's name holds this -> what closes a turn, and what closes the last one besides.
REAL = {
  "deepseek": ("<｜end▁of▁sentence｜>", ""),
  "gemma": ("<end_of_turn>\n", ""),
  "llama-3": ("<|eot_id|>", ""),
  "llama3": ("<|eot_id|>", ""),
  "qwen": ("<|im_end|>\n", ""),
  "phi": ("<|end|>\n", "<|eos|>"),
  "mistral": ("<|eos|>", ""),
}
THINKING = {"qwen3.jinja": "<think>\n\n</think>\n\n"}


def real_templates(folder):
  paths = sorted(p for p in folder.rglob("*.jinja") if p.stem != "llava_next")
  assert len(paths) > 15
  for path in paths:
    yield path, next(v for k, v in REAL.items() if k in path.name.lower())


def test_the_templates_of_real_models(tokenizer, shared_data):
  conversations = [talk("What is it?", "It is four."), talk("four", "four", "🎈", "中文 four")]
  for path, (end, last) in real_templates(shared_data("chat_templates")):
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    for conversation in conversations:
      *answers, final = [m["content"] for m in conversation if m["role"] == "assistant"]
      assert trained(encode(conversation, tokenizer, 1000), tokenizer) == (
        [a + end for a in answers] + [THINKING.get(path.name, "") + final + end + last]
      ), path


def test_a_real_template_for_content_of_another_kind_is_refused(tokenizer, shared_data):
  path = shared_data("chat_templates") / "trl" / "llava_next.jinja"
  tokenizer.chat_template = path.read_text(encoding="utf-8")
  with pytest.raises(InputError, match="the chat template of"):
    encode(talk("a", "b"), tokenizer, 100)


def test_the_demo_of_llamafactory_is_encoded(tokenizer, shared_data):
  [source] = sources.read(str(shared_data("llamafactory_demo") / "alpaca_en_demo.json"))
  _, rows = formats.convert(source, {}, formats.BadRows(False))
  for row, [example] in zip(
    rows, chat.encode_rows(rows, tokenizer, formats.Settings(10**6)), strict=True
  ):
    assert trained(example, tokenizer) == [row.messages[1]["content"] + "<|im_end|>\n"]
