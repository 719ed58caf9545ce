"""Put a file in place of one of moec's for this process and those it starts: see ``tests/instruments/mutations.py``.

Python imports this module by itself when its folder is on PYTHONPATH. What reads source (TVMScript, tracebacks) gets
the text of the replacement, too.
"""

import importlib.machinery
import linecache
import os

_ORIGINAL, _REPLACEMENT = os.environ.get("MOEC_MUTANT_OF"), os.environ.get("MOEC_MUTANT")

if _ORIGINAL and _REPLACEMENT:
    _read = importlib.machinery.SourceFileLoader.get_data
    _cached = importlib.machinery.SourceFileLoader.get_code

    def _get_data(self, path):
        return _read(self, _REPLACEMENT if os.path.realpath(path) == _ORIGINAL else path)

    def _get_code(self, fullname):
        if os.path.realpath(self.path) != _ORIGINAL:
            return _cached(self, fullname)
        with open(_REPLACEMENT, encoding="utf-8") as file:
            text = file.read()
        linecache.cache[self.path] = (len(text), None, text.splitlines(keepends=True), self.path)
        return compile(text, self.path, "exec", dont_inherit=True)

    importlib.machinery.SourceFileLoader.get_data = _get_data
    importlib.machinery.SourceFileLoader.get_code = _get_code
