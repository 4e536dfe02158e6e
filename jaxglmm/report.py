"""A short report of text, tables and pictures, shown in a terminal and written as one HTML page beside its pictures."""

import html
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Table:
    """A titled table of strings; the first `labels` columns are left-aligned."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    labels: int = 1


@dataclass(frozen=True)
class Picture:
    """A file of the report's folder, with what it shows. Terminals name it only in the end."""

    file: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it: paragraphs (str), tables and pictures."""

    title: str
    parts: list[str | Table | Picture]


def show(section: Section, console) -> None:
    """Print a section on a rich console: coloured on a terminal, plain in a pipe."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    console.rule(f"[bold]{escape(section.title)}", align="left", characters="─" if console.is_terminal else "-")
    for part in section.parts:
        if isinstance(part, str):
            console.print(escape(part), highlight=False)
        elif isinstance(part, Table):
            table = RichTable(
                title=part.title, title_justify="left", title_style="bold", pad_edge=False,
                box=box.SIMPLE_HEAD if console.is_terminal else None,
            )  # fmt: skip
            for j, name in enumerate(part.header):
                table.add_column(name, justify="left" if j < part.labels else "right", no_wrap=True)
            for row in part.rows:
                table.add_row(*map(escape, row))
            console.print(table)
        console.print()


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
h2 { border-bottom: 1px solid #ccd; margin-top: 2.2rem } img { max-width: 100% } figcaption { color: #555 }
figure { margin: 1.5rem 0 } table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem } th { border-bottom: 1px solid #889 }
td, th { padding: .15rem .8rem .15rem 0; text-align: right } .l { text-align: left }
pre { background: #f5f6f8; padding: .8rem; overflow-x: auto; font-size: 13px; line-height: 1.35 }
"""


def write_page(path: Path, title: str, sections: list[Section], appendix: str = "") -> None:
    """Write the page; `appendix` is shown as it is, in a fixed-width font."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        body += map(_part, section.parts)
    if appendix:
        body.append(f"<h2>Summary</h2>\n<pre>{html.escape(appendix)}</pre>")
    head = f'<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n<style>{STYLE}</style>'
    lines = ["<!doctype html>", '<html lang="en">', f"<head>\n{head}\n</head>", "<body>", *body, "</body>", "</html>"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _part(part: str | Table | Picture) -> str:
    if isinstance(part, str):
        return f"<p>{html.escape(part)}</p>"
    if isinstance(part, Picture):
        caption, file = html.escape(part.caption), html.escape(part.file, quote=True)
        return f'<figure><img src="{file}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    side = lambda j: ' class="l"' if j < part.labels else ""
    cells = lambda row, tag: "".join(f"<{tag}{side(j)}>{html.escape(v)}</{tag}>" for j, v in enumerate(row))
    rows = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in part.rows)
    return (
        f"<table><caption>{html.escape(part.title)}</caption>\n<thead><tr>{cells(part.header, 'th')}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody></table>"
    )
