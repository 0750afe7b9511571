"""OpenCompass's lmdeploy model, whose chat template is told not to think."""

import functools

from opencompass.models import TurboMindModelwithChatTemplate


class PlainTurboMind(TurboMindModelwithChatTemplate):
  """With enable_thinking=False, as the authors' change to OpenCompass has it for Qwen3.

  Templates that do not know the argument do not read it.
  """

  def __init__(self, **options):
    super().__init__(**options)
    self.tokenizer.apply_chat_template = functools.partial(
      self.tokenizer.apply_chat_template, enable_thinking=False
    )
