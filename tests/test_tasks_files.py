import json
import sys

import pytest

from treerl.errors import DataError
from treerl.tasks.files import load_file

GSM8K = {
    "question": "Natalia sold 48 clips in April and half as many in May. How many?",
    "answer": "In May <<48/2=24>>24.\nTogether <<48+24=72>>72.\n#### 1,072",
}
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "What is 2+3?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "5"},
    "extra_info": {"split": "train", "index": 0},
}
SKYRL = {
    "data_source": "x",
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+3?"}],
    "env_class": "gsm8k",
    "reward_spec": {"method": "rule", "ground_truth": 5},
}


def write_jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "question", "truth", "mapping"),
    [
        (
            GSM8K,
            GSM8K["question"],
            "1072",
            "GSM8K: question = question, answer = answer (after ####)",
        ),
        (
            {"problem": "Convert", "solution": r"so \boxed{9}", "answer": r"\frac{14}{3}"},
            "Convert",
            r"\frac{14}{3}",
            "MATH: question = problem, answer = answer",
        ),
        (
            {"problem": "Find", "solution": r"a \boxed{1}, then \boxed{\frac{a}{b}} cm", "idx": 0},
            "Find",
            r"\frac{a}{b}",
            r"MATH: question = problem, answer = solution (last \boxed{})",
        ),
        (
            {"prompt": "What is 2+3?", "solution": "5"},
            "What is 2+3?",
            "5",
            "TRL: question = prompt, answer = solution",
        ),
        (
            {"prompt": [{"role": "user", "content": "What is 2+3?"}], "answer": 5},
            "What is 2+3?",
            "5",
            "TRL: question = prompt, answer = answer",
        ),
        (VERL, "What is 2+3?", "5", "verl: question = prompt, answer = reward_model.ground_truth"),
        (
            SKYRL,
            "system: Be brief.\n\nuser: 2+3?",
            "5",
            "SkyRL: question = prompt, answer = reward_spec.ground_truth",
        ),
        (
            {"question": "2+3?", "answer": "5", "info": {"a": 1}, "task": "add"},
            "2+3?",
            "5",
            "verifiers: question = question, answer = answer",
        ),
        (
            {"prompt": [{"role": "user", "content": "2+3?"}], "answer": "5", "info": {}},
            "2+3?",
            "5",
            "verifiers: question = prompt, answer = answer",
        ),
        (
            {"Body": "There are 87 oranges. ", "Question": "How many?", "Answer": 145.0},
            "There are 87 oranges. How many?",
            "145",
            "SVAMP: question = Body + Question, answer = Answer",
        ),
        (
            {"body": "Seven apples.", "question": "How many?", "answer": "9 (apples)"},
            "Seven apples. How many?",
            "9",
            "ASDiv: question = body + question, answer = answer (before (unit))",
        ),
        (
            {"id": 0, "problem": "How far?", "answer": 27.0, "question": "How far?"},
            "How far?",
            "27",
            "MATH: question = problem, answer = answer",
        ),
        (
            {"question": "How much?", "answer": 0.5},
            "How much?",
            "0.5",
            "question/answer: question = question, answer = answer",
        ),
    ],
    ids=lambda value: (
        value.split(":")[0] if isinstance(value, str) and ": question" in value else ""
    ),
)
def test_known_layouts(tmp_path, row, question, truth, mapping):
    loaded = load_file(write_jsonl(tmp_path / "data.jsonl", row))
    (problem,) = loaded.problems
    assert (problem.question, problem.truth, problem.kind) == (question, truth, "math")
    assert str(loaded.mapping) == mapping
    assert {name: problem.columns[name] for name in row} == row


@pytest.mark.parametrize(
    ("answer", "truth"),
    [("9 (apples)", "9"), ("Yes", "Yes"), ("-(1/3)", "-(1/3)"), ("3:30 p.m.", "3:30 p.m.")],
)
def test_asdiv_answers_lose_their_unit_only(tmp_path, answer, truth):
    row = {"body": "b", "question": "q", "answer": answer}
    assert load_file(write_jsonl(tmp_path / "a.jsonl", row)).problems[0].truth == truth


@pytest.mark.parametrize(
    ("judge", "answer", "truth"),
    [
        ("math", "27.0", "27"),
        ("math", "073", "73"),
        ("number", "1,080", "1080"),
        ("math", "(1,080)", "(1,080)"),
        ("math", "1.50", "1.50"),
        ("exact", "073", "073"),
        ("choice", "27.0", "27.0"),
    ],
)
def test_spelling_of_numbers(tmp_path, judge, answer, truth):
    path = write_jsonl(tmp_path / "a.jsonl", {"question": "q", "answer": answer})
    assert load_file(path, judge=judge).problems[0].truth == truth


def test_messages_stay_with_the_problem(tmp_path):
    loaded = load_file(write_jsonl(tmp_path / "a.jsonl", SKYRL))
    assert loaded.problems[0].columns["messages"] == SKYRL["prompt"]


def test_given_columns_override_detection(tmp_path):
    row = {"question": "q", "answer": "a", "other": {"text": "Q"}, "label": r"x \boxed{7}"}
    path = write_jsonl(tmp_path / "a.jsonl", row)
    loaded = load_file(path, question="other.text", answer="label")
    assert (loaded.problems[0].question, loaded.problems[0].truth) == ("Q", "7")
    assert str(loaded.mapping) == "as given: question = other.text, answer = label (last \\boxed{})"


def test_one_given_column_keeps_the_other_as_detected(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", GSM8K | {"harder": "Q"})
    loaded = load_file(path, question="harder")
    assert (loaded.problems[0].question, loaded.problems[0].truth) == ("Q", "1072")


def test_json_csv_and_jsonl_give_the_same_problems(tmp_path):
    rows = [{"question": f'{i}, or\n"{i}"?', "answer": str(i)} for i in range(3)]
    jsonl = write_jsonl(tmp_path / "a.jsonl", *rows)
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    lines = [f'"{r["question"]}"'.replace('"', '""')[1:-1] + f",{r['answer']}" for r in rows]
    csv = "\ufeffquestion,answer\r\n" + "\r\n".join(lines) + "\r\n"
    (tmp_path / "a.csv").write_text(csv, encoding="utf-8", newline="")
    expected = load_file(jsonl).problems
    assert load_file(tmp_path / "a.json").problems == expected
    assert load_file(tmp_path / "a.csv").problems == expected


def test_unicode_line_separators_do_not_split_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "a\u2028b", "answer": "1"}\n\n', encoding="utf-8")
    assert load_file(path).problems[0].question == "a\u2028b"


GOOD = b'{"question": "q", "answer": "1"}\n'


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        (b'{"question": "q", "answer": \n', "line 2: not valid JSON at column"),
        (b'["q", "1"]\n', "line 2: should be an object with columns, found list"),
        (b'{"question": "q"}\n', "line 2: column 'answer' is missing; found question"),
        (b'{"question": " ", "answer": "1"}\n', "line 2: column 'question' is empty"),
        (b'{"question": "q", "answer": null}\n', "line 2: column 'answer' is empty"),
        (b'{"question": 7, "answer": "1"}\n', "line 2: column 'question' should be text"),
        (b'{"question": "q", "answer": NaN}\n', "line 2: not valid JSON: NaN"),
        (b'{"question": "\xff", "answer": "1"}\n', "line 2: not UTF-8"),
    ],
)
def test_malformed_lines_are_named_or_counted(tmp_path, line, finding):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD + line + GOOD)
    with pytest.raises(DataError) as caught:
        load_file(path)
    assert f"{path}, {finding}" in str(caught.value)
    assert "skip_malformed" in str(caught.value)
    loaded = load_file(path, skip_malformed=True)
    assert (len(loaded.problems), loaded.skipped) == (2, 1)


def test_a_line_without_the_form_of_the_first_is_malformed(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", GSM8K, {"question": "q", "answer": "no mark"})
    with pytest.raises(DataError, match="line 2: column 'answer' has no answer after ####"):
        load_file(path)


def test_unknown_columns_ask_for_a_mapping(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "q", "label": "1"})
    with pytest.raises(DataError, match=r"found text, label; set task\.question and task\.answer"):
        load_file(path)
    with pytest.raises(DataError, match=r"set task\.question"):
        load_file(path, question="text")
    assert load_file(path, question="text", answer="label").problems[0].truth == "1"


def test_a_given_column_that_is_not_there_is_named(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", GSM8K)
    with pytest.raises(DataError, match=r"column 'x\.y' is missing; found question, answer"):
        load_file(path, question="x.y")


@pytest.mark.parametrize(
    ("name", "content", "finding"),
    [
        ("a.jsonl", "", "no problem found"),
        ("a.jsonl", "\n \n", "no problem found"),
        ("a.json", "[]", "no problem found"),
        ("a.json", '{"question": "q"}', "should be a list of objects, found dict"),
        ("a.json", '[{"question"', "not valid JSON"),
        ("a.json", "", "not valid JSON"),
        ("a.csv", "question,answer\n", "no problem found"),
        ("a.csv", "question,answer\nq,1\nq\n", "line 3: should have 2 fields"),
        ("a.csv", "question,answer\nq,1,2\n", "line 2: should have 2 fields"),
        ("a.csv", 'question,answer\n"q"x,1\n', "not valid CSV"),
        ("a.txt", "q", "unknown kind of file; known are .jsonl"),
    ],
)
def test_unusable_files(tmp_path, name, content, finding):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_file(path)
    assert str(path) in str(caught.value)
    assert finding in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_file(tmp_path / "none.jsonl")


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", GSM8K)
    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        load_file(path)


def refuse(*_arguments, **_options):
    raise PermissionError(13, "Permission denied")


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"treerl\[parquet\]"):
        load_file(tmp_path / "a.parquet")


def test_parquet_with_pyarrow(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([VERL]), tmp_path / "a.parquet")
    (problem,) = load_file(tmp_path / "a.parquet").problems
    assert (problem.question, problem.truth) == ("What is 2+3?", "5")
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        load_file(tmp_path / "b.parquet")
