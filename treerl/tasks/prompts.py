"""A problem to prompt token ids, with a tokenizer passed in: a raw template or the chat template.

Prompts that are too long are refused, never truncated: a truncated question has another answer. Needs no torch.
"""

from typing import Any

from treerl.config import PromptSettings
from treerl.errors import ConfigError, DataError
from treerl.problem import Problem
from treerl.tasks.columns import MESSAGES_COLUMN


def render_prompt(
    problem: Problem, tokenizer: Any, settings: PromptSettings, max_prompt_length: int
) -> tuple[int, ...] | None:
    """Prompt token ids, special tokens of the prompt included; None if there are too many.

    Raises ConfigError if the tokenizer has no chat template, DataError for text it has no tokens for.
    """
    try:
        if settings.chat:
            text = _chat_text(problem, tokenizer, settings)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            text = settings.template.replace("{question}", problem.question)
            ids = _without_end(tokenizer(text)["input_ids"], tokenizer, text)
    except Exception as error:
        if type(error) not in (Exception, ValueError):  # the Rust tokenizer raises a bare Exception
            raise
        raise _explained(error, problem, tokenizer) from error
    return tuple(ids) if len(ids) <= max_prompt_length else None


def _chat_text(problem: Problem, tokenizer: Any, settings: PromptSettings) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "task.prompt.chat = true, but the policy's tokenizer has no chat template: set it to false "
            "and write the prompt as task.prompt.template"
        )
    messages = problem.columns.get(MESSAGES_COLUMN)
    if messages is None:
        text = settings.template.replace("{question}", problem.question)
        messages = [{"role": "user", "content": text}]
    if settings.system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": settings.system}, *messages]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return str(rendered)


def _without_end(ids: list[int], tokenizer: Any, text: str) -> list[int]:
    """Drops the end token that some tokenizers put behind every text: a prompt goes on."""
    end = tokenizer.eos_token_id
    if end is not None and ids and ids[-1] == end and not text.endswith(str(tokenizer.eos_token)):
        return ids[:-1]
    return ids


def _explained(error: Exception, problem: Problem, tokenizer: Any) -> DataError:
    name = getattr(tokenizer, "name_or_path", "") or "the policy's tokenizer"
    shown = problem.question if len(problem.question) <= 60 else problem.question[:57] + "..."
    return DataError(f"{name} has no tokens for the prompt {shown!r}: {error}")
