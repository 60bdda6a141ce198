"""Generates the stubs of proto/ below everloop_contracts, or with --check tells whether they are current."""

import argparse
import filecmp
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "libs/everloop_contracts/src/everloop_contracts/stubs"
PACKAGE = "everloop_contracts.stubs"
# protoc names imports by proto path; the stubs live in a package of their own.
IMPORT = re.compile(r"^(\s*)(from|import) (everloop|inference)\b", re.MULTILINE)
QUALIFIED = re.compile(r"(?<![\w.\"'/])((?:everloop\.\w+\.v1|inference)\.\w+_pb2)\b")

# Where a message's class says it lives: pickle looks for it there, and Ray pickles.
MODULE = re.compile(r"(BuildTopDescriptorsAndMessages\(DESCRIPTOR, ')")


def generate(out: Path) -> None:
    """Writes all stubs below `out`, imports rewritten.

    Raises:
        subprocess.CalledProcessError: buf or a plugin failed; its message is on stderr.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["buf", "generate", "-o", str(out)], cwd=ROOT, check=True, env={**os.environ, "PATH": path}
    )
    for file in (*out.rglob("*.py"), *out.rglob("*.pyi")):
        text = file.read_text()
        # `import everloop.x.v1.y_pb2` of the .pyi files keeps its qualified uses: rewrite both.
        if file.suffix == ".pyi":
            text = QUALIFIED.sub(rf"{PACKAGE}.\1", text)
        text = IMPORT.sub(rf"\1\2 {PACKAGE}.\3", text)
        text = MODULE.sub(rf"\1{PACKAGE}.", text)
        file.write_text(text.replace(f"{PACKAGE}.{PACKAGE}.", f"{PACKAGE}."))
    for folder in (out, *(path for path in out.rglob("*") if path.is_dir())):
        (folder / "__init__.py").touch()


def differences(left: Path, right: Path) -> list[str]:
    """Names the files that differ between two folders, bytecode aside."""
    names = {
        str(file.relative_to(folder))
        for folder in (left, right)
        for file in folder.rglob("*.py*")
        if file.suffix in {".py", ".pyi"}
    }
    _, different, missing = filecmp.cmpfiles(left, right, names, shallow=False)
    return sorted([*different, *missing])


def main() -> int:
    """Generates or checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if a stub is out of date"
    )
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "stubs")
        generate(out)
        if check:
            stale = differences(out, TARGET)
            if stale:
                print(
                    "generated code is out of date, run `make generate`:",
                    *stale,
                    sep="\n  ",
                    file=sys.stderr,
                )
            return int(bool(stale))
        shutil.rmtree(TARGET, ignore_errors=True)
        shutil.copytree(out, TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
