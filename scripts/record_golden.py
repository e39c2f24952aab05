"""Records the golden trees of the search tests and the inspector's screens anew: tests/golden/.

Run it only after a change that is meant to alter searches or what is shown of them, and read the diff:
`python scripts/record_golden.py`
"""

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support_inspect import snapshots  # noqa: E402
from tests.support_search import GOLDEN, golden_record  # noqa: E402


def main() -> None:
    folder = ROOT / "tests" / "golden"
    folder.mkdir(exist_ok=True)
    for name in GOLDEN:
        record = golden_record(name)
        nodes = [
            ",\n".join(json.dumps(node, sort_keys=True) for node in tree["nodes"])
            for tree in record["trees"]
        ]
        trees = [
            f'{{"meta": {json.dumps(tree["meta"], sort_keys=True)}, "nodes": [\n{rows}\n]}}'
            for tree, rows in zip(record["trees"], nodes, strict=True)
        ]
        settings = json.dumps(record["settings"], sort_keys=True)
        text = f'{{"settings": {settings}, "trees": [\n' + ",\n".join(trees) + "\n]}\n"
        path = folder / f"search_{name}.json"
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT), len(text), "bytes")
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in snapshots(Path(scratch)).items():
            (folder / f"inspect_{name}.txt").write_text(text, encoding="utf-8")
            print(f"tests/golden/inspect_{name}.txt", len(text), "characters")


if __name__ == "__main__":
    main()
