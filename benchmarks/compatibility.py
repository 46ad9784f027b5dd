"""The figures of the compatibility package, part by part.

    python -m benchmarks.compatibility exact null power coverage repair
    python -m benchmarks.compatibility antiberty              # needs extras

Each part is a module ``benchmarks/compatibility_<part>.py`` with its own options and page of help:
``python -m benchmarks.compatibility_exact --help``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util

PARTS = ("exact", "null", "power", "coverage", "repair", "antiberty")


def main() -> None:
    parser = argparse.ArgumentParser(description="The figures of the compatibility package.")
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="part", help=", ".join(PARTS))
    for part in parser.parse_args().parts:
        name = f"benchmarks.compatibility_{part}"
        if importlib.util.find_spec(name) is None:
            parser.error(f"part {part!r} is not here: there is no module {name}")
        print(f"== {part} ==", flush=True)
        importlib.import_module(name).main([])


if __name__ == "__main__":
    main()
