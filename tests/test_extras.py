from __future__ import annotations

import sys
from pathlib import Path

import pytest

from latprune.cli import main
from latprune.errors import BrokenPackageError, LatpruneError, MissingExtraError
from latprune.export.onnx import require_onnx
from latprune.extras import importing
from latprune.latency import available_engines, engine_problems, get_engine

LIBRARY = "libfoo.so.1: cannot open shared object file"


def broken(monkeypatch: pytest.MonkeyPatch, folder: Path, package: str, code: str) -> None:
    """A package whose import runs ``code``, in front of the one that is installed."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(code)
    for loaded in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.syspath_prepend(str(folder))


def test_what_is_not_there_is_not_installed() -> None:
    with pytest.raises(
        MissingExtraError, match=r"package 'no-such-package' is not installed; install it with: pip install 'latprune\[tables\]'"
    ):
        with importing("no-such-package", "tables", module="no_such_package"):
            import no_such_package  # noqa: F401
    with pytest.raises(MissingExtraError), importing("no_such_package.inside", "tables"):
        import no_such_package.inside  # noqa: F401


@pytest.mark.parametrize(
    "code",
    [f"raise ImportError({LIBRARY!r})", "import latprune_lacks_this", "from os import nothing_of_this_name", "import broken_one.part"],
)
def test_what_is_there_and_fails_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    broken(monkeypatch, tmp_path, "broken_one", code)
    with pytest.raises(BrokenPackageError, match="package 'broken_one' is installed, but cannot be imported: .*Error: ") as told:
        with importing("broken_one", "tables"):
            import broken_one  # noqa: F401
    assert told.value.exit_code == 5 and str(told.value.__cause__) in str(told.value) and "--force-reinstall" in str(told.value)


def test_an_interruption_of_the_import_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Modules in C raise an ImportError from whatever ended the import of another module."""
    broken(
        monkeypatch,
        tmp_path,
        "broken_two",
        "try:\n    raise KeyboardInterrupt\nexcept BaseException as e:\n    raise ImportError('x') from e",
    )
    with pytest.raises(KeyboardInterrupt), importing("broken_two", "tables"):
        import broken_two  # noqa: F401


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "executorch"])
def test_a_broken_engine_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    broken(monkeypatch, tmp_path, name, f"raise ImportError({LIBRARY!r})")
    with pytest.raises(BrokenPackageError, match=LIBRARY):
        get_engine(name).version()
    assert available_engines()[name] is None and LIBRARY in engine_problems()[name]
    assert main(["list", "engines"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[0] == name]
    assert LIBRARY in line and "not installed" not in line


def test_a_broken_onnx_is_told_before_an_export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken(monkeypatch, tmp_path, "onnx", f"raise ImportError({LIBRARY!r})")
    with pytest.raises(LatpruneError, match=LIBRARY):
        require_onnx()
