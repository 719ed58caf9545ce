"""GGUF files of llama.cpp become models whose weights keep their bits, without PyTorch."""

from moec.frontend.gguf.model import import_file, text_files_of
from moec.frontend.gguf.reader import is_file

__all__ = ["import_file", "is_file", "text_files_of"]
