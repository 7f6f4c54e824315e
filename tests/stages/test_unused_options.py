"""Options that have no use in what was asked for are refused, not passed over."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from rcnnpipe.cli import main

FEATURES = "with --features, whose regions are taken as they are"
CANDIDATES = "with --candidates, whose scores and boxes are as they are"
POOLED = "with --pooled, whose regions are taken as they are"


@pytest.mark.parametrize(
    ("words", "flag", "why"),
    [
        ("detect d --features f.h5 --max-proposals 5", "--max-proposals", FEATURES),
        ("detect d --features f.h5 --proposals p.h5", "--proposals", FEATURES),
        ("detect d --features f.h5 --scales 100", "--scales", FEATURES),
        ("detect d --features f.h5 --flip", "--flip", FEATURES),
        ("detect d --candidates c.h5 --flip", "--flip", CANDIDATES),
        ("detect d --features f.h5 --images 2", "--images", FEATURES),
        ("detect d --candidates c.h5 --images 2", "--images", CANDIDATES),
        ("extract-features --pooled f.h5 --model m.h5 --images 2", "--images", POOLED),
        ("propose d --images 2", "--images", "without --method rpn"),
        ("detect d --model m.h5 --sigma 0.5", "--sigma", "with --suppression greedy"),
        ("detect d --candidates c.h5 --soft-floor 0", "--soft-floor", "with --suppression greedy"),
        (
            "detect d --model m.h5 --suppression linear --sigma 1",
            "--sigma",
            "with --suppression linear",
        ),
        (
            "detect d --features f.h5 --suppression gaussian --nms-overlap 0.5",
            "--nms-overlap",
            "with --suppression gaussian",
        ),
        (
            "detect d --model m.h5 --suppression linear --suppress-first",
            "--suppress-first",
            "with --suppression linear, which follows the caps",
        ),
        ("extract-features d --pooled f.h5 --model m.h5", "DATA", POOLED),
        ("extract-features --pooled f.h5 --model m.h5 --no-truth", "--no-truth", POOLED),
        (
            "extract-features --pooled f.h5 --model m.h5 --max-proposals 3",
            "--max-proposals",
            POOLED,
        ),
        ("extract-features --pooled f.h5 --model m.h5 --difficult drop", "--difficult", POOLED),
        ("finetune d --system fpn --max-proposals 3", "--max-proposals", "with --system fpn"),
        ("finetune d --system sppnet --features f.h5", "DATA", "with --system sppnet"),
        ("finetune d --features f.h5 --proposals p.h5", "--features", "with --system rcnn"),
        (
            "finetune --system sppnet --features f.h5 --channels-first",
            "--channels-first",
            "with --system sppnet",
        ),
    ],
)
def test_refused(words: str, flag: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.png").write_bytes(PNG)
    parts = [str(tmp_path / part) if part == "d" else part for part in words.split()]
    result = CliRunner().invoke(main, [*parts, "--out", str(tmp_path / "out.h5")])
    assert result.exit_code == 1
    assert f"{flag} has no meaning {why}; leave it out" in result.output


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c63680000008200817745b6820000000049454e44ae426082"
)


def test_an_empty_setting_of_a_file_leaves_the_default(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("detect:\n  nms-overlap:\n  device:\n")
    words = ["detect", "d", "--params", f"{params}:detect", "--out", str(tmp_path / "o.h5")]
    result = CliRunner().invoke(main, words)
    assert "detect needs one of --model" in result.output


def test_an_empty_name_is_no_file() -> None:
    result = CliRunner().invoke(main, ["train-svm", "f.h5", "--out", ""])
    assert result.exit_code == 2
    assert "an empty name is no file" in result.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--suppression soft", "'soft' is not one of 'greedy', 'linear', 'gaussian'"),
        ("--suppression gaussian --sigma 0", "0.0 is not in the range x>0"),
        ("--suppression linear --soft-floor -1", "-1.0 is not in the range x>=0"),
    ],
)
def test_wrong_values_of_soft_suppression(words: str, told: str) -> None:
    words = f"detect d --model m.h5 {words} --out o.h5"
    result = CliRunner().invoke(main, words.split())
    assert result.exit_code == 2
    assert told in result.output
