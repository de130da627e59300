"""The interpreter's own standard library as a corpus: real text, about 12 MB, on every machine, without a network."""

import hashlib
import platform
import sysconfig
from pathlib import Path

# Installed packages and test suites are no part of the library; names starting so hold build-time paths, not text.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
SKIPPED_PREFIXES = ("config-", "_sysconfigdata")

Document = tuple[str, str]  # name, text


def documents(root: Path | None = None) -> list[Document]:
    """All modules of the library, sorted by name; the same interpreter always gives the same list.

    Args:
        root: folder of .py files; the running interpreter's library by default.

    Returns:
        (path relative to root, text), without files that are empty or not UTF-8.

    Raises:
        ValueError: there is no module to read.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if SKIPPED_FOLDERS.intersection(parts[:-1]) or any(part.startswith(SKIPPED_PREFIXES) for part in parts):
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text:
            found.append(("/".join(parts), text))
    if not found:
        raise ValueError("the standard library has no .py files here; run with an interpreter that has them unpacked")
    return sorted(found)


def version(docs: list[Document]) -> str:
    """Names a corpus by the interpreter's version and its content, e.g. "3.12.4-1f0a9c2e".

    Distributions patch the library and leave parts out, so the version number alone would not do.
    """
    digest = hashlib.sha256()
    for name, text in docs:
        digest.update(f"{name}\0{text}\0".encode())
    return f"{platform.python_version()}-{digest.hexdigest()[:8]}"
