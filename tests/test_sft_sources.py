"""What `treerl sft --data` trains on: which problems of a file, and what of their solutions."""

import json
from pathlib import Path

from treerl.config import FileTask, Recipe, TransformersSettings
from treerl.engine.session import Session
from treerl.engine.warm_start import from_file
from treerl.policy.model import load_tokenizer

ROWS = [
    {"question": "2+3=", "answer": "2+3=<<2+3=5>>5"},
    {"question": "4+4=", "answer": "8"},
    {"question": "9-1=", "answer": "8"},
]


def solutions(path: Path, heldout: int) -> list[tuple[str, str, int]]:
    """Prompt, completion without its last token, and that token, of each example from `ROWS`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe = Recipe(
        task=FileTask(path=str(path), heldout=heldout, judge="exact"),
        sampler=TransformersSettings(max_completion_length=16),
    )
    with Session(recipe, with_store=False) as session:
        tokenizer = session.policy.tokenizer
        return [
            (tokenizer.decode(prompt), tokenizer.decode(completion[:-1]), completion[-1])
            for prompt, completion in from_file(session, path)
        ]


def test_heldout_problems_are_not_trained_on(tmp_path: Path) -> None:
    found = solutions(tmp_path / "data.jsonl", heldout=1)
    assert [prompt.removeprefix("<begin>") for prompt, _, _ in found] == ["2+3=", "4+4="]


def test_calculator_calls_are_left_out_and_the_end_token_put_behind(tmp_path: Path) -> None:
    (_, first, end), *_ = solutions(tmp_path / "data.jsonl", heldout=1)
    assert first == "2+3=5"
    assert end == load_tokenizer("embedded").eos_token_id
