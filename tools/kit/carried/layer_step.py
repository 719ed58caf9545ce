"""The step of one layer of experts at one number of tokens: checked, and timed beside predictions.

    python -m carried.layer_step [--emulate] TAPE

Numbers are made on the device. Routing, 4,096 hidden numbers and 4,096 results are compared with plain kernels; with 2
and 4 multiprocessors, and with other spellings of barriers, the bits have to be the same. Launches are timed one by
one, and the whole layer launch by launch and as a graph.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from .layer_check import LayerCheck
from .places import open_device, options
from .tape import Tape
from .timing import Stopwatch


def main() -> int:
    asked = options(__doc__, "tape")
    device = open_device(emulate=asked.emulate)
    tape = Tape(asked.folder, asked.tape, device)
    print(f"* {device.name}", flush=True)
    right = True
    for text, agrees in checks(tape):
        print(f"* {text}{'' if agrees else ', DIFFERS'}", flush=True)
        right &= agrees
    for text in times(tape):
        print(f"* {text}", flush=True)
    return 0 if right else 1


def checks(tape: Tape) -> Iterator[tuple[str, bool]]:
    """Compare results: texts, and whether they agree."""
    check = LayerCheck(tape)
    most, *fewer = tape.multiprocessors
    tape.restore()
    tape.run(most, check.first + 1)
    yield check.routing()
    yield check.hidden()
    tape.run(most)
    yield check.results()
    expected = check.bits()
    for count in fewer:
        yield f"{count} multiprocessors", _repeats(tape, count, check, expected)
    for name, code in tape.data["variants"].items():
        tape.code = code
        yield f"{name}: bits", _repeats(tape, most, check, expected)
    tape.code = {}


def _repeats(tape: Tape, count: str, check: LayerCheck, expected: bytes) -> bool:
    check.lose_results()
    tape.run(count)
    return check.bits() == expected


def times(tape: Tape) -> Iterator[str]:
    """Time the products, their variants in turn with them, and the layer."""
    watch = Stopwatch(tape.device, tape.folder / "code" / f"{tape.data['measures']}.fatbin")
    most = tape.multiprocessors[0]
    layer, predictions = tape.data["layer"], tape.data["predictions"]
    each_product = 2 * layer["tokens"] * layer["chosen"] * layer["width"] * layer["hidden"]
    products = [call["kernel"] for call in tape.data["calls"] if _is_product(call)]
    for place, (kernel, launches) in enumerate(tape.calls(most)):
        tape.run(most, place)
        operations = each_product * (2, 1)[products.index(kernel)] if kernel in products else 0
        predicted = predictions.get(kernel, {})
        for name, code in ({"": {}} | (tape.data["variants"] if operations else {})).items():
            tape.code = code
            least, median = watch.seconds(lambda launches=launches: _launch_all(tape, launches))
            tape.code = {}
            yield f"{kernel}{name and f' ({name})'}: {figures(least, median, operations, predicted)}"
    total = {"seconds": sum(each["seconds"] for each in predictions.values()), "limit": "sum of all launches"}
    one_by_one = watch.seconds(lambda: tape.run(most))
    yield f"layer, launch by launch: {figures(*one_by_one, 3 * each_product, total)}"
    as_graph = watch.seconds(tape.device.captured(lambda: tape.run(most)))
    yield f"layer, as a graph: {figures(*as_graph, 3 * each_product, total)}"
    if not tape.device.emulated:
        yield f"clock afterwards: {watch.clock() / 1e9:.2f} GHz"


def figures(least: float, median: float, operations: int, predicted: Mapping[str, Any]) -> str:
    """Write times, the rate of the median, and the prediction."""
    text = f"{least * 1e6:.1f} us least, {median * 1e6:.1f} us median"
    if operations:
        text += f", {operations / median / 1e12:.1f} TFLOP/s"
    if predicted:
        text += f"; predicted at least {predicted['seconds'] * 1e6:.1f} us ({predicted['limit']})"
    return text


def _launch_all(tape: Tape, launches: list[Mapping[str, Any]]) -> None:
    for launch in launches:
        tape.launch(launch)


def _is_product(call: Mapping[str, Any]) -> bool:
    return any(tensor["name"] == "matrix" for tensor in call["tensors"])


if __name__ == "__main__":
    sys.exit(main())
