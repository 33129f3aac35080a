"""The documentation says what was measured."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "results_tables.py"


def test_the_tables_of_the_results_are_those_of_their_files():
    spec = importlib.util.spec_from_file_location("results_tables", SCRIPT)
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    pages = [path.read_text() for path in tables.PAGES]
    assert sum(len(tables.BLOCK.findall(page)) for page in pages) >= 7
    assert [tables.filled(page)[1] for page in pages] == [[]] * len(pages)
    page = pages[0]
    first = tables.BLOCK.search(page)
    other = page.replace(first[2], first[2].replace(" 0.", " 1.", 1))
    assert tables.filled(other) == (page, [first[1]])
