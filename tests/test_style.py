"""Style that can be checked by reading the source: docstrings, the length of functions, where each module is tested."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("ssljax", "configs", "benchmarks", "docs", "tests")
FILES = sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MODULES = [name for name in FILES if name.startswith("ssljax/") and not name.endswith("__init__.py")]

# A docstring begins with a noun or a verb: "Returns ...", "Per-token expert usage".
HEADLESS = re.compile(r"(What|Of|Whether|The same|That|Those|How|Where|Which)\b")

LONGEST = 60  # lines of a function from `def` to its last line, without the docstring

TEST_TABLE = "| module | tested in |\n| --- | --- |\n"  # of CONTRIBUTING.md


def headless_docstrings(source: str) -> list[str]:
    """First lines of docstrings (of a module, its classes and functions) that begin with neither noun nor verb."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [text.splitlines()[0] for text in docstrings if HEADLESS.match(text)]


def function_lengths(source: str) -> dict[str, int]:
    """Numbers of lines of functions by name, without docstrings; the largest if several share a name."""
    lengths: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node):
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            lengths[node.name] = max(lines, lengths.get(node.name, 0))
    return lengths


def test_headless_docstrings_are_found():
    assert headless_docstrings('"""Whether it rains."""') == ["Whether it rains."]
    assert headless_docstrings('class A:\n    def f(self):\n        """Of a row.\n\n        More.\n        """') == [
        "Of a row."
    ]
    assert headless_docstrings('def f():\n    """Returns what is asked for."""') == []
    assert headless_docstrings('def f():\n    """Offsets of rows."""') == []


def test_docstrings_begin_with_a_noun_or_a_verb():
    headless = {name: headless_docstrings((ROOT / name).read_text()) for name in FILES}
    assert {name: lines for name, lines in headless.items() if lines} == {}


def test_lengths_leave_docstrings_out():
    source = 'def f(\n    x,\n):\n    """One.\n\n    Two.\n    """\n    def g():\n        return x\n    return g'
    assert function_lengths(source) == {"f": 6, "g": 2}


def test_no_function_is_longer_than_a_page():
    long = {
        f"{name}:{function}": lines
        for name in MODULES
        for function, lines in function_lengths((ROOT / name).read_text()).items()
        if lines > LONGEST
    }
    assert long == {}


def listed_tests() -> dict[str, list[str]]:
    """Test files by module, as the table of CONTRIBUTING.md lists them."""
    rows = (ROOT / "CONTRIBUTING.md").read_text().partition(TEST_TABLE)[2].partition("\n\n")[0].splitlines()
    table: dict[str, list[str]] = {}
    for modules, tests in (re.findall("`[^|]+`", row) for row in rows):
        for pattern in re.findall("`(.+?)`", modules):
            matches = [str(path.relative_to(ROOT)) for path in (ROOT / "ssljax").glob(pattern)]
            assert matches, f"CONTRIBUTING.md lists {pattern}, which does not exist"
            for module in matches:
                table.setdefault(module, []).extend(f"tests/{test}" for test in re.findall("`(.+?)`", tests))
    return table


def own_test(module: str) -> str:
    """Path of the test file named after a module: tests/losses/test_health.py for ssljax/losses/health.py."""
    path = pathlib.Path(module)
    return str("tests" / path.relative_to("ssljax").with_name(f"test_{path.name}"))


def test_every_module_has_a_test_file_or_a_line_in_the_table():
    table = listed_tests()
    untested = [name for name in MODULES if not (ROOT / own_test(name)).exists() and name not in table]
    assert untested == [], "name a test file after the module, or add a line to the table of CONTRIBUTING.md"
    missing = {test for tests in table.values() for test in tests if not (ROOT / test).exists()}
    assert missing == set(), "CONTRIBUTING.md lists test files that do not exist"


def test_lines_of_what_is_written_here_although_a_library_exists():
    """Counts are within a fifth."""
    table = (
        (ROOT / "CONTRIBUTING.md")
        .read_text()
        .split("| part | lines | library | reason |\n| --- | --- | --- | --- |\n")[1]
    )
    rows = [line.split("|")[1:3] for line in table.split("\n\n")[0].splitlines()]
    assert len(rows) > 5
    for parts, lines in rows:
        found = sum(len((ROOT / "ssljax" / name).read_text().splitlines()) for name in re.findall(r"`([^`]+)`", parts))
        assert abs(found / int(lines) - 1) < 0.2, f"{parts}: {found} lines"
