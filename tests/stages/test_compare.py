"""compare: the table and what it refuses."""

import json
from pathlib import Path

from click.testing import CliRunner

from rcnnpipe.cli import main


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["compare", *map(str, arguments)])
    return result.exit_code, result.output


def metrics(folder: Path, name: str, **figures: float) -> Path:
    path = folder / name / "metrics.json"
    path.parent.mkdir()
    path.write_text(json.dumps(figures))
    return path


def test_a_row_for_each_and_blanks_for_what_is_missing(tmp_path: Path) -> None:
    first = metrics(tmp_path, "rcnn", ap=0.5, ap50=0.8125, images=3)
    metrics(tmp_path, "other", ap=0.25)
    out = tmp_path / "table.md"
    assert run(first, tmp_path / "other", "--columns", "ap,ap50", "--out", out)[0] == 0
    assert out.read_text() == (
        "| system |   ap | ap50 |\n"
        "| ---    | ---: | ---: |\n"
        "| rcnn   | 50.0 | 81.2 |\n"
        "| other  | 25.0 |      |\n"
    )


def test_wrong_input_is_explained_and_keeps_the_old_table(tmp_path: Path) -> None:
    good = metrics(tmp_path, "a", ap=0.5)
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    out = tmp_path / "table.md"
    out.write_text("of before")
    for arguments, words in [
        ((tmp_path / "none.json",), "No such file or directory; run rcnnpipe evaluate first"),
        ((tmp_path / "bad.json",), "is no JSON"),
        ((tmp_path / "list.json",), "holds no metrics by name"),
        ((good, good), "two rows would be called 'a'"),
        ((good, "--columns", "map"), "has none of map; it has ap"),
    ]:
        code, output = run(*arguments, "--out", out)
        assert code == 1
        assert words in output.replace("\n", " ")
    assert out.read_text() == "of before"
    assert run("--out", out)[0] == 2
