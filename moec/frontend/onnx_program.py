"""The program of :mod:`moec.frontend.onnx_process`. It imports next to nothing, for it has to start in no time.

``python -I -S onnx_program.py EXTENSION VERSION TARGET BYTES`` reads a serialized model at opset VERSION from standard
input and writes it at opset TARGET, in no more memory than BYTES. What is wrong with it goes to standard error, and the
exit code says of what kind that is.
"""

import sys
from importlib.machinery import ExtensionFileLoader, ModuleSpec

CANNOT_CONVERT, INCONSISTENT, NO_MEMORY = 3, 4, 5


def main(extension: str, version: int, target: int, memory: int) -> int:
    limit_memory(memory)
    loader = ExtensionFileLoader("onnx_cpp2py_export", extension)
    onnx = loader.create_module(ModuleSpec("onnx_cpp2py_export", loader, origin=extension))
    loader.exec_module(onnx)
    message, failure = sys.stdin.buffer.read(), CANNOT_CONVERT
    try:
        if version != target:
            message = onnx.version_converter.convert_version(message, target)
        failure = INCONSISTENT
        check_type = strict = data_propagation = True
        onnx.shape_inference.infer_shapes(message, check_type, strict, data_propagation)
    except MemoryError:
        return NO_MEMORY
    except Exception as error:
        sys.stderr.write(str(error))
        return failure
    sys.stdout.buffer.write(message)
    return 0


def limit_memory(bytes_: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    resource.setrlimit(resource.RLIMIT_DATA, (bytes_, bytes_))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
