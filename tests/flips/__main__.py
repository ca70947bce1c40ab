"""Write the table of classes into docs/format.md."""

from __future__ import annotations

from pathlib import Path

from tests.flips.classes import BEGIN, END, as_markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "format.md"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{as_markdown()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
