from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from treerl.assets import EMBEDDED_POLICY
from treerl.config import PromptSettings
from treerl.errors import DataError
from treerl.problem import Problem
from treerl.tasks.chain import OPERATORS, problem_stream
from treerl.tasks.prompts import render_prompt


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EMBEDDED_POLICY)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(EMBEDDED_POLICY).eval()


def test_prompt_is_begin_token_and_characters(tokenizer):
    ids = tokenizer("7+5*3-8=")["input_ids"]
    assert ids == [2, 10, 13, 8, 15, 6, 14, 11, 16]
    assert render_prompt(
        Problem("7+5*3-8=", "14", "chain"), tokenizer, PromptSettings(), 9
    ) == tuple(ids)


def test_text_comes_back(tokenizer):
    text = "7+15-8=22-8=14"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids[1:]


def test_seventeen_symbols(tokenizer, model):
    assert len(tokenizer) == model.config.vocab_size == 17
    names = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    assert names == (0, 1, 2)
    config = model.config
    assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == names
    assert model.generation_config.eos_token_id == 1


def test_other_characters_are_an_error(tokenizer):
    with pytest.raises(DataError, match="no tokens for the prompt 'two'"):
        render_prompt(Problem("two", "2", "math"), tokenizer, PromptSettings(), 9)


def test_it_is_the_small_llama_of_its_card(model):
    assert sum(p.numel() for p in model.parameters()) == 397_344
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.num_key_value_heads == 1
    assert not model.config.tie_word_embeddings
    size = sum(file.stat().st_size for file in EMBEDDED_POLICY.iterdir())
    assert size < 5e6


def test_greedy_accuracy_on_heldout_problems_leaves_something_to_learn(tokenizer, model):
    problems = list(islice(problem_stream("heldout", OPERATORS, 0), 32))
    batch = tokenizer([p.question for p in problems], padding=True, return_tensors="pt")
    output = model.generate(**batch, do_sample=False, max_new_tokens=96)
    answers = tokenizer.batch_decode(
        output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
    )
    right = sum(
        answer.rpartition("=")[2] == problem.truth
        for answer, problem in zip(answers, problems, strict=True)
    )
    assert 0.3 <= right / 32 <= 0.95
