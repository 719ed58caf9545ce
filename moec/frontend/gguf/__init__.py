"""GGUF files of llama.cpp become models whose weights keep their bits, without PyTorch."""

from moec.frontend.gguf.file.reader import is_file
from moec.frontend.gguf.model import import_file, import_with_mtp, text_files_of

__all__ = ["import_file", "import_with_mtp", "is_file", "text_files_of"]
