"""The documents: what they link to and show is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted(ROOT.glob("benchmarks/*.md")),
    *sorted(ROOT.glob("res/*/*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """What headings of a document can be linked to as."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def broken_links(document: Path) -> list[str]:
    """Links of a document to a file or heading that is not there; those to the network pass."""
    broken = []
    for link in LINK.findall(document.read_text(encoding="utf-8")):
        name, _, heading = link.partition("#")
        target = document.parent / name if name else document
        if "://" in link:
            continue
        found = target.exists()
        if found and heading:
            found = heading in anchors(target.read_text(encoding="utf-8"))
        if not found:
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    assert not broken_links(document)


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# 1. A heading, long\n")
    document = tmp_path / "links.md"
    document.write_text(
        "[a](there.md) [b](there.md#1-a-heading-long) [c](https://example.org/x)\n"
        "![d](gone.png) [e](there.md#2-no-heading) [f](#none)\n"
    )
    assert broken_links(document) == ["gone.png", "there.md#2-no-heading", "#none"]
