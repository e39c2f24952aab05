import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from treerl.config import PromptSettings
from treerl.errors import ConfigError, DataError
from treerl.problem import Problem
from treerl.tasks.prompts import render_prompt

WORDS = ["<end>", "<begin>", "user:", "system:", "assistant:", "Be", "brief", "one", "two", "now"]
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}assistant:"


def word_tokenizer(template="<begin> $A", chat=CHAT):
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    specials = [("<end>", 0), ("<begin>", 1)]
    core.post_processor = processors.TemplateProcessing(single=template, special_tokens=specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<begin>", eos_token="<end>"
    )
    tokenizer.chat_template = chat
    return tokenizer


def problem(question, **columns):
    return Problem(question, "1", "math", columns)


def words(ids):
    return [WORDS[i] for i in ids]


def test_raw_template_keeps_the_begin_token():
    settings = PromptSettings(template="{question} now")
    ids = render_prompt(problem("one two"), word_tokenizer(), settings, 8)
    assert words(ids) == ["<begin>", "one", "two", "now"]


def test_braces_in_a_question_are_text():
    with pytest.raises(DataError, match=r"no tokens for the prompt '\{0\}'"):
        render_prompt(problem("{0}"), word_tokenizer(), PromptSettings(), 8)


def test_an_end_token_put_behind_every_text_is_dropped():
    tokenizer = word_tokenizer(template="<begin> $A <end>")
    assert words(render_prompt(problem("one"), tokenizer, PromptSettings(), 8)) == [
        "<begin>",
        "one",
    ]


def test_chat_template_has_no_second_begin_token():
    settings = PromptSettings(chat=True, system="Be brief")
    ids = render_prompt(problem("one"), word_tokenizer(), settings, 8)
    assert words(ids) == ["system:", "Be", "brief", "user:", "one", "assistant:"]


def test_chat_uses_the_conversation_of_the_data_set():
    messages = [{"role": "system", "content": "Be"}, {"role": "user", "content": "two"}]
    settings = PromptSettings(chat=True, system="brief")
    ids = render_prompt(problem("one", messages=messages), word_tokenizer(), settings, 8)
    assert words(ids) == ["system:", "Be", "user:", "two", "assistant:"]


def test_chat_without_a_template_is_the_users_to_mend():
    with pytest.raises(ConfigError, match="no chat template"):
        render_prompt(problem("one"), word_tokenizer(chat=None), PromptSettings(chat=True), 8)


def test_a_prompt_of_just_the_limit_fits():
    assert render_prompt(problem("one two"), word_tokenizer(), PromptSettings(), 3) is not None
    assert render_prompt(problem("one two"), word_tokenizer(), PromptSettings(), 2) is None
