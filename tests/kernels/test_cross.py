"""The C++ kernels compiled for arm64 and run under qemu-user, against plain loops."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "tests/support/cross/driver.cpp",
    "kernels/recurrence/cpu.cpp",
    "kernels/cpu/parallel.cpp",
)
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-ignored-attributes")


def check(tmp_path: Path, compiler: str, runner: tuple[str, ...], *flags: str) -> None:
    program = tmp_path / "driver"
    sources = [str(ROOT / source) for source in SOURCES]
    command = [compiler, *FLAGS, *WARNINGS, *flags, f"-I{ROOT}", *sources]
    subprocess.run([*command, "-static", "-pthread", "-o", str(program)], check=True)
    ran = subprocess.run([*runner, str(program)], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("forward") == 36


@pytest.mark.slow
def test_arm64(tmp_path: Path) -> None:
    compiler, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64"
    for tool in (compiler, emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} (Debian: g++-aarch64-linux-gnu, qemu-user)")
    check(tmp_path, compiler, (emulator,), "-DHFCORE_DRIVER_ISA=baseline")


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_this_machine(isa: str, tmp_path: Path) -> None:
    """The driver itself, where its loops can be trusted."""
    if platform.machine() not in ("x86_64", "AMD64") or shutil.which("g++") is None:
        pytest.skip("need g++ on x86-64")
    flags = {"baseline": (), "avx2": ("-march=x86-64-v3",)}[isa]
    if isa == "avx2" and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("no AVX2 here")
    check(tmp_path, "g++", (), f"-DHFCORE_ISA={isa}", f"-DHFCORE_DRIVER_ISA={isa}", *flags)
