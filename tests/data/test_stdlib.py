import ast
import platform

import pytest

from data import stdlib


def write(root, name: str, content: bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)


def test_only_readable_modules_of_the_library_itself_in_order(tmp_path):
    write(tmp_path, "b.py", "x = 'naïve 東京'\r\n".encode())
    write(tmp_path, "a/deep.py", b"y = 2\n")
    write(tmp_path, "latin.py", b"# coding: latin-1\nx = '\xe9'\n")
    write(tmp_path, "empty.py", b"")
    write(tmp_path, "notes.txt", b"text")
    write(tmp_path, "_sysconfigdata__linux_.py", b"paths = 1\n")
    for folder in ("site-packages/p", "test", "a/tests", "idlelib/idle_test", "__pycache__", "config-3.11-x86_64"):
        write(tmp_path, f"{folder}/c.py", b"z = 3\n")
    assert stdlib.documents(tmp_path) == [("a/deep.py", "y = 2\n"), ("b.py", "x = 'naïve 東京'\r\n")]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no .py files"):
        stdlib.documents(tmp_path)


def test_this_interpreters_library_is_real_code_and_always_the_same():
    docs = stdlib.documents()
    names = [name for name, _ in docs]
    assert names == sorted(names) and len(docs) > 300
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    assert sum(len(text) for _, text in docs) > 5_000_000
    ast.parse(dict(docs)["argparse.py"])
    assert stdlib.documents() == docs


def test_version_names_interpreter_and_content():
    docs = [("a.py", "x = 1\n"), ("b.py", "y = 2\n")]
    assert stdlib.version(docs).startswith(f"{platform.python_version()}-")
    others = [docs[:1], [("a.py", "x = 1\n"), ("c.py", "y = 2\n")], [("a.py", "x = 1\n"), ("b.py", "y = 3\n")]]
    assert len({stdlib.version(d) for d in [docs, *others]}) == 4
