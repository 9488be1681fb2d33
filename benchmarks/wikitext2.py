"""WikiText-2 from scratch in an hour: `small` at the vocabulary as given, the curve, audits of other text.

One worker on all cores through `bithaul up`, for `--minutes`; then perplexity on the validation text beside
the Kneser-Ney floor at the same vocabulary, and on C4 and RedPajama samples where they lie beside the folder
of WikiText-2. Those are not split into words as WikiText-2 is, so much of what they hold is unknown to
its vocabulary: read their perplexity with the unknown share. Writes docs/images/wikitext2.svg. Example:

    python benchmarks/wikitext2.py --data data/wikitext2 --tokens 9e6
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import closing
from pathlib import Path

import chart
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.database.runs import get_run
from bithaul.coordinator.database.versions import list_versions
from bithaul.coordinator.settings import load_settings
from own_data import bithaul

VOCABULARY = 33_304  # the 33,278 of the text, and the frame and digits every vocabulary has
AUDITS = {
    "c4": "c4/c4_demo.jsonl",
    "redpajama_c4": "redpajama/c4-rp1.jsonl",
    "redpajama_stackexchange": "redpajama/stackexchange1.jsonl",
}
KEPT = (
    *("perplexity", "perplexity_known", "unknown_share", "bits_per_byte", "bits_per_byte_spelled"),
    *("floored_share", "tokens", "vocabulary"),
)


def curves(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Loss of each version over the tokens trained, in millions."""
    with (
        closing(open_coordinator(load_settings(folder))) as coordinator,
        coordinator.database.read() as found,
    ):
        versions = list_versions(found, get_run(found).id)
    return {
        name: [(v.tokens_total / 1e6, loss) for v in versions if (loss := getattr(v, field)) is not None]
        for name, field in (("training", "train_loss"), ("held out", "heldout_loss"))
    }


def audit(folder: Path, data: Path, train: Path) -> dict[str, object]:
    found = bithaul(
        "evaluate", "perplexity", "--dir", str(folder), "--data", str(data), "--train", str(train)
    )
    return {key: found[key] for key in KEPT} | {"kneser_ney": found["kneser_ney"]["perplexity"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train.txt and valid.txt")
    parser.add_argument("--tokens", type=float, default=9e6, help="trained tokens")
    parser.add_argument("--minutes", type=float, default=60.0, help="most training time")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--dropout", type=float, default=0.1, help="this text is read several times")
    parser.add_argument("--twin", action="store_true", help="train the full-precision twin instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="accepted and without effect: it is always JSON")
    args = parser.parse_args()
    train, valid = args.data / "train.txt", args.data / "valid.txt"
    with tempfile.TemporaryDirectory() as name:
        folder, recipe = Path(name) / "run", Path(name) / "recipe.toml"
        recipe.write_text(f"dropout = {args.dropout}\n")
        up = bithaul(
            *(
                "up",
                "--dir",
                str(folder),
                "--preset",
                args.preset,
                "--seed",
                str(args.seed),
                "--workers",
                "1",
            ),
            *("--train", str(train), "--valid", str(valid), "--as-given", "--vocab-size", str(VOCABULARY)),
            *("--budget-tokens", str(int(args.tokens)), "--budget-minutes", str(args.minutes)),
            *("--recipe", str(recipe)),
            *(["--twin"] if args.twin else []),
        )
        rows = [{"text": "wikitext2", **audit(folder, valid, train)}]
        for text, path in AUDITS.items():
            if (args.data.parent / path).is_file():
                rows.append({"text": text, **audit(folder, args.data.parent / path, train)})
        if not args.twin:
            chart.lines(
                "wikitext2",
                curves(folder),
                title=f"{args.preset} on WikiText-2",
                x="million tokens",
                y="loss (nats per token)",
            )
    asked = {"preset": args.preset, "twin": args.twin}
    trained = {"tokens": up["tokens"], "minutes": round(float(str(up["seconds"])) / 60, 2)}
    print(json.dumps({**asked, **trained, "perplexity": rows[0]["perplexity"], "rows": rows}))


if __name__ == "__main__":
    main()
