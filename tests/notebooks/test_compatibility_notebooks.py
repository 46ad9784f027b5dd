"""The notebooks run in fresh kernels, find what they say they find, and are kept as their scripts make them."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient.exceptions import CellExecutionError

from flexgen import diagnose
from flexgen.exact import JointTable
from flexgen.plots import Picture
from notebooks.build import FOLDER, complaints, executed, main, missing, names, outputs, source

MOST_BYTES = 300_000

# What must be true once a notebook has run, in its own kernel and words.
FINDINGS = {
    "01_theory": """
        assert [check.verdict, check_zeros.verdict, check_weak.verdict] == ["incompatible"] * 2 + ["weakly compatible"]
        assert check_zeros.log_odds_gap == 0 and len(check_zeros.violation.states) == 6
        assert table.idxmin().tolist() == [f"closest by {kind}" for kind in table]
        assert (table.loc["random scan"] < table.loc[["order x, y", "order y, x"]]).all(axis=None)
        assert np.ptp(x1[-2:]) < 1e-4 and np.ptp(ratios[-2:]) > 1
    """,
    "02_is_my_masked_model_compatible": """
        assert report.verdict == "refuted" and set(report.effects) >= {"rectangle gap", "order gap"}
        assert control.verdict == "not refuted"
        assert all((effect.values.abs() <= effect.floors).all() for effect in control.effects.values())
        assert checks[patient].verdict == "incompatible"
    """,
    "03_masked_language_model": """
        assert report.verdict == "refuted" and abs(one - other) > 0.01
        assert apart.max(axis=None) > 0.005 and check_tables(block).verdict == "incompatible"
    """,
    "04_does_it_matter_and_repair": """
        assert check.verdict == "incompatible" and np.ptp(by_scan) > 0.001 and np.ptp(by_chain) > 0.001
        assert abs(change.changes[0].value - (exactly[1] - exactly[0])) < 5 * change.changes[0].mcse
        joints = ["random scan", "distillation", "8 orders", "I-closest joint"]
        assert (table.loc[joints, "gap, nats"] < 1e-5).all()
        assert (table.loc[joints, "answer, highest"] - table.loc[joints, "answer, lowest"] < 1e-5).all()
        assert table.loc["penalty", "gap, nats"] < table.loc["as it is", "gap, nats"]
        assert table.loc["random scan", "gain, low"] > 0
        assert abs(corrected - target) < 0.15  # 100 chains: an error of some .025
    """,
    "05_do_plans_agree": """
        assert all(torch.equal(video[:, :4], real[:, :4]) for video in videos.values())
        first = at_once[0]
        far = first + 100 * first.std()
        assert energy_test(*at_once, far)["p"] < 0.01 and (mean_test(*at_once, far)["p"] < 0.05).all()  # 8 starts: 3^-8
        assert energy_test(first, first)["p"] == 1
        assert all(a.value > 10 * a.floor for a in asymmetry.values())
    """,
}


@pytest.mark.parametrize("name", names())
def test_compatibility_notebooks_run(name: str) -> None:
    _run(name, quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_compatibility_notebooks_run_in_full(name: str) -> None:
    _run(name, quick=False)


def _run(name: str, *, quick: bool) -> None:
    if package := missing(name):
        pytest.skip(f"the package {package} is not installed")
    notebook = source(name)
    lines = [line.strip() for line in FINDINGS[name].strip().splitlines()]
    notebook.cells.append(nbformat.v4.new_code_cell("\n".join(lines), id="findings"))
    assert complaints(executed(notebook, quick=quick)) == []


@pytest.mark.parametrize("name", names())
def test_compatibility_notebooks_are_kept_as_their_scripts_make_them(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    kept = nbformat.read(path, as_version=4)
    fresh = source(name)
    assert [(c.cell_type, c.source) for c in kept.cells] == [(c.cell_type, c.source) for c in fresh.cells], (
        f"{path.name} is not what {name}.py says: run make notebooks"
    )
    code = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert complaints(kept) == []
    assert path.stat().st_size <= MOST_BYTES
    pictures = [content for kind, content in outputs(kept) if kind == "image/png"]
    assert pictures
    nbformat.validate(kept)


@pytest.mark.parametrize("name", names())
def test_compatibility_notebooks_link_to_what_is_there(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [link for link in links if not (FOLDER / link).exists()] == []


def test_compatibility_pictures_show_themselves_where_pyplot_was_never_used() -> None:
    joint = JointTable.random((2, 2, 2), generator=torch.Generator().manual_seed(0))
    report = diagnose(joint, joint.space.states(), budget=300, generator=0)
    picture = report.plot()
    assert isinstance(picture, Picture)
    assert picture._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"


def test_compatibility_notebooks_that_fail_or_make_noise_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The wrong notebooks: each must be rejected, and not written."""
    monkeypatch.setattr("notebooks.build.FOLDER", tmp_path)
    (tmp_path / "1_noise.py").write_text("# %%\nimport sys\nprint(40 * '#', file=sys.stderr)\nprint('/home/me/x')\n")
    assert main([]) == 1
    told = capsys.readouterr().out
    assert "stderr" in told
    assert "a path of this machine: /home/me/x" in told
    assert not (tmp_path / "1_noise.ipynb").exists()
    (tmp_path / "1_noise.py").write_text("# %%\nassert 1 + 1 == 3\n")
    with pytest.raises(CellExecutionError, match="AssertionError"):
        main([])
    (tmp_path / "1_noise.py").write_text("# %%\n1 + 1\n")
    assert main([]) == 0
    assert list(outputs(nbformat.read(tmp_path / "1_noise.ipynb", as_version=4))) == [("text/plain", "2")]
