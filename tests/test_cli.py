"""The command group: quick, lazy, and of help to those who mistype."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from rcnnpipe.cli import STAGES, main, module_name
from rcnnpipe.errors import DataError
from rcnnpipe.options import CommaList, StageCommand, stage_settings

HEAVY = ("torch", "torchvision", "sklearn", "h5py", "numba", "matplotlib", "scipy", "cv2")


def test_help_lists_all_stages_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from rcnnpipe.cli import main; from click.testing import CliRunner; "
        "result = CliRunner().invoke(main, ['--help']); print(result.output); "
        f"print('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert "HEAVY []" in output
    for name in STAGES:
        assert f"  {name} " in output


@pytest.mark.parametrize("name", list(STAGES))
def test_each_stage_explains_itself_without_heavy_imports(name: str) -> None:
    module = f"rcnnpipe.stages.{module_name(name)}"
    code = (
        f"import sys, {module}; from rcnnpipe.cli import main; "
        "from click.testing import CliRunner; "
        f"result = CliRunner().invoke(main, [{name!r}, '--help']); "
        "print(result.exit_code, len(result.output)); "
        f"print('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code_and_length, heavy = done.stdout.splitlines()
    assert heavy == "HEAVY []"
    assert code_and_length.startswith("0 ")
    assert int(code_and_length.split()[1]) > 200


def test_every_stage_file_is_listed_and_carries_a_version() -> None:
    folder = Path(__file__).parents[1] / "stages"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert {module_name(name) for name in STAGES} == files
    for name in files:
        assert "\nVERSION = " in (folder / f"{name}.py").read_text(), name


def test_misspelt_command_gets_a_suggestion() -> None:
    result = CliRunner().invoke(main, ["propse"])
    assert result.exit_code == 2
    assert "Did you mean 'propose'?" in result.output


@click.command("toy", cls=StageCommand)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=0.5)
@click.option("--layers", type=CommaList(), default="fc7")
@click.option("--workers", type=int, default=1)
@click.option("--out", type=click.Path())
@click.option("--fail", is_flag=True)
@click.pass_context
def toy(ctx: click.Context, /, fail: bool, **_: object) -> None:
    if fail:
        raise DataError("image 7 is broken; run rcnnpipe check")
    click.echo(stage_settings(ctx))


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(toy, list(args))
    return result.exit_code, result.output


def test_flag_beats_section_beats_default(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("a:\n  toy: {rate: 0.25, layers: [pool5, fc6]}\n")
    assert "'rate': 0.5" in run()[1]
    assert "'rate': 0.25" in run("--params", f"{params}:a.toy")[1]
    assert "'layers': ['pool5', 'fc6']" in run("--params", f"{params}:a.toy")[1]
    assert "'rate': 0.75" in run("--params", f"{params}:a.toy", "--rate", "0.75")[1]


def test_settings_leave_out_paths_and_plumbing() -> None:
    assert run("--out", "x", "--workers", "3")[1].startswith("{'rate': 0.5, 'layers': ['fc7']")


@pytest.mark.parametrize(
    ("text", "section", "words"),
    [
        (
            "a: {rat: 1}",
            "a",
            "'rat' in {file}:a is not an option of this stage; did you mean 'rate'?",
        ),
        ("a: {rate: -1}", "a", "is not in the range x>0. (from {file}:a)"),
        ("a: {rate: fast}", "a", "(from {file}:a)"),
        ("a: 3", "a", "is not a mapping of settings"),
        ("a: {rate: 1}", "b.c", "has no section 'b.c'"),
        ("a: [", "a", "is not YAML"),
    ],
)
def test_bad_sections(tmp_path: Path, text: str, section: str, words: str) -> None:
    params = tmp_path / "p.yaml"
    params.write_text(text)
    code, output = run("--params", f"{params}:{section}")
    assert code == 2
    assert words.format(file=params) in output.replace("\n", " ")


def test_missing_params_file() -> None:
    code, output = run("--params", "nowhere.yaml:a")
    assert code == 2
    assert "nowhere.yaml: No such file or directory" in output


def test_a_mistake_is_one_sentence_and_exit_code_1() -> None:
    assert run("--fail") == (1, "Error: image 7 is broken; run rcnnpipe check\n")
