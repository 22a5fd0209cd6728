"""`python -m vt_fast info` works whatever is broken."""

import json
import subprocess
import sys

import pytest

from vt_fast import info
from vt_fast.__main__ import main
from vt_fast.version import __version__


def test_report_names_versions_devices_and_backends(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for word in (
        "versions",
        "devices",
        "kernels",
        "backends",
        "vt_fast",
        "torch",
        "triton",
        "numpy",
        "fvcore",
        "gpu",
        "cores",
    ):
        assert word in out
    assert __version__ in out


def test_json_is_the_same_report(capsys):
    assert main(["info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["vt_fast"] == __version__
    assert report["devices"]["cores"] >= 1


def test_backend_torch_can_run_and_others_say_why():
    report = info.collect()["backends"]
    assert {"name": "torch", "available": True, "reason": None} in report
    for backend in report:
        assert backend["available"] == (backend["reason"] is None)


def test_missing_package_is_not_installed(monkeypatch):
    monkeypatch.setattr(info, "_PACKAGES", ("surely_no_such_package",))
    assert info.collect()["versions"]["surely_no_such_package"] == "not installed"


@pytest.mark.parametrize(
    "error", [OSError("libcudart.so: cannot open\nsecond line"), RuntimeError(), ImportError("x")]
)
def test_installed_package_that_does_not_import_shows_the_cause(monkeypatch, error):
    def fail(name):
        raise error

    monkeypatch.setattr(info.importlib, "import_module", fail)
    text = info.collect()["versions"]["numpy"]
    assert "but it does not import" in text
    assert type(error).__name__ in text
    assert "second line" not in text


def test_failing_probe_does_not_hide_the_rest(monkeypatch, capsys):
    def fail():
        raise RuntimeError("driver too old")

    monkeypatch.setattr(info, "_gpus", fail)
    monkeypatch.setattr(info, "_kernels", fail)
    monkeypatch.setattr(info, "_backends", fail)
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert out.count("not known (RuntimeError: driver too old)") == 3
    assert __version__ in out


def test_each_gpu_gets_a_line():
    report = {"versions": {}, "devices": {"gpu": ["first", "second"]}, "kernels": {}, "backends": []}
    assert "  gpu 0  first\n  gpu 1  second" in info.render(report)


def test_reason_of_a_backend_is_shown():
    backends = [{"name": "cpu", "available": False, "reason": "the library is not built"}]
    assert "cpu  no: the library is not built" in info.render(
        {"versions": {}, "devices": {}, "kernels": {}, "backends": backends}
    )


def test_info_works_where_torch_does_not_import():
    code = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is broken here")
sys.meta_path.insert(0, Hide())
from vt_fast.__main__ import main
sys.exit(main(["info"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "torch is broken here" in done.stdout
    assert "cores" in done.stdout


def test_no_command_and_unknown_command_are_usage_errors(capsys):
    for arguments in ([], ["nothing"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    assert "usage: vt-fast" in capsys.readouterr().err


def test_version_flag(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"vt_fast {__version__}"
