"""Folders as the Hugging Face hub has them: ``config.json`` and safetensors files."""

from moec.frontend.huggingface.folder import CONFIG, import_folder, is_folder, rounds_activations
from moec.frontend.huggingface.mtp import import_with_mtp

__all__ = ["CONFIG", "import_folder", "import_with_mtp", "is_folder", "rounds_activations"]
