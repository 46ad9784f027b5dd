"""A report as HTML: a fragment for notebooks, and one file that needs nothing beside it."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from flexgen.compatibility.networks.report_summary import MEANING, told
from flexgen.errors import FlexgenError

if TYPE_CHECKING:
    from flexgen.compatibility.networks.report import Report, Summary

__all__ = ["summary_html", "write_html"]

_COLOUR = {"refuted": "#b3261e", "equivalent within margin": "#1b7f4b", "not refuted": "inherit"}


def summary_html(summary: Summary, *, title: bool = True) -> str:
    """The table and its words, styled in place (notebooks strip style sheets)."""
    report = summary.report
    name = f"<b>Compatibility of {escape(report.model)}.</b> " if title else ""
    cell = "padding:.25em .8em .25em 0;border:0;vertical-align:top;"
    head = "".join(
        f'<th style="{cell}text-align:{_side(k)};border-bottom:1px solid currentColor">{escape(column)}</th>'
        for k, column in enumerate(summary.columns)
    )
    body = ""
    for effect, row in zip(report.effects, summary.table_rows(), strict=True):
        told_as = escape(MEANING.get(effect, ""))
        meaning = f'<br><small style="opacity:.7">{told_as}</small>' if told_as else ""
        cells = "".join(
            f'<td style="{cell}text-align:{_side(k)};{_tint(text)}">{escape(text)}{meaning if k == 0 else ""}</td>'
            for k, text in enumerate(row)
        )
        body += f"<tr>{cells}</tr>"
    others = "".join(f"<p><b>{escape(t)}</b>: {_lines(told(r))}</p>" for t, r in report.others.items())
    words = "".join(f"<li>{escape(line)}</li>" for line in summary.words())
    return (
        f"<div><p>{name}{escape(summary.headline())}</p>"
        f'<table style="border-collapse:collapse;font-size:.95em"><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        f'</table>{others}<ul style="opacity:.8;font-size:.9em">{words}</ul></div>'
    )


def write_html(report: Report, path: Path) -> Path:
    """The whole report in one file."""
    if path.is_dir():
        raise FlexgenError("path", f"{str(path)!r} is a folder", "Name a file, such as report.html.")
    if path.suffix.lower() not in (".html", ".htm"):
        raise FlexgenError("path", f"{str(path)!r} does not end in .html", "Name an .html file; plot() saves pictures.")
    if not path.parent.is_dir():
        raise FlexgenError("path", f"{str(path)!r} is in a folder that is not there", "Make the folder first.")
    picture = io.BytesIO()
    report.plot().savefig(picture, format="png", dpi=160)
    encoded = base64.b64encode(picture.getvalue()).decode()
    title = f"Compatibility of {escape(report.model)}"
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><style>'
        "body{font:16px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222}"
        "img{max-width:100%}table{font-variant-numeric:tabular-nums}div{overflow-x:auto}</style></head><body>"
        f"<h1>{title}</h1>{summary_html(report.summary(), title=False)}"
        f'<img alt="Pictures of the report" src="data:image/png;base64,{encoded}">'
        f"{_largest(report)}</body></html>\n",
        encoding="utf-8",
    )
    return path


def _largest(report: Report) -> str:
    """The pairs that disagree most."""
    if "rectangle gap" not in report.effects:
        return ""
    frame = report.pairs().head(12)
    rows = frame[["site_0", "site_1", "weighted", "uniform", "largest", "floor", "num_values"]]
    table = rows.to_html(index=False, border=0, float_format=lambda v: f"{v:.3g}")
    return f"<h2>Pairs with the largest gaps</h2>{table}"


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def _side(column: int) -> str:
    return "left" if column in (0, 7) else "right"


def _tint(text: str) -> str:
    return f"color:{_COLOUR[text]};font-weight:600" if text in _COLOUR and text != "not refuted" else ""
