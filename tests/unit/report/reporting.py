"""What the tests of this folder share."""

import html.parser


class Page(html.parser.HTMLParser):
    """Collects what the tests ask of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.tables = 0
        self.header_cells = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert tag not in ("script", "link", "iframe", "object", "embed")
        assert not [name for name in found if name.startswith("on")]
        self.tables += tag == "table"
        if tag == "th":
            assert found.get("scope") in ("row", "col", "rowgroup", "colgroup")
        if tag == "img":
            self.images.append(found)
        self.links += [str(found[name]) for name in ("src", "href") if name in found]
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
