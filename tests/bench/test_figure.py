from deqflow.bench import METHODS
from deqflow.bench.figure import draw


def row(method, steps, **changes):
    full = {"compiled_bytes": 2**20, "peak_bytes": 2**21, "seconds": 0.1, "gradient_error": 1e-6, "status": "ok"}
    return {"method": method, "steps": steps, **full, **changes}


def test_a_row_of_panels_for_each_study(tmp_path):
    nothing = dict.fromkeys(("compiled_bytes", "peak_bytes", "seconds", "gradient_error"))
    full = [row(method, steps) for method in METHODS for steps in (1000, 10)]
    figure = draw(
        {"one": full, "two": [row("implicit", 10, status="ok, stopped at step 7"), row("unrolled", 10, **nothing, status="failed")]}
    )
    assert len(figure.axes) == 6
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [method.replace("_", " ") for method in METHODS]
    memory, _, error = figure.axes[:3]
    assert len(memory.lines) == 2 * len(METHODS) and len(error.lines) == len(METHODS)
    assert [list(map(float, axis)) for axis in memory.lines[0].get_data()] == [[10, 1000], [2, 2]]
    assert [line.get_markerfacecolor() for line in figure.axes[4].lines[1:]] == ["white"]
    assert len(figure.axes[5].lines) == 1  # nothing of what failed
    figure.savefig(tmp_path / "memory.pdf")
    draw({"nothing": []}).savefig(tmp_path / "empty.png")
